"""Success against episode length."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from RATE_model.acting.rollout import mean_and_error
from RATE_model.errors import UserError
from RATE_model.plots.style import COLOURS, GREY, MARKERS, save, style

# {label: {episode length: value, or one value per seed}}
Results = Mapping[str, Mapping[int, float | Sequence[float]]]

EPISODE_LENGTH = "episode length (steps)"
# Line styles of variants, as lengths on and off; and how far apart coinciding lines are drawn, in points.
DASHES = ((4, 1.5), (1.2, 1.2), (6, 1.5, 1.2, 1.5))
POINTS_APART = 2.4


def rates_by_case(result: Mapping[str, float], name: str) -> dict[int, float]:
    """The values of a metric in a run's eval/final.json by case, such as lengths; `name` has {} for the case."""
    pattern = re.compile(re.escape(name).replace(r"\{\}", r"(\d+)"))
    return {int(match[1]): rate for key, rate in result.items() if (match := pattern.fullmatch(key))}


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
            skipped.
        path: of the PNG.
        trained: longest training episode, in steps; marked by a line.
        chance: success without memory, a dotted line. None: no line.
        title: title of the figure.
        published: published numbers to draw as well, in the form of `results`, hollow and dashed.
        xlabel: label of the x axis, if the lengths are not steps of an episode.

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
    return panels_figure({title or "": results}, trained=trained, chance=chance, published=published, xlabel=xlabel)


def plot_success_panels(
    panels: Mapping[str, Results], path: Path, *, trained: int | None = None, xlabel: str = EPISODE_LENGTH
) -> Path:
    """Several figures of `plot_success_by_length` side by side, `{title: results}`, with one legend.

    A label looks the same in every panel. Raises as `plot_success_by_length` does.
    """
    return save(panels_figure(panels, trained=trained, xlabel=xlabel), path)


def panels_figure(
    panels: Mapping[str, Results],
    *,
    trained: int | None = None,
    chance: float | None = 0.5,
    published: Results | None = None,
    xlabel: str = EPISODE_LENGTH,
) -> Figure:
    """The figure of `plot_success_panels`."""
    everything = [*panels.values(), published or {}]
    lengths = sorted({length for results in everything for line in results.values() for length in line})
    if not any(line for results in panels.values() for line in results.values()):
        raise UserError("there are no success rates to draw; evaluate at least one model at one length")
    looks = _looks([label for results in panels.values() for label in results])
    with style():
        figure = Figure(figsize=(8.6 if len(panels) == 1 else 5.6 * len(panels), 4.8), layout="constrained")
        columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, results) in zip(columns, panels.items(), strict=True):
            axes.set(xscale="log", ylim=(-0.03, 1.06), xlabel=xlabel, title=title or None)
            axes.grid(axis="y")
            axes.yaxis.set_major_locator(FixedLocator([0, 0.25, 0.5, 0.75, 1]))
            low, high = lengths[0] / 1.18, lengths[-1] * 1.18
            axes.set_xlim(low, high)
            ticks = _readable(lengths, np.log(high / low) * len(panels) ** 0.5)
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.set_xticklabels([_count(tick) for tick in ticks], fontsize=8)
            for number, (label, line) in enumerate(results.items()):
                _success_line(axes, label, line, looks[label], number, len(results))
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
        columns[0].set_ylabel("success rate")
        if chance is not None:
            columns[-1].annotate("chance", (high, chance), xytext=(4, 0), textcoords="offset points", va="center",
                                 color=GREY, fontsize=9, annotation_clip=False)  # fmt: skip
        handles = {handle.get_label(): handle for axes in columns for handle in axes.get_legend_handles_labels()[0]}
        figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=3 if len(panels) == 1 else 4)
    return figure


