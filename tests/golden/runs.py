"""Tiny runs of train scripts from end to end: all metrics, and the result of the last evaluation."""

import json
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from os import devnull
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests import minigrid_runs, tmaze_runs

RUNS: dict[str, tuple[Any, tuple[str, ...]]] = {
    **{f"T-Maze {mode}": (tmaze_runs, flags) for mode, flags in tmaze_runs.MODES.items()},
    "T-Maze adaptive": (tmaze_runs, tuple("--curr adaptive --stage_batches 5 --anneal_batches 4".split())),
    "Minigrid RATE": (minigrid_runs, ("--layouts", "own")),
}


def run(name: str) -> dict[str, Any]:
    """The lines of metrics.jsonl, and eval/final.json without times."""
    script, flags = RUNS[name]
    with tempfile.TemporaryDirectory() as folder, open(devnull, "w") as nowhere:
        with patch.object(type(script.ENVIRONMENT), "draw_run"):
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                assert script.train(Path(folder), "--seed", "1", *flags) == 0
        directory = script.only_run(Path(folder))
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        final = json.loads((directory / "eval" / "final.json").read_text())
    return {
        "metrics": [json.loads(line) for line in lines],
        "final": {key: value for key, value in final.items() if not key.endswith("seconds")},
    }
