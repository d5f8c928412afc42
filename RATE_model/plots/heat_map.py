"""Numbers from 0 to 1 in a grid."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from RATE_model.plots.style import save, style


def plot_heat_map(
    values: Mapping[str, Sequence[float]], names: Sequence[str], path: Path, *, rows: str, columns: str, title: str
) -> Path:
    """One row per label, one column per name, and the number in every cell.

    Args:
        values: `{label: numbers from 0 to 1}`, as many as there are names.
        names: of the columns.
        path: of the PNG.
        rows, columns: axis labels.
        title: title of the figure.

    Raises:
        UserError: the file cannot be written.
    """
    with style():
        table = np.array(list(values.values()), dtype=float)
        figure = Figure(figsize=(2.8 + 0.75 * len(names), 1.2 + 0.42 * len(values)), layout="constrained")
        axes = figure.subplots()
        axes.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=9,
                      color="black" if value > 0.6 else "white")  # fmt: skip
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(values)), list(values))
        axes.set(xlabel=columns, ylabel=rows, title=title)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return save(figure, path)
