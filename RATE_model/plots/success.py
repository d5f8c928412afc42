"""Success against episode length."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from RATE_model.acting.rollout import mean_and_error
from RATE_model.errors import UserError
from RATE_model.plots.style import COLOURS, GREY, MARKERS, save, style

# {label: {episode length: value, or one value per seed}}
Results = Mapping[str, Mapping[int, float | Sequence[float]]]

EPISODE_LENGTH = "episode length (steps)"


def plot_success_by_length(
    results: Results,
    path: Path,
    *,
    trained: int | None = None,
    chance: float | None = 0.5,
    title: str | None = None,
    published: Results | None = None,
    xlabel: str = EPISODE_LENGTH,
) -> Path:
    """Success against episode length: the mean over seeds, its standard error as a band, every seed as a point.

    Args:
        results: `{label: {length: value or values over seeds}}`, values in [0, 1]; values that are not finite are
            left out.
        path: of the PNG.
        trained: longest episode length that was trained on, in steps; a line marks it.
        chance: success without memory; a dotted line. None: no line.
        title: above the figure.
        published: numbers of others to draw beside, as `results`, hollow and dashed.
        xlabel: what the lengths are, where they are not steps of an episode.

    Raises:
        UserError: there is nothing to draw, or the file cannot be written.
    """
    figure = success_figure(results, trained=trained, chance=chance, title=title, published=published, xlabel=xlabel)
    return save(figure, path)


def success_figure(
    results: Results,
    *,
    trained: int | None = None,
    chance: float | None = 0.5,
    title: str | None = None,
    published: Results | None = None,
    xlabel: str = EPISODE_LENGTH,
) -> Figure:
    """The figure of `plot_success_by_length`. The line of a label has that label and the means as y data."""
    lengths = sorted({length for lines in (results, published or {}) for line in lines.values() for length in line})
    if not any(results.values()):
        raise UserError("there are no success rates to draw; evaluate at least one model at one length")
    with style():
        figure = Figure(figsize=(8.6, 4.8), layout="constrained")
        axes = figure.add_subplot()
        axes.set(xscale="log", ylim=(-0.03, 1.06), xlabel=xlabel, ylabel="success rate", title=title)
        axes.grid(axis="y")
        axes.yaxis.set_major_locator(FixedLocator(np.linspace(0, 1, 5)))
        low, high = lengths[0] / 1.18, lengths[-1] * 1.18
        axes.set_xlim(low, high)
        ticks = _readable(sorted({length for line in results.values() for length in line}), np.log(high / low))
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticklabels([_count(tick) for tick in ticks], fontsize=8)
        for number, (label, line) in enumerate(results.items()):
            _success_line(axes, label, line, number, len(results))
        for number, (label, line) in enumerate((published or {}).items()):
            _published_line(axes, label, line, number)
        if trained is not None:
            axes.axvspan(low, trained, color="#F5F5F5", zorder=0, linewidth=0)
            axes.axvline(trained, color=GREY, linewidth=1)
            axes.annotate(
                "longest trained  ", (trained, 0.02), ha="right", color=GREY, fontsize=9, annotation_clip=False
            )
        if chance is not None:
            axes.axhline(chance, color=GREY, linestyle=":", linewidth=1.2, zorder=1)
            axes.annotate("chance", (high, chance), xytext=(4, 0), textcoords="offset points", va="center",
                          color=GREY, fontsize=9, annotation_clip=False)  # fmt: skip
        figure.legend(loc="outside lower center", ncols=3)
    return figure


def _success_line(axes: Axes, label: str, line: Mapping[int, float | Sequence[float]], number: int, of: int) -> None:
    """One label: mean line, band of the standard error, points of the seeds beside one another."""
    colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    seeds = {length: _finite(line[length]) for length in sorted(line)}
    seeds = {length: values for length, values in seeds.items() if values.size}
    if not seeds:
        return
    lengths = np.array(list(seeds))
    means, errors = np.array([mean_and_error(values) for values in seeds.values()]).T
    order = 3 + 2 * (of - number)  # the first label on top
    axes.plot(lengths, means, color=colour, marker=marker, markersize=5, label=label, zorder=order + 1)
    if np.isfinite(errors).any():
        errors = np.nan_to_num(errors)
        axes.fill_between(lengths, means - errors, means + errors, color=colour, alpha=0.18, linewidth=0, zorder=order)
    # Points of several labels at one length would hide one another.
    shift = 1.035 ** (number - (of - 1) / 2)
    for length, values in seeds.items():
        if values.size > 1:
            axes.scatter(np.full(values.size, length * shift), values, s=11, color=colour, alpha=0.45, linewidth=0,
                         zorder=order)  # fmt: skip


def _published_line(axes: Axes, label: str, line: Mapping[int, float | Sequence[float]], number: int) -> None:
    """Numbers of others, in grey."""
    lengths = sorted(line)
    axes.plot(
        lengths, [float(np.mean(_finite(line[length]))) for length in lengths], color="#999999", linewidth=1.2,
        linestyle=(0, (4, 2)), marker=MARKERS[number % len(MARKERS)], markersize=6, markerfacecolor="white",
        label=label, zorder=2,
    )  # fmt: skip


def _finite(values: float | Sequence[float] | None) -> np.ndarray:
    """The finite ones of one or several values; None is none."""
    array = np.atleast_1d(np.asarray(np.nan if values is None else values, dtype=np.float64))
    return array[np.isfinite(array)]


def _readable(lengths: Sequence[int], log_range: float) -> list[int]:
    """The lengths whose labels do not run into one another on a logarithmic axis, first and last among them."""
    kept = [lengths[-1]]
    for length in reversed(lengths[:-1]):
        if np.log(kept[-1] / length) > 0.038 * log_range:
            kept.append(length)
    return kept[::-1]


def _count(number: int) -> str:
    """A length as short as it can be said: 900, 9600, 1M."""
    return f"{number / 1e6:g}M" if number >= 1_000_000 else f"{number / 1e3:g}k" if number >= 100_000 else str(number)
