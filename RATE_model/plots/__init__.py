"""Figures: success by length, bars, returns, training curves, attention maps, gates and memory tokens.

Every `plot_*` function writes one PNG atomically and returns its path; the matching `*_figure` function only builds the
figure. Nothing touches pyplot's global state, so everything works without a display.
"""

from RATE_model.plots.attention import plot_attention
from RATE_model.plots.bars import plot_bars
from RATE_model.plots.curves import plot_curves
from RATE_model.plots.gates import plot_gates
from RATE_model.plots.memory import plot_memory
from RATE_model.plots.returns import plot_returns
from RATE_model.plots.seeds import plot_seeds
from RATE_model.plots.success import plot_success_by_length, plot_success_panels

__all__ = [
    "plot_attention",
    "plot_bars",
    "plot_curves",
    "plot_gates",
    "plot_memory",
    "plot_returns",
    "plot_seeds",
    "plot_success_by_length",
    "plot_success_panels",
]
