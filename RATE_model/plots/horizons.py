"""Success against correlation horizon, with intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from RATE_model.plots.style import COLOURS, GREY, MARKERS, save, style

# (horizon in steps, mean outcome, lower and upper end of its interval)
Point = tuple[float, float, float, float]


def plot_horizons(
    lines: Mapping[str, Sequence[Point]],
    path: Path,
    *,
    context: int,
    chance: float | None,
    outcome: str = "success",
    title: str | None = None,
) -> Path:
    """Success or returns against horizon, one line with error bars per label; horizons within the context are shaded.

    Args:
        lines: `{label: points}`.
        path: of the PNG.
        context: K, steps seen at once.
        chance: level of a dotted line: chance, or a random player's return; None: no line.
        outcome: label of the y axis.
        title: title of the figure.

    Raises:
        UserError: the file cannot be written.
    """
    return save(horizons_figure(lines, context=context, chance=chance, outcome=outcome, title=title), path)


def horizons_figure(
    lines: Mapping[str, Sequence[Point]],
    *,
    context: int,
    chance: float | None,
    outcome: str = "success",
    title: str | None = None,
) -> Figure:
    """The figure of `plot_horizons`."""
    with style():
        figure = Figure(figsize=(7.2, 4), layout="constrained")
        axes = figure.subplots()
        horizons = sorted({point[0] for points in lines.values() for point in points})
        axes.set_xscale("log")
        first = min(horizons[0], context) * 0.85
        axes.axvspan(first, context, color="#F1F1F1", linewidth=0, label=f"within the context (K = {context})")
        is_rate = outcome == "success"
        if chance is not None:
            label = "chance" if is_rate else "a random player"
            axes.axhline(chance, color=GREY, linewidth=1, linestyle=":", label=label)
        for number, (label, points) in enumerate(lines.items()):
            x, value, low, high = np.array(sorted(points)).T
            shift = 1.012 ** (number - len(lines) / 2)  # bars at one horizon would hide one another
            axes.errorbar(x * shift, value, yerr=(value - low, high - value), label=label, capsize=2, elinewidth=1,
                          color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], markersize=4.5,
                          zorder=10 - number)  # fmt: skip
        axes.set(xlabel="correlation horizon (steps)", ylabel=outcome, ylim=(-0.03, 1.05) if is_rate else None)
        axes.set_xlim(first, horizons[-1] * 1.15)
        kept = [horizons[-1]]
        for horizon in reversed(horizons[:-1]):
            if kept[-1] / horizon > 1.25:
                kept.append(horizon)
        axes.xaxis.set_major_locator(FixedLocator(kept))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.grid(axis="y")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
        if title:
            figure.suptitle(title)
    return figure
