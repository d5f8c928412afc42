"""Learning curves of several seeds: the mean, and an interval that predicts other seeds."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from RATE_model.errors import UserError
from RATE_model.plots.curves import read_metrics
from RATE_model.plots.style import COLOURS, GREY, logarithmic_if_wide, save, style
from RATE_model.protocol.statistics import bootstrap, mean

# {group: {seed or run: lines of metrics}}
Groups = Mapping[str, Mapping[str, Sequence[Mapping[str, float | None]]]]
MOST_POINTS = 100  # per curve


def find_runs(places: Sequence[Path]) -> dict[str, list[Path]]:
    """Run directories grouped by name without the seed (`NAME_RUN_1` and so on); for folders, all runs inside.

    Runs of one name in different folders form different groups, labelled with the folder.

    Raises:
        UserError: a place contains no run.
    """
    found: dict[tuple[str, str], list[Path]] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"{place} is not a directory; give run directories, or folders of them")
        runs = (
            [place] if (place / "metrics.jsonl").is_file() else sorted(f.parent for f in place.rglob("metrics.jsonl"))
        )
        if not runs:
            raise UserError(f"{place} contains no run: no metrics.jsonl anywhere in it")
        for run in runs:
            name = re.sub(r"_?RUN_\d+$", "", run.absolute().name) or run.absolute().parent.name
            members = found.setdefault((str(run.absolute().parent), name), [])
            if run.absolute() not in members:
                members.append(run.absolute())
    names = [name for _, name in found]
    return {
        name if names.count(name) == 1 else f"{Path(folder).name}/{name}": runs
        for (folder, name), runs in found.items()
    }


def plot_seeds(groups: Mapping[str, Sequence[Path]], path: Path, metrics: Sequence[str]) -> Path:
    """Metrics against optimizer step, a panel each: per group the mean over its runs, and a 95 % bootstrap interval.

    Args:
        groups: `{label: run directories}`.
        path: of the PNG.
        metrics: names in metrics.jsonl.

    Raises:
        UserError: a file is missing or damaged, no run has a metric, or the PNG cannot be written.
    """
    lines = {label: {str(run): read_metrics(run / "metrics.jsonl") for run in runs} for label, runs in groups.items()}
    return save(seeds_figure(lines, metrics), path)


def seeds_figure(groups: Groups, metrics: Sequence[str]) -> Figure:
    """The figure of `plot_seeds`, from the lines of `read_metrics`."""
    present = sorted(
        {key for runs in groups.values() for rows in runs.values() for row in rows for key in row} - {"step"}
    )
    if missing := [name for name in metrics if name not in present]:
        raise UserError(f"--metric {missing[0]}: no run has it; available: {', '.join(present) or 'none'}")
    with style():
        figure = Figure(figsize=(8.2, 0.8 + 2.6 * len(metrics)), layout="constrained")
        panels = figure.subplots(len(metrics), 1, sharex=True, squeeze=False)[:, 0]
        several = False  # whether any curve is a mean
        for axes, name in zip(panels, metrics, strict=True):
            for number, (label, runs) in enumerate(groups.items()):
                steps, values = curves_of(list(runs.values()), name)
                if not len(steps):
                    continue
                colour, middle = COLOURS[number % len(COLOURS)], values.mean(0)
                marker = "o" if len(steps) <= 20 else None
                shown = f"{label} ({len(values)} seed{'s' if len(values) > 1 else ''})"
                axes.plot(steps, middle, color=colour, marker=marker, markersize=4, label=shown)
                if len(values) > 1:
                    several = True
                    low, high = interval_of(values)
                    axes.fill_between(steps, low, high, color=colour, alpha=0.2, linewidth=0)
            axes.set_ylabel(name.replace("_", " "))
            axes.grid(axis="y")
            axes.margins(x=0.02)
            if "loss" in name:
                logarithmic_if_wide(axes)
        panels[-1].set_xlabel("optimizer step")
        if several:
            panels[0].set_title("mean over seeds, 95 % bootstrap interval", color=GREY, fontsize=9)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def curves_of(runs: Sequence[Sequence[Mapping[str, float | None]]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """A metric of several runs at common steps, with interpolation: steps (P,) and values (runs, P).

    The steps are those that all runs span; runs without the metric are skipped.
    """
    series = []
    for rows in runs:
        pairs = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
        finite = np.array([pair for pair in pairs if np.isfinite(pair[1])], dtype=np.float64).reshape(-1, 2)
        series += [finite[np.argsort(finite[:, 0], kind="stable")]] if len(finite) else []
    if not series:
        return np.empty(0), np.empty((0, 0))
    first, last = max(part[0, 0] for part in series), min(part[-1, 0] for part in series)
    steps = np.unique(np.concatenate([part[:, 0] for part in series]))
    steps = steps[(steps >= first) & (steps <= last)]
    if len(steps) > MOST_POINTS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, MOST_POINTS).astype(int))]
    return steps, np.array([np.interp(steps, part[:, 0], part[:, 1]) for part in series])


def interval_of(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % bootstrap interval of the mean over runs, of values (runs, P): two of (P,)."""
    intervals = [bootstrap([column], mean) for column in values.T]
    return np.array([one.low for one in intervals]), np.array([one.high for one in intervals])
