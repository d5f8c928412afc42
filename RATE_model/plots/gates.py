"""A memory's decisions at every step of an episode: gates, addresses, and everything else that `inspect` names."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from RATE_model.errors import UserError
from RATE_model.plots.style import save, style


def plot_gates(
    gates: Mapping[str, Tensor],
    path: Path,
    *,
    rows: Mapping[str, int] | None = None,
    title: str | None = None,
) -> Path:
    """A heat map for each gate and episode: units from top to bottom, steps from left to right.

    Args:
        gates: "gates" of `Agent.inspect`, `(B, T, n)` each.
        path: of the PNG.
        rows: rows of the batch by label, side by side with one colour scale; None: the first.
        title: title of the figure.

    Raises:
        UserError: there are no gates, or the file cannot be written.
    """
    arrays = {name: gate.detach().float().cpu().numpy() for name, gate in gates.items()}
    return save(gates_figure(arrays, {"": 0} if rows is None else rows, title=title), path)


def gates_figure(gates: Mapping[str, np.ndarray], rows: Mapping[str, int], *, title: str | None = None) -> Figure:
    """The figure of `plot_gates`. The gid of a panel is the gate's name, a bar, and the row's label."""
    if not gates:
        raise UserError("this memory has no gates to draw")
    with style():
        figure = Figure(figsize=(2.2 + 4.2 * len(rows), 0.6 + 1.7 * len(gates)), layout="constrained")
        grid = figure.subplots(len(gates), len(rows), squeeze=False, sharex=True)
        for line, (name, gate) in zip(grid, gates.items(), strict=True):
            shown = gate[list(rows.values())]
            scale = _scale(shown)
            for axes, called, units in zip(line, rows, shown, strict=True):
                axes.set_gid(f"{name}|{called}")
                axes.set_title(f"{name}, {called}" if called else name)
                _draw(axes, units.T, scale)
            figure.colorbar(line[0].images[0], ax=list(line), pad=0.02).outline.set_visible(False)
        for axes in grid[-1]:
            axes.set_xlabel("step")
        if title:
            figure.suptitle(title)
    return figure


def _scale(values: np.ndarray) -> dict[str, Any]:
    """Colours for shares between 0 and 1, for signed numbers (white at 0), or for other numbers."""
    low, high = float(values.min()), float(values.max())
    if low >= 0:
        return {"cmap": "viridis", "vmin": 0, "vmax": max(high, 1.0)}
    if high <= 0:
        return {"cmap": "viridis", "vmin": low, "vmax": high}
    largest = max(-low, high)
    return {"cmap": "RdBu_r", "vmin": -largest, "vmax": largest}


def _draw(axes: Axes, units: np.ndarray, scale: dict[str, Any]) -> None:
    count, steps = units.shape
    axes.imshow(units, aspect="auto", interpolation="nearest", extent=(0.5, steps + 0.5, count + 0.5, 0.5), **scale)
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
