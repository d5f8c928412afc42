"""How long memories last: success, what probes read, how far twins' memories are apart, and gradients."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RATE_model.plots.style import COLOURS, GREY, save, style

_COLUMNS = 4
_SMALLEST = 1e-12  # what is smaller is drawn here


def plot_retention(found: Mapping[str, Mapping[str, Any]], path: Path) -> Path:
    """One panel per label, of what `python3 -m RATE_model.diagnose.retention` writes.

    Args:
        found: label -> content of retention.json.
        path: of the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    return save(retention_figure(found), path)


def retention_figure(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The figure of `plot_retention`."""
    columns = min(_COLUMNS, len(found))
    rows = -(-len(found) // columns)
    with style():
        figure = Figure(figsize=(3.4 * columns + 0.8, 2.7 * rows + 0.7), layout="constrained")
        panels = figure.subplots(rows, columns, squeeze=False).flat
        for axes, (label, each) in zip(panels, found.items(), strict=False):
            _draw(axes, each)
            axes.set_title(label)
        for axes in panels[len(found) :]:
            axes.remove()
        lines = {line.get_label(): line for axes in figure.axes for line in axes.get_lines()}
        lines = {label: line for label, line in lines.items() if not str(label).startswith("_")}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=min(3, len(lines)))
    return figure


def _draw(axes: Axes, found: Mapping[str, Any]) -> None:
    """Shares on the left scale, distances and gradients on the right, logarithmic one."""
    cases, steps = found["by_case"], [each for each in found["by_step"] if each["distance"] is not None]
    places = [each["steps"] for each in cases]
    measure = found["measure"]
    axes.plot(places, [each["outcome"] for each in cases], "o-", color="black", markersize=4, label=measure, zorder=3)
    for name, style_of, colour in (("fitted_in_training", "-", COLOURS[0]), ("fitted_here", "--", COLOURS[1])):
        values = [each[name] for each in steps]
        label = f"hint read by a probe {name.replace('_', ' ')}"
        axes.plot([each["step"] for each in steps], values, style_of, color=colour, label=label)
    axes.axvline(found["trained_steps"], color=GREY, linestyle=":", linewidth=1)
    axes.set(xscale="log", xlabel="steps")
    if measure == "success":
        axes.set(ylim=(-0.03, 1.05))
    right = axes.twinx()
    right.spines["right"].set_visible(True)
    distances = np.maximum([each["distance"] for each in steps], _SMALLEST)
    right.plot([each["step"] for each in steps], distances, color=COLOURS[2], linewidth=1, label="distance of twins")
    known = [each for each in cases if "gradient" in each]
    gradients = np.maximum([each["gradient"] for each in known], _SMALLEST)
    right.plot(
        [each["steps"] for each in known],
        gradients,
        "x",
        color=COLOURS[3],
        markersize=5,
        label="gradient (right scale)",
    )
    right.set(yscale="log", ylim=(0.3 * _SMALLEST, 1e3))
