"""Metrics against optimizer step."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from RATE_model.errors import UserError, error_reason
from RATE_model.plots.style import COLOURS, GREY, logarithmic_if_wide, save, style

_FEW = 20
_VALIDATION = {"marker": "o", "markersize": 5.5, "markerfacecolor": "white", "markeredgewidth": 1.4}


def plot_curves(
    metrics_files: Mapping[str, Path],
    path: Path,
    names: Sequence[str] = ("train_loss", "train_accuracy"),
    *,
    title: str | None = None,
) -> Path:
    """Metrics against optimizer step, one panel per name.

    `validation_x` is drawn with `train_x`, as points. Stages of a curriculum (`segments_count`) are shaded, or
    marked by lines if there are several runs.

    Args:
        metrics_files: `{label: path of a metrics.jsonl}`.
        path: of the PNG.
        names: metrics; those that no file has are skipped. Losses that span a decade get a logarithmic axis.
        title: title of the figure.

    Raises:
        UserError: a file is missing or damaged, no file has any of these metrics, or the PNG cannot be written.
    """
    runs = {label: read_metrics(file) for label, file in metrics_files.items()}
    return save(curves_figure(runs, names, title=title), path)


def read_metrics(path: Path) -> list[dict[str, float | None]]:
    """The lines of a metrics.jsonl. Damaged lines are skipped with a warning, except for a last line cut off by a
    crash.

    Raises:
        UserError: the file is missing, or none of its lines has metrics.
    """
    try:
        lines = Path(path).read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"the metrics {path} cannot be read: {error_reason(error)}") from error
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            row["step"] = int(row["step"])
        except (ValueError, KeyError, TypeError):
            damaged += [number] if number < len(lines) else []
            continue
        rows.append(row)
    if damaged and not rows:
        raise UserError(f"{path} has no line of metrics (an object with a step)")
    if damaged:
        print(f"warning: {path}: skipped {len(damaged)} damaged lines, the first is line {damaged[0]}", file=sys.stderr)
    return rows


def curves_figure(
    runs: Mapping[str, Sequence[Mapping[str, float | None]]], names: Sequence[str], *, title: str | None = None
) -> Figure:
    """The figure of `plot_curves`, from the lines of `read_metrics`."""
    present = {key for rows in runs.values() for row in rows for key in row}
    shown = [name for name in names if name in present]
    if not shown:
        known = ", ".join(sorted(present - {"step"})) or "none at all"
        raise UserError(f"no run has any of the metrics {', '.join(names)}; available: {known}")
    with style():
        figure = Figure(figsize=(8.2, 0.6 + 2.3 * len(shown)), layout="constrained")
        panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
        for axes, name in zip(panels, shown, strict=True):
            axes.set_ylabel(_spelt_out(name))
            axes.grid(axis="y")
            axes.margins(x=0.01)
            for number, (label, rows) in enumerate(runs.items()):
                colour = COLOURS[number % len(COLOURS)]
                _curve(axes, rows, name, label, colour)
                _mark_stages(axes, rows, colour if len(runs) > 1 else None, named=axes is panels[0])
            if "loss" in name:
                logarithmic_if_wide(axes)
            elif name.endswith(("acc", "accuracy")):
                low, _ = axes.get_ylim()
                axes.set_ylim(max(-0.03, low), 1.02)  # late and small gains must not look flat
        panels[0].set_title(title, pad=20 if title else None)
        panels[-1].set_xlabel("optimizer step")
        _legend(figure, list(runs), {line.get_gid() for axes in panels for line in axes.lines})
    return figure


def _spelt_out(name: str) -> str:
    """train_last_acc: last accuracy."""
    return re.sub(r"acc$", "accuracy", name.removeprefix("train_")).replace("_", " ")


def _legend(figure: Figure, labels: list[str], drawn: set[str | None]) -> None:
    """Name the runs if there are several, and everything else that was drawn."""
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(labels))]
    handles = [Line2D([], [], color=colour, label=label) for colour, label in zip(colours, labels, strict=True)]
    common = GREY if len(labels) > 1 else colours[0]
    if "validation" in drawn:
        handles.append(Line2D([], [], color=common, linestyle="none", label="validation", **_VALIDATION))
    if "stage" in drawn:
        handles.append(Line2D([], [], color=common, linestyle=":", linewidth=1, label="next stage of the curriculum"))
    if len(handles) > 1:
        figure.legend(handles=handles, loc="outside lower center", ncols=4)


def _curve(axes: Axes, rows: Sequence[Mapping[str, float | None]], name: str, label: str, colour: str) -> None:
    """One metric of one run; values that are not finite are gaps."""
    steps, values = _series(rows, name)
    # Few values, such as evaluations, are drawn as points: a line does not show a single one.
    marker = "o" if np.isfinite(values).sum() <= _FEW else None
    axes.plot(steps, values, color=colour, label=label, linewidth=1.4, marker=marker, markersize=4)
    if name.startswith("train_"):
        steps, values = _series(rows, "validation_" + name.removeprefix("train_"))
        if steps.size:
            axes.plot(steps, values, color=colour, linestyle="none", gid="validation", **_VALIDATION)


def _series(rows: Sequence[Mapping[str, float | None]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a metric; null is NaN."""
    pairs = [(row["step"], row[name]) for row in rows if name in row]
    steps, values = np.array(pairs, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def _stages(rows: Sequence[Mapping[str, float | None]]) -> list[tuple[int, float, float]]:
    """(segments, first step, last step) of every stage of a curriculum."""
    steps, counts = _series(rows, "segments_count")
    if not steps.size:
        return []
    edges = [0, *(np.flatnonzero(np.diff(counts)) + 1), len(steps)]
    return [(int(counts[a]), 0.0 if a == 0 else float(steps[a - 1]), float(steps[b - 1])) for a, b in pairwise(edges)]


def _mark_stages(axes: Axes, rows: Sequence[Mapping[str, float | None]], colour: str | None, *, named: bool) -> None:
    """Shade a single run's stages (no colour), or mark the starts of the stages of one of several."""
    stages = _stages(rows)
    if len(stages) < 2:
        return
    for index, (segments, first, last) in enumerate(stages):
        if colour is not None:
            if index:
                axes.axvline(first, color=colour, linestyle=":", linewidth=1, gid="stage")
            continue
        if index % 2:
            axes.axvspan(first, last, color="#F1F1F1", zorder=0, linewidth=0)
        if named:
            axes.annotate(f"{segments} segment{'s' if segments > 1 else ''}", ((first + last) / 2, 1.0),
                          xycoords=axes.get_xaxis_transform(), xytext=(0, 4), textcoords="offset points",
                          ha="center", color=GREY, fontsize=9)  # fmt: skip
