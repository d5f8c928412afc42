"""What a page takes from its runs: results, costs, origin, and evaluations repeated with changes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, NoReturn

from RATE_model.acting.controls import exchange_twins
from RATE_model.acting.rollout import Episodes
from RATE_model.cli.evaluation import evaluation_of_run
from RATE_model.environments.contract import Case, Environment, Evaluation
from RATE_model.errors import UserError, error_reason
from RATE_model.loading import load_agent
from RATE_model.memories.contract import MemoryTransform


class _OfRun(dict[str, Any]):
    """What a file of a run holds; a missing key is a UserError."""

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            found = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise self.damaged(error_reason(error) if isinstance(error, OSError) else str(error)) from None
        if not isinstance(found, dict):
            raise self.damaged(f"it holds {type(found).__name__}")
        super().__init__(found)

    def damaged(self, reason: str) -> UserError:
        """The error for a file that cannot be used."""
        return UserError(f"{self.file}: cannot be used ({reason}); move it away and repeat this command")

    def __missing__(self, key: str) -> NoReturn:
        raise self.damaged(f"it has no '{key}'")


class _Figures(_OfRun):
    """What eval/final.json holds; a figure that is missing or not a finite number is a UserError."""

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise self.damaged(f"'{key}' is {json.dumps(value):.50}, not a number")
        return value


def final_results(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """The results of each run's final evaluation.

    Raises UserError for damaged ones, and for a figure, read as `result[name]`, that is missing or not a number.
    """
    return [_Figures(path / "eval" / "final.json") for path in runs]


def training_of(runs: Sequence[Path]) -> dict[str, Any]:
    """The training costs of every seed, for an entry of a page."""
    results = final_results(runs)
    return {
        **{name: [result[name] for result in results] for name in ("train_seconds", "optimizer_steps")},
        "parameters": sum(parameter.numel() for parameter in load_agent(runs[0]).parameters()),
        **provenance(runs),
    }


def play_again(
    environment: Environment,
    run: Path,
    *,
    transform: MemoryTransform | None = None,
    twins: bool = False,
    target_return: float | None = None,
    device: str = "cpu",
    options: Mapping[str, Any] | None = None,
    **changes: Any,
) -> tuple[Evaluation, dict[Case, Episodes]]:
    """Repeat a run's evaluation with some changes; returns it and its episodes by case.

    Args:
        environment, run: the environment and the run.
        transform: applied to the memory.
        twins: play every episode twice; see `Environment.twins`. Without a transform, their memories are exchanged.
        target_return: replaces the run's.
        device: where the agent acts.
        options: changes to the environment's `play_options`.
        changes: further attributes of `Evaluation`, such as cases and episodes.
    """
    if target_return is not None:
        changes["targets"] = (target_return,)
    evaluation = evaluation_of_run(environment, run, device=device, **changes)
    evaluation = replace(evaluation, options=replace(evaluation.options, **(options or {})))
    if twins and transform is None:
        transform = exchange_twins()  # a new one, so every run uses the same random draws
    (played,) = evaluation.play_with(transform, twins=twins).values()
    return evaluation, played


def provenance(runs: Sequence[Path]) -> dict[str, Any]:
    """The origin of an entry: seeds, commits, and the days of the runs. Raises UserError for damaged files."""
    starts: list[tuple[int, str, str]] = []
    for record in (_OfRun(path / "environment.json") for path in runs):
        try:
            found = [
                (
                    int(start["seed"]),
                    str(start["git"]["commit"]) if start["git"] else "",
                    date.fromisoformat(start["started"][: len("2026-01-01")]).isoformat(),
                )
                for start in record["starts"]
            ]
        except (TypeError, KeyError, ValueError):
            found = []
        if not found:
            raise record.damaged("'starts' are not those of a run")
        starts += found
    return {
        "seeds": list(dict.fromkeys(seed for seed, _, _ in starts)),
        "commit": sorted({commit for _, commit, _ in starts if commit}),
        "date": span_of_days([day for _, _, day in starts]),
    }


def span_of_days(days: Sequence[str]) -> str:
    """The first and the last of some days or spans of days: "2026-01-01", or "2026-01-01 to 2026-01-03"."""
    every = sorted(day for span in days for day in span.split(" to "))
    return every[0] if every[0] == every[-1] else f"{every[0]} to {every[-1]}"
