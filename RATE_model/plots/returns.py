"""Returns against the return asked for."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from RATE_model.acting.rollout import Episodes
from RATE_model.plots.style import COLOURS, GREY, save, style


def plot_returns(played: Mapping[str, Mapping[float, Episodes]], path: Path, *, title: str) -> Path:
    """Returns against the return asked for, mean and standard deviation, a line for each label; the PNG's path."""
    return save(returns_figure(played, title=title), path)


def returns_figure(played: Mapping[str, Mapping[float, Episodes]], *, title: str) -> Figure:
    """The figure of `plot_returns`."""
    with style():
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        axes = figure.subplots()
        targets = sorted({target for line in played.values() for target in line})
        axes.plot(targets, targets, color=GREY, linewidth=1, linestyle=":", label="as asked for")
        for number, (label, line) in enumerate(played.items()):
            asked = sorted(line)
            mean, spread = (np.array([kind(line[target].returns) for target in asked]) for kind in (np.mean, np.std))
            colour = COLOURS[number % len(COLOURS)]
            axes.errorbar(asked, mean, spread, color=colour, marker="o", markersize=4, capsize=3, label=label)
        axes.set(xlabel="return asked for", ylabel="return (mean, standard deviation)", title=title)
        axes.grid(axis="y")
        axes.legend()
    return figure
