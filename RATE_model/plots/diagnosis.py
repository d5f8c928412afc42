"""The results of a diagnosis: probes as bars, copying as bars, imitation by step as lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from RATE_model.plots.style import COLOURS, GREY, save, style


def plot_diagnosis(found: Mapping[str, Any], path: Path) -> Path:
    """One figure of everything that `python3 -m RATE_model.diagnose` writes.

    Args:
        found: content of diagnosis.json.
        path: of the PNG.

    Raises:
        UserError: the file cannot be written.
    """
    return save(diagnosis_figure(found), path)


def diagnosis_figure(found: Mapping[str, Any]) -> Figure:
    """The figure of `plot_diagnosis`."""
    parts = [part for part in ("probes", "by_step", "by_time_since") if found.get(part)]
    widths = [max(4.5, 1.5 + 0.9 * len(found["probes"])) if part == "probes" else 4.5 for part in parts]
    with style():
        figure = Figure(figsize=(max(5.0, sum(widths)), 4.4), layout="constrained")
        panels = figure.subplots(1, len(parts), width_ratios=widths, squeeze=False)[0]
        for part, axes in zip(parts, panels, strict=True):
            if part == "probes":
                _draw_probes(axes, found["probes"])
            else:
                _draw_bins(axes, found[part], part)
    return figure


def _draw_probes(axes: Axes, probes: Mapping[str, Any]) -> None:
    """Bars of every array by source, with intervals, and a line for a probe that sees nothing."""
    sources = list(dict.fromkeys(source for each in probes.values() for source in each["scores"]))
    width = 0.8 / max(1, len(sources))
    for number, source in enumerate(sources):
        places = np.array([place for place, each in enumerate(probes.values()) if source in each["scores"]])
        scores = [each["scores"][source] for each in probes.values() if source in each["scores"]]
        value, low, high = (
            np.array([score["value"] if score[key] is None else score[key] for score in scores])
            for key in ("value", "low", "high")
        )
        shown = np.clip(value, 0, 1)
        errors = np.abs(np.stack([shown - np.clip(low, 0, 1), np.clip(high, 0, 1) - shown]))
        middle = places + (number - (len(sources) - 1) / 2) * width
        axes.bar(middle, shown, 0.92 * width, yerr=errors, color=COLOURS[number], ecolor=GREY, label=source)
    for place, each in enumerate(probes.values()):
        axes.hlines(each["nothing_seen"], place - 0.45, place + 0.45, color="black", linestyle=":")
    labels = [f"{name}\n({each['measure']})" for name, each in probes.items()]
    axes.set_xticks(range(len(probes)), labels, rotation=30, ha="right")
    axes.set(ylim=(0, 1.02), title="read by a linear probe\n(dotted: nothing seen)")
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.22), ncol=2)


def _draw_bins(axes: Axes, sides: Mapping[str, Any], part: str) -> None:
    """The loss on both sides, in bins of doubling width."""
    bins = sorted({(each["from"], each["to"]) for side in ("training", "held_out") for each in sides[side]})
    for number, side in enumerate(("training", "held_out")):
        places = [bins.index((each["from"], each["to"])) for each in sides[side]]
        losses = [each["loss"] for each in sides[side]]
        axes.plot(places, losses, "o-", color=COLOURS[number], label=side.replace("_", "-"))
    labels = [f"{first}" if first == last else f"{first}-{last}" for first, last in bins]
    axes.set_xticks(range(len(bins)), labels, rotation=45, ha="right")
    event = f"steps since infos/{sides['info']}" if part == "by_time_since" else "step of the episode"
    axes.set(xlabel=event, ylabel="loss of actions", title="imitation")
    axes.grid(axis="y")
    axes.legend()
