"""Results of several groups, each by category, as bars."""

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from RATE_model.errors import UserError
from RATE_model.plots.style import COLOURS, GREY, save, style

# {group: {category: (mean, standard error)}}; an error may be NaN
Bars = Mapping[str, Mapping[str, tuple[float, float]]]


def plot_bars(
    groups: Bars,
    path: Path,
    *,
    ylabel: str,
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Path:
    """One bar for each category of each group, with its standard error.

    Args:
        groups: `{group: {category: (mean, standard error)}}`, from left to right.
        path: of the PNG.
        ylabel: label of the y axis.
        colours: colours of the categories; None: any.
        title: title of the figure.

    Raises:
        UserError: there is nothing to draw, or the file cannot be written.
    """
    return save(bars_figure(groups, ylabel=ylabel, colours=colours, title=title), path)


def bars_figure(
    groups: Bars,
    *,
    ylabel: str,
    colours: Mapping[str, str] | None = None,
    title: str | None = None,
) -> Figure:
    """The figure of `plot_bars`. The bars of a category are a container with its label."""
    categories = list(dict.fromkeys(category for values in groups.values() for category in values))
    if not categories:
        raise UserError("there are no values to draw bars of")
    width = 0.8 / len(categories)
    with style():
        figure = Figure(figsize=(max(4.0, 1.8 + 1.3 * len(groups)), 4.2), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y")
        for number, category in enumerate(categories):
            places = [place for place, values in enumerate(groups.values()) if category in values]
            means, errors = zip(*(values[category] for values in groups.values() if category in values), strict=True)
            axes.bar(
                np.array(places) + (number - (len(categories) - 1) / 2) * width,
                means,
                0.92 * width,
                yerr=np.nan_to_num(errors),
                color=(colours or {}).get(category, COLOURS[number % len(COLOURS)]),
                ecolor=GREY,
                label=category,
            )
        axes.set_xticks(range(len(groups)), [textwrap.fill(label, 14) for label in groups])
        axes.set(ylabel=ylabel, title=title)
        if len(categories) > 1:
            figure.legend(loc="outside lower center", ncols=4)
    return figure
