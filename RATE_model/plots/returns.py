"""Returns against target return."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RATE_model.acting.rollout import Episodes, mean_and_error
from RATE_model.plots.style import COLOURS, GREY, save, style


def plot_returns(
    played: Mapping[str, Mapping[float, Episodes]],
    path: Path,
    *,
    title: str,
    references: Mapping[str, float] | None = None,
) -> Path:
    """Returns against target return, mean and standard error, one line per label; returns the PNG's path.

    With a single target return, each label has a position on the axis instead.

    Args:
        played: `{label: {target return: episodes}}`.
        path: of the PNG.
        title: title of the figure.
        references: reference returns, drawn as horizontal lines.

    Raises:
        UserError: the file cannot be written.
    """
    return save(returns_figure(played, title=title, references=references), path)


def returns_figure(
    played: Mapping[str, Mapping[float, Episodes]], *, title: str, references: Mapping[str, float] | None = None
) -> Figure:
    """The figure of `plot_returns`."""
    with style():
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axes = figure.subplots()
        targets = sorted({target for line in played.values() for target in line})
        single = len(targets) == 1
        for number, (label, line) in enumerate(played.items()):
            asked = sorted(line)
            mean, error = np.array([mean_and_error(line[target].returns) for target in asked]).T
            colour = COLOURS[number % len(COLOURS)]
            places = [number] if single else asked
            axes.errorbar(places, mean, np.nan_to_num(error), color=colour, marker="o", markersize=5, capsize=3,
                          label=None if single else label)  # fmt: skip
        if single:
            axes.set_xticks(range(len(played)), [textwrap.fill(label, 16) for label in played])
            axes.set_xlim(-0.6, len(played) - 0.4)
            axes.axhline(targets[0], color=GREY, linewidth=1, linestyle=":", label=f"target: {targets[0]:g}")
        else:
            axes.plot(targets, targets, color=GREY, linewidth=1, linestyle=":", label="target")
            ticks = spaced(targets, 0.05 * (targets[-1] - targets[0]))
            axes.set_xticks(ticks, [f"{target:g}" for target in ticks])
            axes.set_xlabel("target return")
        for label, value in (references or {}).items():
            axes.axhline(value, color=GREY, linewidth=1, linestyle="--", zorder=1, gid=label)
        _name_lines(axes, references or {})
        axes.set(ylabel="return (mean ± standard error)", title=title)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def spaced(values: Sequence[float], least: float) -> list[float]:
    """The first and last of ascending values, and those between that are at least ``least`` apart."""
    kept = list(values[:1])
    for value in values[1:-1]:
        if min(value - kept[-1], values[-1] - value) >= least:
            kept.append(value)
    return kept + list(values[1:][-1:])


def _name_lines(axes: Axes, references: Mapping[str, float]) -> None:
    """Labels beside horizontal lines, from bottom to top, moved apart if they would overlap."""
    low, high = axes.get_ylim()
    room, place = 0.05 * (high - low), -np.inf
    for label, value in sorted(references.items(), key=lambda item: item[1]):
        place = max(value, place + room)
        axes.annotate(label, (1, place), xytext=(4, 0), xycoords=axes.get_yaxis_transform(), va="center",
                      textcoords="offset points", color=GREY, fontsize=9, annotation_clip=False)  # fmt: skip
