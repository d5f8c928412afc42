"""Attention maps of an episode."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from RATE_model.errors import UserError
from RATE_model.memories.rate.layout import Layout
from RATE_model.memories.rate.memory import SegmentMaps
from RATE_model.plots.style import GREY, save, style

REGION_COLOURS = {"cache": "#009E73", "read": "#0072B2", "steps": "#A6A6A6", "write": "#D55E00"}

# The regions that a step can attend to.
_SHARES = {"cache": "cache", "read": "read tokens", "steps": "steps of the segment"}
# Colour of weaker attention.
_WEAKEST = 1e-3
# Colour of cells where a token may not attend.
_HIDDEN = "#ECECEC"
# More panels would be too small to read: with more segments, draw the first, the last and some between.
MAX_SEGMENTS = 6


def plot_attention(
    segments: Sequence[SegmentMaps],
    path: Path,
    *,
    layer: int | Literal["each"] | None = None,
    head: int | None = None,
    row: int = 0,
    title: str | None = None,
) -> Path:
    """Attention maps of an episode, one column of panels per segment; below, the regions that the steps attend to.

    Rows of a map are queries, columns are keys. Coloured bars along the edges name cache, read tokens, steps and write
    tokens; lines separate them. The colour scale is logarithmic, so weak attention is visible; forbidden
    cells are grey. With more than `MAX_SEGMENTS` segments, the first, the last and some between are drawn.

    Args:
        segments: "attention" of `Agent.inspect`.
        path: of the PNG.
        layer: index of a layer, None for the mean over layers, "each" for a row of panels per layer.
        head: index of a head, None for the mean over heads.
        row: row of the batch.
        title: title of the figure.

    Raises:
        UserError: there are no segments, an index is out of range, or the file cannot be written.
    """
    return save(attention_figure(segments, layer=layer, head=head, row=row, title=title), path)


def attention_figure(
    segments: Sequence[SegmentMaps],
    *,
    layer: int | Literal["each"] | None = None,
    head: int | None = None,
    row: int = 0,
    title: str | None = None,
) -> Figure:
    """The figure of `plot_attention`. Gids of panels: "layer L segment S", "share segment S"."""
    if not segments:
        raise UserError("there are no segments to draw attention maps of")
    layers, _, heads, _, _ = segments[0].attention.shape
    for name, value, count in (("layer", layer, layers), ("head", head, heads)):
        if isinstance(value, int) and not 0 <= value < count:
            raise UserError(f"there is no {name} {value}; the model has {count}: choose 0 to {count - 1}")
    # None: the mean over all layers.
    rows: list[int | None] = [*range(layers)] if layer == "each" else [layer]
    shown = _spread(len(segments), MAX_SEGMENTS)
    first_steps = np.cumsum([0] + [segment.layout.steps for segment in segments])
    # A model that can only attend to the segment's steps has nothing to divide.
    below = layer != "each" and any(len(regions(segments[index].layout)) > 1 for index in shown)
    with style():
        heights = [1.0] * len(rows) + [0.36] * below
        figure = Figure(figsize=(1.3 + 3.5 * len(shown), 0.9 + 3.5 * sum(heights)), layout="constrained")
        if title:
            figure.suptitle(title)
        panels = figure.subplots(len(heights), len(shown), squeeze=False, height_ratios=heights)
        for column, index in enumerate(shown):
            layout = segments[index].layout
            for line, chosen in enumerate(rows):
                axes = panels[line, column]
                axes.set_gid(f"layer {chosen} segment {index}")
                picture = _draw_map(axes, _weights(segments[index], chosen, head, row), layout)
                _step_ticks(axes, layout, int(first_steps[index]), named=column == 0)
                if line == 0:
                    axes.set_title(f"segment {index + 1}", pad=20)
                if column == 0 and layer == "each" and chosen is not None:
                    axes.set_ylabel(f"layer {chosen + 1}\nquery at step")
            if below:
                panels[-1, column].set_gid(f"share segment {index}")
                weights = _weights(segments[index], rows[0], head, row)
                _draw_shares(panels[-1, column], weights, layout, int(first_steps[index]), named=column == 0)
        bar = figure.colorbar(picture, ax=panels[: len(rows)], shrink=0.8, pad=0.02, extend="min")
        bar.set_label("attention weight")
        bar.outline.set_visible(False)
        if below:
            figure.legend(handles=_share_handles(panels[-1]), loc="outside lower center", ncols=3)
    return figure


def regions(layout: Layout) -> dict[str, tuple[int, int]]:
    """`{region: (first column, last column + 1)}` of [cache; segment]; regions without tokens are omitted.

    Rows of a map are those of the segment, so subtract `layout.cached` for them.
    """
    ends = np.cumsum([0, layout.cached, layout.tokens, layout.step_tokens * layout.steps, layout.tokens])
    return {
        name: (int(start), int(stop))
        for name, start, stop in zip(REGION_COLOURS, ends, ends[1:], strict=False)
        if stop > start
    }


def attention_by_step(segments: Sequence[SegmentMaps], *, row: int = 0) -> list[dict[str, Any]]:
    """How the attention that decides each step's action is divided, averaged over layers and heads.

    Returns:
        One entry per step of the episode: `shares` of cache, read tokens and steps (those that exist, by name), and
        `steps`, the share of each step of the segment so far.
    """
    entries: list[dict[str, Any]] = []
    for segment in segments:
        layout, weights = segment.layout, np.nan_to_num(_weights(segment, None, None, row))
        rows, places = weights[layout.observations], regions(layout)
        by_step = rows[:, slice(*places["steps"])].reshape(len(rows), layout.steps, layout.step_tokens).sum(-1)
        shares = {name: rows[:, slice(*places[name])].sum(1) for name in _SHARES if name in places}
        for step in range(layout.steps):
            share = {_SHARES[name]: round(float(values[step]), 3) for name, values in shares.items()}
            entries.append({"shares": share, "steps": by_step[step, : step + 1].round(3).tolist()})
    return entries


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` of `count` indices, including the first and last."""
    return sorted(set(np.linspace(0, count - 1, min(count, limit)).round().astype(int).tolist()))


