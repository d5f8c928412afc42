"""The page: the contents of run directories in one self-contained HTML file."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from RATE_model.cli.options import load_yaml
from RATE_model.errors import UserError, error_reason

# The file that protocol writes into a run.
PROTOCOL = "protocol.json"
# Maximum number of points of a curve.
_POINTS = 400
# Flags that the table of runs always shows.
_ALWAYS = ("model_mode", "seed", "context_length")


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run's directory."""

    name: str
    flags: Mapping[str, Any]
    command: str
    commit: str
    curves: Mapping[str, list[list[float]]] = field(repr=False)
    final: Mapping[str, Any] = field(repr=False)
    protocol: Mapping[str, Any] | None = field(repr=False)


def read_run(directory: Path) -> RunRecord:
    """Read a run's directory.

    Raises:
        UserError: not a run directory, or one of its files is damaged.
    """
    flags = load_yaml(directory / "config.yaml")
    starts = _json(directory / "environment.json").get("starts") or [{}]
    return RunRecord(
        name=directory.name,
        flags=flags | {"seed": starts[-1].get("seed")},
        command=" ".join(starts[-1].get("command", ())),
        commit=(starts[-1].get("git") or {}).get("commit") or "unknown",
        curves=_curves(directory / "metrics.jsonl"),
        final=_json(directory / "eval" / "final.json"),
        protocol=_json(directory / "eval" / PROTOCOL) or None,
    )


def build(runs: Sequence[RunRecord], episodes: Sequence[Mapping[str, Any]], *, title: str) -> str:
    """The HTML page of runs and recorded episodes."""
    names = _distinct([run.name for run in runs])
    numbers = {key: None for run in runs for key in run.final}
    examined = [(name, run.protocol) for name, run in zip(names, runs, strict=True) if run.protocol]
    data = {
        "runs": [{"name": name, "curves": run.curves} for name, run in zip(names, runs, strict=True)],
        "facts": [
            *([flag, *(run.flags.get(flag) for run in runs)] for flag in _differing_flags(runs)),
            ["commit", *(run.commit[:12] for run in runs)],
            ["command", *(run.command for run in runs)],
        ],
        "results": [[key, *(run.final.get(key) for run in runs)] for key in numbers],
        "metrics": list({metric: None for run in runs for metric in run.curves}),
        "verdicts": [
            {"name": name, "sentence": found["verdict"]["sentence"], "missing": found["verdict"]["missing"]}
            for name, found in examined
        ],
        "horizons": [_horizons(name, found) for name, found in examined if found["cases"][0]["horizons"]],
        "episodes": list(episodes),
    }
    subtitle = f"{len(runs)} run{'s' * (len(runs) > 1)}, {len(episodes)} recorded episode{'s' * (len(episodes) != 1)}"
    page = files("RATE_model.report").joinpath("page.html").read_text(encoding="utf-8")
    # Escaped, so no text of a run can end the script element with the data, or open another one.
    text = json.dumps(finite(data), allow_nan=False, default=str, separators=(",", ":")).replace("<", "\\u003c")
    for name, value in {"title": html.escape(title), "subtitle": html.escape(subtitle), "data": text}.items():
        page = page.replace("{{" + name + "}}", value)
    return page


def finite(value: Any) -> Any:
    """A document with None for numbers that are not finite, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _differing_flags(runs: Sequence[RunRecord]) -> list[str]:
    """Flags in which the runs differ, and some that are always shown."""
    flags = {flag: None for run in runs for flag in run.flags}
    differ = [flag for flag in flags if len({json.dumps(run.flags.get(flag), default=str) for run in runs}) > 1]
    return [flag for flag in flags if flag in _ALWAYS or flag in differ]


def _horizons(name: str, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of the figure of success, or returns, against the horizon."""
    lines: dict[str, list[list[float]]] = {}
    first = protocol["cases"][0]
    outcome = first.get("outcome", "success")  # missing in older files
    for case in protocol["cases"]:
        for condition, found in case["conditions"].items():
            point = [max(case["horizons"]), found[outcome], *found["interval"]]
            lines.setdefault(condition, []).append(point)
    return {"name": name, "conditions": lines, "chance": first["chance"], "outcome": outcome}


def _curves(path: Path) -> dict[str, list[list[float]]]:
    """Metric -> `[step, value]` of every line that has it."""
    curves: dict[str, list[list[float]]] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        for line in lines:
            row = json.loads(line)
            step = row.pop("step")
            for metric, value in row.items():
                if isinstance(value, int | float):
                    curves.setdefault(metric, []).append([step, value])
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{path}: damaged line ({error}); resume the run to repair it") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error_reason(error)}") from error
    return {metric: _thinned(points) for metric, points in curves.items()}


def _thinned(points: list[list[float]]) -> list[list[float]]:
    """At most `_POINTS` of them, evenly spaced, including the last."""
    every = -(-len(points) // _POINTS)
    return points[(len(points) - 1) % every :: every]


def _json(path: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it does not exist."""
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error_reason(error)}") from error


def _distinct(names: Sequence[str]) -> list[str]:
    """The names; duplicates get a number."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: number + 1].count(name)})"
        for number, name in enumerate(names)
    ]