@dataclass(frozen=True)
class _Look:
    """Style of a label's line and markers."""

    colour: str
    marker: str
    dashes: tuple[float, ...] = ()

    @property
    def line(self) -> dict[str, Any]:
        """Called by matplotlib; the markers of a dashed line are hollow."""
        style = (0, self.dashes) if self.dashes else "-"
        face = "white" if self.dashes else self.colour
        return {"color": self.colour, "marker": self.marker, "linestyle": style, "markerfacecolor": face}


def _looks(labels: Sequence[str]) -> dict[str, _Look]:
    """The style of each label. "A, changed" is a variant of A if A is drawn too: same colour, dashed."""
    looks: dict[str, _Look] = {}
    bases, variants = [], []
    for label in dict.fromkeys(labels):
        (variants if label.partition(", ")[0] in labels and ", " in label else bases).append(label)
    for number, label in enumerate(bases):
        looks[label] = _Look(COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)])
    seen = dict.fromkeys(bases, 0)
    for label in variants:
        base = label.partition(", ")[0]
        looks[label] = replace(looks[base], dashes=DASHES[seen[base] % len(DASHES)])
        seen[base] += 1
    return looks


def _success_line(
    axes: Axes, label: str, line: Mapping[int, float | Sequence[float]], look: _Look, number: int, of: int
) -> None:
    """One label: mean line, band of the standard error, points of the seeds side by side.

    Coinciding lines would hide each other, so each is drawn a point or two lower than the one before.
    """
    seeds = {length: _finite(line[length]) for length in sorted(line)}
    seeds = {length: values for length, values in seeds.items() if values.size}
    if not seeds:
        return
    lengths = np.array(list(seeds))
    means, errors = np.array([mean_and_error(values) for values in seeds.values()]).T
    order = 3 + 2 * (of - number)  # the first label on top
    lower = ((of - 1) / 2 - number) * min(POINTS_APART, 14 / of)
    place = axes.transData + ScaledTranslation(0, lower / 72, axes.figure.dpi_scale_trans)
    axes.plot(lengths, means, **look.line, markersize=5, label=label, zorder=order + 1, transform=place)
    if np.isfinite(errors).any():
        errors = np.nan_to_num(errors)
        axes.fill_between(lengths, means - errors, means + errors, color=look.colour, alpha=0.15, linewidth=0,
                          zorder=order, transform=place)  # fmt: skip
    # Points of several labels at one length would hide each other.
    shift = 1.035 ** (number - (of - 1) / 2)
    for length, values in seeds.items():
        if values.size > 1:
            axes.scatter(np.full(values.size, length * shift), values, s=11, color=look.colour, alpha=0.45,
                         linewidth=0, zorder=order, transform=place)  # fmt: skip


def _published_line(axes: Axes, label: str, line: Mapping[int, float | Sequence[float]], number: int) -> None:
    """Published numbers, in grey."""
    lengths = sorted(line)
    axes.plot(
        lengths, [float(np.mean(_finite(line[length]))) for length in lengths], color="#999999", linewidth=1.2,
        linestyle=(0, (4, 2)), marker=MARKERS[number % len(MARKERS)], markersize=6, markerfacecolor="white",
        label=label, zorder=2,
    )  # fmt: skip


def _finite(values: float | Sequence[float] | None) -> np.ndarray:
    """The finite values among one or several; None becomes an empty list."""
    array = np.atleast_1d(np.asarray(np.nan if values is None else values, dtype=np.float64))
    return array[np.isfinite(array)]


def _readable(lengths: Sequence[int], log_range: float) -> list[int]:
    """The lengths whose labels do not overlap on a logarithmic axis, including first and last."""
    kept = [lengths[-1]]
    for length in reversed(lengths[:-1]):
        if np.log(kept[-1] / length) > 0.038 * log_range:
            kept.append(length)
    return kept[::-1]


def _count(number: int) -> str:
    """A length in its shortest form: 900, 9600, 1M."""
    return f"{number / 1e6:g}M" if number >= 1_000_000 else f"{number / 1e3:g}k" if number >= 100_000 else str(number)