def _weights(segment: SegmentMaps, layer: int | None, head: int | None, row: int) -> np.ndarray:
    """One map `(q, m + q)`; NaN where a token may not attend."""
    maps = segment.attention[:, row].float().cpu()
    maps = maps.mean(0) if layer is None else maps[layer]
    weights = (maps.mean(0) if head is None else maps[head]).numpy().copy()
    allowed = np.zeros(weights.shape, dtype=bool)
    for group in segment.layout.groups(torch.device("cpu"), last=False):
        allowed[group.rows, slice(*group.columns)] = True
        if group.bias is not None:
            last = slice(group.columns[1] - group.bias.shape[1], group.columns[1])
            allowed[group.rows, last] = (group.bias == 0).numpy()
    return np.where(allowed, weights, np.nan)


def _draw_map(axes: Axes, weights: np.ndarray, layout: Layout) -> AxesImage:
    """A map with its regions; cell (i, j) is the unit square around (j, i)."""
    colours = mpl.colormaps["magma_r"].with_extremes(bad=_HIDDEN)
    picture = axes.imshow(
        np.maximum(weights, _WEAKEST), norm=LogNorm(_WEAKEST, 1.0), cmap=colours, interpolation="nearest", aspect="auto"
    )
    axes.spines[:].set_visible(False)
    for name, (start, stop) in regions(layout).items():
        colour = REGION_COLOURS[name]
        if start:
            axes.axvline(start - 0.5, color=GREY, linewidth=0.7)
        axes.add_patch(Rectangle((start - 0.5, 1.012), stop - start, 0.022, transform=axes.get_xaxis_transform(),
                                 color=colour, linewidth=0, clip_on=False, gid=f"columns {name}"))  # fmt: skip
        axes.annotate(name, ((start + stop - 1) / 2, 1.034), xycoords=axes.get_xaxis_transform(), xytext=(0, 2),
                      textcoords="offset points", ha="center", color=colour if name != "steps" else GREY,
                      fontsize=8, annotation_clip=False)  # fmt: skip
        if name == "cache":
            continue
        first, last = start - layout.cached, stop - layout.cached
        if first:
            axes.axhline(first - 0.5, color=GREY, linewidth=0.7)
        axes.add_patch(Rectangle((-0.034, first - 0.5), 0.022, last - first, transform=axes.get_yaxis_transform(),
                                 color=colour, linewidth=0, clip_on=False, gid=f"rows {name}"))  # fmt: skip
    return picture


def _step_ticks(axes: Axes, layout: Layout, first_step: int, *, named: bool) -> None:
    """Number the steps at their observation tokens; steps of the episode count from 1."""
    places = np.arange(layout.length)[layout.observations]
    numbers = np.arange(first_step + 1, first_step + 1 + layout.steps)
    every = max(1, 10 if layout.steps >= 20 else layout.steps // 4)
    ticked = np.flatnonzero(numbers % every == 0)
    axes.set_xticks(places[ticked] + layout.cached, numbers[ticked])
    axes.set_yticks(places[ticked], numbers[ticked])
    axes.tick_params(axis="y", pad=9)
    axes.set_xlabel("key at step")
    if named:
        axes.set_ylabel("query at step")


def _draw_shares(axes: Axes, weights: np.ndarray, layout: Layout, first_step: int, *, named: bool) -> None:
    """Shares of attention per region of each step's observation token, which decides the action."""
    numbers = np.arange(first_step + 1, first_step + 1 + layout.steps)
    rows = np.nan_to_num(weights[layout.observations])
    shares = {name: rows[:, start:stop].sum(1) for name, (start, stop) in regions(layout).items() if name in _SHARES}
    axes.stackplot(
        np.append(numbers - 0.5, numbers[-1] + 0.5),
        [np.append(share, share[-1]) for share in shares.values()],
        colors=[REGION_COLOURS[name] for name in shares],
        labels=[_SHARES[name] for name in shares],
        step="post",
        alpha=0.85,
        linewidth=0,
    )
    axes.set(xlim=(numbers[0] - 0.5, numbers[-1] + 0.5), ylim=(0, 1), xlabel="step")
    axes.set_yticks([0, 0.5, 1])
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if named:
        axes.set_ylabel("share of attention\nof the observation")


def _share_handles(panels: np.ndarray) -> list[Artist]:
    """Legend entries of all panels, each label once, in the order of the regions."""
    handles = {handle.get_label(): handle for axes in panels for handle in axes.get_legend_handles_labels()[0]}
    return [handles[label] for label in _SHARES.values() if label in handles]
