"""Returns against the return asked for."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
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
    """Returns against the return asked for, mean and standard error, a line for each label; the PNG's path.

    A single return that is asked for has a place for each label instead.

    Args:
        played: `{label: {return asked for: episodes}}`.
        path: of the PNG.
        title: above the figure.
        references: returns of others, drawn as horizontal lines.

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
            axes.axhline(targets[0], color=GREY, linewidth=1, linestyle=":", label=f"asked for: {targets[0]:g}")
        else:
            axes.plot(targets, targets, color=GREY, linewidth=1, linestyle=":", label="as asked for")
            axes.set_xticks(targets, [f"{target:g}" for target in targets])
            axes.set_xlabel("return asked for")
        for label, value in (references or {}).items():
            axes.axhline(value, color=GREY, linewidth=1, linestyle="--", zorder=1, gid=label)
            axes.annotate(label, (1, value), xytext=(4, 0), xycoords=axes.get_yaxis_transform(), va="center",
                          textcoords="offset points", color=GREY, fontsize=9, annotation_clip=False)  # fmt: skip
        axes.set(ylabel="return (mean ± standard error)", title=title)
        axes.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3)
    return figure
