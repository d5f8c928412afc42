"""How memory tokens move along an episode."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from RATE_model.errors import UserError
from RATE_model.memories.contract import State
from RATE_model.plots.style import COLOURS, GREY, MARKERS, save, style

# More cells than this are too small for numbers.
_NUMBERED_CELLS = 70
# The two episodes.
_FIRST, _OTHER = COLOURS[0], COLOURS[1]


def plot_memory(
    memories: Sequence[State],
    path: Path,
    *,
    row: int = 0,
    other: Sequence[State] | None = None,
    other_row: int | None = None,
    labels: tuple[str, str] = ("this episode", "the other episode"),
    title: str | None = None,
) -> Path:
    """How memory tokens move along an episode, and how an episode with a different past changes them.

    Panels: cosine similarity of every token to itself after segment 1; its norm; and, with `other`, the distance
    between the two episodes' tokens, which is what the memory knows of their difference, and the paths of both in the
    plane of their first two principal components.

    Args:
        memories: "states" of `Agent.inspect`: before segment 1 and after every segment.
        path: of the PNG.
        row: row of the batch.
        other: memories of another episode; segments beyond the shorter episode are not drawn.
        other_row: its row of the batch; None: `row`.
        labels: names of the two.
        title: title of the figure.

    Raises:
        UserError: there are no memory tokens, no segment, or the file cannot be written.
    """
    tokens = memory_tokens(memories, row)
    others = None if other is None else memory_tokens(other, row if other_row is None else other_row)
    return save(memory_figure(tokens, others, labels=labels, title=title), path)


def memory_tokens(memories: Sequence[State], row: int = 0) -> np.ndarray:
    """The tokens of one row, `(segments + 1, n, d_model)` float32: before segment 1 and after every segment.

    Raises:
        UserError: there are none, or there is no segment.
    """
    if len(memories) < 2:
        raise UserError("there is no memory to draw; record an episode of at least one segment")
    slots = [memory.slots for memory in memories]
    if any(slot is None for slot in slots):
        raise UserError("this model has no memory tokens to draw (--nmt 0, or a mode without them)")
    return np.stack([slot[row].detach().float().cpu().numpy() for slot in slots if slot is not None])


def similarity_to_first(tokens: np.ndarray) -> np.ndarray:
    """Cosine similarity `(n, segments)` of every token after every segment to itself after segment 1."""
    norms = np.linalg.norm(tokens[1:], axis=-1)
    products = (tokens[1:] * tokens[1]).sum(-1)
    return (products / np.maximum(norms * norms[0], 1e-12)).T


def memory_figure(
    tokens: np.ndarray,
    other: np.ndarray | None = None,
    *,
    labels: tuple[str, str] = ("this episode", "the other episode"),
    title: str | None = None,
) -> Figure:
    """The figure of `plot_memory`, from the tokens of `memory_tokens`. Panels have gids: "similarity", "norm",
    "distance", "paths"."""
    if other is not None:
        count = min(len(tokens), len(other))
        tokens, other = tokens[:count], other[:count]
    with style():
        names: list[Any] = [["similarity", "norm"]] + [["distance", "paths"]] * (other is not None)
        spaced = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1)
        figure = Figure(figsize=(9.6, 3.6 * len(names)), layout=spaced)
        panels = figure.subplot_mosaic(names)
        for name, axes in panels.items():
            axes.set_gid(name)
        if title:
            figure.suptitle(title)
        _draw_similarity(figure, panels["similarity"], similarity_to_first(tokens))
        _draw_norms(panels["norm"], tokens)
        if other is not None:
            _draw_distance(panels["distance"], tokens, other)
            _draw_paths(panels["paths"], tokens, other, labels)
    return figure


def _draw_similarity(figure: Figure, axes: Axes, similarity: np.ndarray) -> None:
    """Heat map, tokens from top to bottom, segments from left to right."""
    tokens, segments = similarity.shape
    picture = axes.imshow(
        similarity, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto", extent=(0.5, segments + 0.5, tokens + 0.5, 0.5),
        interpolation="nearest",
    )  # fmt: skip
    if similarity.size <= _NUMBERED_CELLS:
        for (token, segment), value in np.ndenumerate(similarity):
            axes.text(segment + 1, token + 1, f"{value:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if abs(value) > 0.6 else "black")  # fmt: skip
    axes.set(title="cosine similarity to the token after segment 1", xlabel="after segment", ylabel="memory token")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(10, integer=True))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(picture, ax=axes, pad=0.02).outline.set_visible(False)


def _token_style(token: int) -> dict[str, Any]:
    """Colour and marker of a token; they repeat if there are many."""
    return {"color": COLOURS[token % len(COLOURS)], "marker": MARKERS[token % len(MARKERS)], "markersize": 4}


def _draw_norms(axes: Axes, tokens: np.ndarray) -> None:
    """One line per token; segment 0 is the learned initial memory."""
    norms = np.linalg.norm(tokens, axis=-1)
    for token, line in enumerate(norms.T):
        label = f"token {token + 1}" if token < len(COLOURS) else None
        axes.plot(np.arange(len(line)), line, linewidth=1.3, label=label, **_token_style(token))
    axes.set(title="norm of every token", xlabel="after segment (0: the learned start)", ylim=(0, norms.max() * 1.08))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(axis="y")
    axes.legend(loc="lower right", ncols=2)


def _draw_distance(axes: Axes, tokens: np.ndarray, other: np.ndarray) -> None:
    """One line per token, and their mean."""
    distances = np.linalg.norm(tokens - other, axis=-1)
    segments = np.arange(len(distances))
    for token, line in enumerate(distances.T):
        axes.plot(segments, line, linewidth=1.1, alpha=0.75, **_token_style(token))
    axes.plot(segments, distances.mean(1), color="black", linewidth=2.4, label="mean over tokens")
    axes.set(title="distance between the two episodes' tokens", xlabel="after segment")
    axes.set_ylim(0, max(distances.max() * 1.08, 1e-6))
    axes.xaxis.set_major_locator(MaxNLocator(10, integer=True))
    axes.grid(axis="y")
    axes.legend(loc="best")


def principal_plane(*tokens: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    """Coordinates `(..., 2)` of arrays `(..., d)` in the plane of their common first two principal components, and the
    shares of the variance that these explain, `(2,)`."""
    points = np.concatenate([array.reshape(-1, array.shape[-1]) for array in tokens]).astype(np.float64)
    centre = points.mean(0)
    _, values, directions = np.linalg.svd(points - centre, full_matrices=False)
    plane = np.zeros((2, points.shape[1]))
    plane[: len(directions[:2])] = directions[:2]
    shares = np.zeros(2)
    shares[: len(values[:2])] = (values**2 / max((values**2).sum(), 1e-12))[:2]
    return [(array - centre) @ plane.T for array in tokens], shares


def _draw_paths(axes: Axes, tokens: np.ndarray, other: np.ndarray, labels: tuple[str, str]) -> None:
    """Each token's path in both episodes. Both start at the same point."""
    paths, shares = principal_plane(tokens, other)
    for coordinates, colour in zip(paths, (_FIRST, _OTHER), strict=True):
        for path in coordinates.transpose(1, 2, 0):
            axes.plot(*path, color=colour, linewidth=0.9, alpha=0.55, zorder=2)
            sizes = np.linspace(8, 34, path.shape[1] - 1)
            axes.scatter(*path[:, 1:], s=sizes, color=colour, linewidth=0, alpha=0.8, zorder=3)
    starts = paths[0][0]
    axes.scatter(*starts.T, s=42, facecolor="white", edgecolor="black", linewidth=1.2, zorder=4)
    for token, start in enumerate(starts):
        axes.annotate(str(token + 1), start, xytext=(5, 4), textcoords="offset points", fontsize=9, zorder=5)
    axes.set(
        title="paths of the tokens (larger: later)",
        xlabel=f"first principal component ({shares[0]:.0%} of variance)",
        ylabel=f"second ({shares[1]:.0%})",
    )
    axes.grid()
    axes.margins(0.1)
    handles = [Line2D([], [], color=colour, marker="o", linewidth=0.9) for colour in (_FIRST, _OTHER)]
    handles.append(Line2D([], [], color="none", marker="o", markerfacecolor="white", markeredgecolor="black"))
    axes.legend(handles, [*labels, "learned start"], loc="best", frameon=True, framealpha=0.8, edgecolor="none")
    axes.tick_params(colors=GREY)
