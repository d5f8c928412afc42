"""The style of every figure, and how it is saved."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_bytes

# Okabe and Ito (2008), and two of Tol (2021): distinguishable with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#4D4D4D", "#882255", "#999933")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "h")
GREY = "#555555"

_STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.axisbelow": True,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.8,
    "figure.dpi": 110,
    "savefig.dpi": 160,
}


@contextmanager
def style() -> Iterator[None]:
    """The style of every figure, independent of the user's matplotlibrc."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write the figure as PNG to `path`, atomically; creates directories. Raises UserError if it cannot be written."""
    buffer = io.BytesIO()
    with style():
        figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(path, buffer.getvalue())
    except OSError as error:
        raise UserError(f"the figure {path} cannot be written: {error.strerror or error}") from error
    return path


def logarithmic_if_wide(axes: Axes) -> None:
    """A logarithmic vertical axis if the data is positive and spans a decade: ticks within one are hard to read."""
    low, high = axes.dataLim.intervaly
    if 0 < 10 * low <= high:
        axes.set_yscale("log")
