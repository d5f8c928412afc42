"""Make results/leaderboard.*: which memory is best, over T-Maze's five tasks and Minigrid-Memory.

    python3 tools/reproduce_leaderboard.py
    python3 tools/reproduce_leaderboard.py --train false

First tools/reproduce_memories.py trains all missing runs; it can be stopped and repeated. Then, from
results/memories.json alone: interquartile mean with a 95 % stratified bootstrap interval over seeds, mean ranks, a
performance profile, costs, and two pictures: capacity (bits recalled against size of the state) and forgetting (success
against episode length, all memories in one figure).

A score is the success in the hardest case of a task that all memories were evaluated in, from 0 (chance) to 1.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
from matplotlib.figure import Figure

from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.pages.page_file import read_page, write_results
from RATE_model.pages.tables import cell, origin, table
from RATE_model.plots.heat_map import plot_heat_map
from RATE_model.plots.style import COLOURS, save, style
from RATE_model.protocol.statistics import Interval, bootstrap, interquartile_mean, mean_ranks, performance_profile
from tools import reproduce_memories as memories

PAGE = "leaderboard"
CHANCE = 0.5  # in all tasks
# The case that counts for each section: beyond the training lengths if memories differ there, else a trained one.
JUDGED: dict[memories.SectionName, int] = {
    "tmaze": 9600,
    "tmaze_multi_cue": 40,
    "tmaze_endless": 8001,
    "tmaze_distracted": 900,
    "tmaze_recall": 900,
    "minigrid": 91,
}
CAPACITY, CAPACITY_BITS = "tmaze_multi_cue", 8
THRESHOLDS = np.array([*np.arange(10) / 10, 0.99])


@dataclass(frozen=True)
class Options(memories.Options):
    """Which memories and environments to run, and where to put runs and results."""

    environments: tuple[memories.SectionName, ...] = tuple(JUDGED)
    # Train missing runs; false: only summarise memories.json
    train: Boolean = True

    def validate(self) -> None:
        """Raise a UserError for tasks that are not judged, and for flags of training without training."""
        super().validate()
        if not self.environments:
            raise UserError(f"--environments is empty; give some of {', '.join(JUDGED)}")
        if unjudged := [name for name in self.environments if name not in JUDGED]:
            raise UserError(f"--environments {unjudged[0]}: is not judged; must be one of {', '.join(JUDGED)}")
        if not self.train and (self.join or self.models or self.again):
            raise UserError("--join, --models and --again need --train true: without training, all figures are used")


@dataclass(frozen=True)
class Scores:
    """What the memories of a leaderboard reached.

    Attributes:
        labels: memories with figures in all of `sections`.
        sections: tasks.
        values: `(memories, sections, seeds)`, from 0 to 1.
        without: tasks that are left out because at most half of the memories have figures there.
        partial: memories that are left out because they lack figures in a task.
        fewest: memories that have fewer seeds than others, whose further seeds do not count.
    """

    labels: list[str]
    sections: list[memories.SectionName]
    values: np.ndarray
    without: list[memories.SectionName]
    partial: list[str]
    fewest: list[str]


def scores_of(document: Mapping[str, Any], sections: Sequence[memories.SectionName]) -> Scores:
    """The scores in a document like results/memories.json.

    Raises:
        UserError: there is nothing to compare, a memory has fewer than two seeds, or a figure is missing or impossible.
    """
    entries = {section: memories.of_section(dict(document), memories.SECTIONS[section]) for section in sections}
    known = [label for label in memories.LABELS if any(label in found for found in entries.values())]
    there = [section for section in sections if 2 * len(entries[section]) > len(known)]
    labels = [label for label in known if there and all(label in entries[section] for section in there)]
    if not labels:
        raise UserError("no memory has figures in every task; train some first")
    for section, label in itertools.product(there, labels):
        place = f"{memories.PAGE}.json: '{memories.SECTIONS[section].title}: {label}'"
        memories.check_entry(memories.SECTIONS[section], entries[section][label], place)
    rates = [[entries[section][label]["success_rate"][str(JUDGED[section])] for section in there] for label in labels]
    counts = [min(map(len, row)) for row in rates]
    seeds = min(counts)
    if seeds < 2:
        name = labels[counts.index(seeds)]
        raise UserError(f"{name} has one seed in a task; a leaderboard needs at least two: train with more --seeds")
    success = np.array([[values[:seeds] for values in row] for row in rates])
    values = np.clip((success - CHANCE) / (1 - CHANCE), 0, 1)
    without = [section for section in sections if section not in there]
    fewest = [label for label, count in zip(labels, counts, strict=True) if count < max(counts)]
    return Scores(labels, there, values, without, [label for label in known if label not in labels], fewest)


def bits_recalled(rate: float, bits: int) -> float:
    """Information in answers about this many fair bits: bits times (1 - binary entropy of the rate)."""
    rate = min(max(rate, 0.5), 1 - 1e-12)
    return bits * (1 + rate * np.log2(rate) + (1 - rate) * np.log2(1 - rate))


def ranking(scores: np.ndarray) -> tuple[list[Interval], Interval]:
    """Interquartile mean of each memory, from scores (memories, sections, seeds), and the mean ranks.

    The intervals of few seeds are widened, so they are cut where scores end.
    """
    means = [bootstrap(list(tasks), interquartile_mean) for tasks in scores]
    cut = [replace(mean, low=np.clip(mean.low, 0, 1), high=np.clip(mean.high, 0, 1)) for mean in means]
    return cut, mean_ranks(scores)


def plot_profiles(labels: Sequence[str], scores: np.ndarray, path: Path) -> Path:
    """The performance profile: share of tasks and seeds above each score, from scores (memories, sections, seeds)."""
    profile = performance_profile(THRESHOLDS)
    shares = {label: profile(tasks.reshape(-1)).tolist() for label, tasks in zip(labels, scores, strict=True)}
    names = [f"{threshold:.2g}" for threshold in THRESHOLDS]
    return plot_heat_map(
        shares, names, path, rows="", columns="score", title="Share of tasks and seeds with a higher score"
    )


def plot_forgetting(passive: Mapping[str, Any], path: Path) -> Path:
    """Mean success of all memories by episode length; the memory that is right for longest comes first."""
    section = memories.SECTIONS["tmaze"]
    rates = {
        label: [float(np.mean(entry["success_rate"][str(n)])) for n in section.cases]
        for label, entry in passive.items()
    }
    order = sorted(rates, key=lambda label: sum(rates[label]), reverse=True)
    names = [f"{n}" for n in section.cases]
    title = f"T-Maze: success by episode length; trained on at most {section.trained} steps"
    return plot_heat_map(
        {n: rates[n] for n in order}, names, path, rows="", columns="episode length, steps", title=title
    )


def left_out(scores: Scores) -> str:
    """Which tasks and memories a leaderboard lacks, as a sentence; empty if none."""
    lacks = {
        "tasks that few memories have figures of": [memories.SECTIONS[name].title for name in scores.without],
        "memories without figures in one of the tasks": scores.partial,
        "seeds that not all memories have": [f"{label} has fewest" for label in scores.fewest[:1]],
    }
    parts = [f"{what} ({', '.join(names)})" for what, names in lacks.items() if names]
    return f" Left out: {'; '.join(parts)}." if parts else ""


def plot_capacity(points: Mapping[str, tuple[float, Sequence[float]]], path: Path) -> Path:
    """Bits recalled by each seed, the memory with the smallest state first; `{label: (numbers, bits of each seed)}`."""
    order = sorted(points, key=lambda label: points[label][0])
    with style():
        figure = Figure(figsize=(6.4, 1.2 + 0.22 * len(order)), layout="constrained")
        axes = figure.subplots()
        for row, label in enumerate(order):
            bits = points[label][1]
            axes.plot(bits, [row] * len(bits), "o", color=COLOURS[0], alpha=0.4, markersize=4)
            axes.plot([float(np.mean(bits))], [row], "D", color=COLOURS[0], markersize=6)
        axes.set_yticks(range(len(order)), [f"{label}, {points[label][0]:,.0f}" for label in order])
        axes.set(
            xlabel=f"bits recalled, of {CAPACITY_BITS} (diamond: mean over seeds)",
            ylabel="memory, numbers in its state",
            xlim=(-0.2, CAPACITY_BITS + 0.2),
            ylim=(-0.6, len(order) - 0.4),
        )
        axes.grid()
    return save(figure, path)


def write(document: Mapping[str, Any], options: Options) -> None:
    """results/leaderboard.json, its pictures, and the generated part of .md.

    Raises:
        UserError: there is nothing to compare, or a figure is missing or impossible.
    """
    of_all = scores_of(document, list(dict.fromkeys(options.environments)))
    labels, sections, scores = of_all.labels, of_all.sections, of_all.values
    means, ranks = ranking(scores)
    order = sorted(range(len(labels)), key=lambda number: (-round(float(means[number].value), 6), ranks.value[number]))
    titles = [
        f"{memories.SECTIONS[section].title}, {memories.SECTIONS[section].called} {JUDGED[section]}"
        for section in sections
    ]
    folder = options.results_dir
    rows, costs, found = [], [], {}
    for number in order:
        label, interval = labels[number], means[number]
        rows.append([
            label,
            f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})",
            f"{ranks.value[number]:.1f} ({ranks.low[number]:.1f} to {ranks.high[number]:.1f})",
            *(cell(values.tolist()) for values in scores[number]),
        ])  # fmt: skip
        entries = [memories.of_section(dict(document), memories.SECTIONS[section])[label] for section in sections]
        costs.append([
            label,
            entries[0]["parameters"],
            entries[0]["state_numbers"],
            f"{entries[0]['acting_ms']:.2f}",
            cell([second for entry in entries for second in entry["train_seconds"]], 0),
        ])  # fmt: skip
        found[label] = {
            "iqm": [float(interval.value), float(interval.low), float(interval.high)],
            "rank": [float(ranks.value[number]), float(ranks.low[number]), float(ranks.high[number])],
            "scores": {section: values.tolist() for section, values in zip(sections, scores[number], strict=True)},
        }
    plot_profiles([labels[number] for number in order], scores[order], folder / f"{PAGE}_profile.png")
    pictures = [f"![Performance profile]({PAGE}_profile.png)"]
    if capacity := memories.of_section(dict(document), memories.SECTIONS[CAPACITY]):
        points = {
            label: (
                entry["state_numbers"],
                [bits_recalled(rate, CAPACITY_BITS) for rate in entry["success_rate"][str(JUDGED[CAPACITY])]],
            )
            for label, entry in capacity.items()
        }
        plot_capacity(points, folder / "capacity.png")
        pictures.append("![Bits recalled against size of the state](capacity.png)")
    if passive := memories.of_section(dict(document), memories.SECTIONS["tmaze"]):
        plot_forgetting(passive, folder / "forgetting.png")
        pictures.append("![Success against episode length, all memories](forgetting.png)")
    score_table = table(["memory", "interquartile mean (95 % interval)", "mean rank (95 % interval)", *titles], rows)
    cost_table = table(["memory", "parameters", "state, numbers", "ms a step", "training, s"], costs)
    text = (
        f"Scores over {scores.shape[2]} seeds, measured {origin(document)}: 0 is chance, 1 is always right; columns of "
        f"tasks show mean and standard error over seeds.{left_out(of_all)}\n\n{score_table}\n\n{cost_table}\n\n"
        + "\n\n".join(pictures)
    )
    write_results(PAGE, "Leaderboard", found, text, options)


def main(argv: Sequence[str] | None = None) -> int:
    """Train missing runs, summarise, write the results; 1 if a memory failed."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="reproduce_leaderboard.py", description=f"Make results/{PAGE}.*"
        )
        failed = memories.run(options) if options.train else 0
        path = options.results_dir / f"{memories.PAGE}.json"
        if not path.exists():
            raise UserError(f"{path} is missing: --train true makes it")
        write(read_page(path), options)
    return failed


if __name__ == "__main__":
    sys.exit(main())
