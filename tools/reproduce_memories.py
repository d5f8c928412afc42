"""Make results/memories.*: every memory and seed on T-Maze and Minigrid-Memory, with equal numbers of parameters.

    python3 tools/reproduce_memories.py
    python3 tools/reproduce_memories.py --environments tmaze --models FFM LRU
    python3 tools/reproduce_memories.py --environments tmaze_multi_cue tmaze_endless

The command can be repeated at any time. Seeds whose figures are in results/memories.json are done, even if their runs
are gone, as long as the command that trains them is the same; finished runs are kept and interrupted ones continued.
The first seed of every memory comes first, then the second. The page is written after each run, and keeps its entries
of other memories and seeds. Failed runs are reported and left out.

Several machines can share the work: give each a part of the memories or seeds and a `--results_dir` of its own, then
join what they found:

    python3 tools/reproduce_memories.py --join MACHINE_1/memories.json MACHINE_2/memories.json
"""

import itertools
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from MinigridMemory.MinigridMemory_src import dataset as minigrid_data
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT as MINIGRID
from MinigridMemory.MinigridMemory_src.evaluate import LARGE_SIZES, SIZES
from RATE_model.acting.actor import Actor
from RATE_model.agent import Agent
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.loading import load_model
from RATE_model.memories import MEMORIES, MODES
from RATE_model.pages.checks import check_figures
from RATE_model.pages.entries import (
    check_entries,
    entry_of,
    join_pages,
    keep_outdated,
    merged,
    missing_seeds,
    with_seeds,
)
from RATE_model.pages.page_file import read_results, write_results
from RATE_model.pages.run_results import final_results, provenance
from RATE_model.pages.study import Study, StudyOptions, check_models
from RATE_model.pages.tables import cell, origin, table
from RATE_model.plots import plot_success_panels
from RATE_model.training.checkpoints import resolve_checkpoint
from TMaze_new.TMaze_new_src import dataset as tmaze_data
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT as TMAZE
from TMaze_new.TMaze_new_src.evaluate import LENGTHS

PAGE = "memories"  # name of the results files
BUDGET = "0.1M"
# Memories per panel of a picture.
_LINES = 6
# The first mode of every memory in the table, and variants that work differently.
LABELS = tuple(dict.fromkeys([next(n for n, m in MODES.items() if m.memory == memory) for memory in MEMORIES]))
LABELS = (*LABELS, *(label for label in ("RMT", "TrXL", "DT", "DMamba") if label in MODES))


@dataclass(frozen=True)
class Section:
    """A section of the page: one environment or task.

    Attributes:
        title: heading, and prefix of labels in the JSON file.
        study: the runs.
        cases: lengths or sizes, ascending.
        called: the name of the cases.
        metric: key of a case's success in eval/final.json, with {} for the case.
        trained: the largest case in training.
        make_data: makes the data of a configuration.
    """

    title: str
    study: Study
    cases: tuple[int, ...]
    called: str
    metric: str
    trained: int
    make_data: Callable[[Any], Any]


def study(environment: Any, settings: tuple[str, ...], extra: dict[str, tuple[str, ...]]) -> Study:
    """Every memory under one setting."""
    models = {label: (*budget(label), "--model_mode", label, *extra.get(label, ())) for label in LABELS}
    return Study.of(environment, settings, models, prefix="memories")


def second_tries(environment: Any, settings: tuple[str, ...], tries: dict[str, tuple[str, ...]]) -> Study:
    """Memories with other flags than in `study`."""
    models = {
        label: (*budget(label), "--model_mode", label.partition(",")[0], *flags) for label, flags in tries.items()
    }
    return Study.of(environment, settings, models, prefix="tries")


def budget(label: str) -> tuple[str, ...]:
    """The flag for equally many parameters; kNN has none to choose."""
    return () if label == "kNN" else ("--budget", BUDGET)


_TMAZE_FAST = ("--config", "TMaze_new/TMaze_new_src/config_fast.yaml")
# kNN stores what it sees and learns only a linear head: a few batches do.
_KNN = {"kNN": ("--stage_batches", "30")}
_TMAZE_EXTRA = {"TrXL": ("--mem_len", "270"), "DT": ("--slide", "30"), **_KNN}
_MINIGRID = (
    *("--config", "MinigridMemory/MinigridMemory_src/config_fast.yaml", "--curriculum_batches", "2400"),
    *("--final_sizes", *map(str, SIZES + LARGE_SIZES)),
)
# T-Maze's other tasks: flags, and the lengths to evaluate, of which the first is the longest in training. Endless
# episodes are not conditioned on returns: the return of 500 junctions does not occur in training. They have 5, 50 and
# 500 junctions.
TASKS: tuple[tuple[str, tuple[str, ...], tuple[int, ...]], ...] = (
    (
        "multi-cue",
        (
            "--bits",
            "8",
            "--min_n_final",
            "2",
            "--max_n_final",
            "4",
            "--trajectories",
            "10000",
            "--stage_batches",
            "600",
        ),
        (40, 80, 160, 320),
    ),
    (
        "endless",
        ("--corridor", "15", "--min_n_final", "2", "--max_n_final", "9", "--condition", "none"),
        (90, 801, 8001),
    ),
    ("distracted", (), (90, 300, 900, 2400)),
    ("recall", (), (90, 300, 900, 2400)),
)
# Second tries of memories that fail on long T-Maze episodes: what in their equations bounds them, set for 10^4 steps,
# or as in their papers; and another learning rate. All of them are on the page. Labels: MEMORY, CHANGE.
SECOND_TRIES: dict[str, tuple[str, ...]] = {
    # Opens the update gate, as the forget gates of LSTMs usually are.
    "GRU, forget bias 4": ("--forget_bias", "4"),
    # The paper's T-Maze settings: with two slots training overwrites each of them four times, with eight never.
    "ELMUR, 2 slots": ("--elmur_slots", "2", "--elmur_blend", "0.79"),
    "LRU, r 0.9999 to 0.99999": ("--lru_r_min", "0.9999", "--lru_r_max", "0.99999"),
    "FFM, horizon 100000": ("--ffm_horizon", "100000"),
    "mLSTM, forget bias 12": ("--mlstm_forget_bias", "12"),
    "SHM, calibration 0": ("--shm_calibration", "0"),
    "Mamba, delta_min 1e-05": ("--mamba_delta_min", "1e-5"),
    # Few, as in ELMUR: each is overwritten many times in training.
    "DNC, 4 slots": ("--dnc_slots", "4"),
}
TMAZE_TRIES = SECOND_TRIES | {
    # Nothing in its equations bounds it: trained longer at the longest episodes, which is where states become stable.
    "RMT, 500 more batches": ("--anneal_batches", "650"),
    # It sees of its own episode only the current segment.
    "Retrieval, segments of 30 steps": ("--context_length", "30", "--segments", "3"),
    # The published rate on T-Maze, a third of config_fast.yaml's.
    **{
        f"{memory}, learning rate 3e-4": ("--learning_rate", "3e-4")
        for memory in ("GRU", "FFM", "LRU", "Mamba", "mLSTM", "SHM", "ELMUR", "DNC", "RMT")
    },
    # Both changes at once, for those that one of them helped; ELMUR's as in its paper.
    "ELMUR, 2 slots, learning rate 2.1e-4": (*SECOND_TRIES["ELMUR, 2 slots"], "--learning_rate", "2.1e-4"),
    **{
        f"{label}, learning rate 3e-4": (*SECOND_TRIES[label], "--learning_rate", "3e-4")
        for label in ("GRU, forget bias 4", "mLSTM, forget bias 12", "SHM, calibration 0")
    },
}
MINIGRID_TRIES = SECOND_TRIES | {
    "LSTM, forget bias 4": ("--forget_bias", "4"),
    "RMT, 500 more batches": ("--anneal_batches", "800"),
    "Retrieval, segments of 40 steps": ("--context_length", "40", "--segments", "2"),
}
# The keys of SECTIONS.
SectionName = Literal[
    "tmaze",
    "tmaze_second_tries",
    "minigrid",
    "minigrid_second_tries",
    "tmaze_multi_cue",
    "tmaze_endless",
    "tmaze_distracted",
    "tmaze_recall",
]
SECTIONS = {
    "tmaze": Section(
        "T-Maze",
        study(TMAZE, _TMAZE_FAST, _TMAZE_EXTRA),
        LENGTHS,
        "episode length",
        "Success_rate_T_{}",
        90,
        tmaze_data.ensure_datasets,
    ),
    "tmaze_second_tries": Section(
        "T-Maze, second tries",
        second_tries(TMAZE, _TMAZE_FAST, TMAZE_TRIES),
        LENGTHS,
        "episode length",
        "Success_rate_T_{}",
        90,
        tmaze_data.ensure_datasets,
    ),
    "minigrid": Section(
        "Minigrid-Memory",
        study(MINIGRID, _MINIGRID, {"TrXL": ("--mem_len", "240"), "DT": ("--slide", "20"), **_KNN}),
        SIZES + LARGE_SIZES,
        "size of the maze",
        "FINAL_Success_rate_l_{}_expert_cap",
        41,
        minigrid_data.DATA.ensure,
    ),
    "minigrid_second_tries": Section(
        "Minigrid-Memory, second tries",
        second_tries(MINIGRID, _MINIGRID, MINIGRID_TRIES),
        SIZES + LARGE_SIZES,
        "size of the maze",
        "FINAL_Success_rate_l_{}_expert_cap",
        41,
        minigrid_data.DATA.ensure,
    ),
    **{
        f"tmaze_{task.replace('-', '_')}": Section(
            f"T-Maze, {task}",
            study(
                TMAZE,
                (*_TMAZE_FAST, "--task", task, *flags, "--eval_lengths", *map(str, cases)),
                _TMAZE_EXTRA,
            ),
            cases,
            "episode length",
            "Recalled_T_{}",
            cases[0],
            tmaze_data.ensure_datasets,
        )
        for task, flags, cases in TASKS
    },
}


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which memories and environments to run, and where to put runs and results."""

    # Seeds of every memory; consecutive
    seeds: tuple[int, ...] = (1, 2, 3)
    # Environments and tasks
    environments: tuple[SectionName, ...] = ("tmaze", "tmaze_second_tries", "minigrid", "minigrid_second_tries")
    # Memories to train and measure, with their second tries; the page keeps its figures of all others. Empty: all
    models: tuple[str, ...] = ()
    # Measure seeds again whose figures are on the page
    again: Boolean = False
    # Only add the figures in these files, memories.json of other machines, and train nothing; for seeds in several, the
    # page's count, then those of the first file
    join: tuple[Path, ...] = ()


def collect(section: Section, label: str, runs: Sequence[Path]) -> dict[str, Any]:
    """Success of every seed by case, the costs of training and memory, and the command that made it."""
    results = final_results(runs)
    agent = load_model(resolve_checkpoint(runs[0]))
    return {
        "success_rate": {str(case): [each[section.metric.format(case)] for each in results] for case in section.cases},
        "d_model": agent.config.sizes.d_model,
        "parameters": sum(parameter.numel() for parameter in agent.parameters()),
        "memory_parameters": sum(parameter.numel() for parameter in agent.memory.parameters()),
        "state_numbers": agent.memory.largest_state().numbers_per_row(),
        "acting_ms": acting_ms(agent),
        "train_seconds": [result["train_seconds"] for result in results],
        "optimizer_steps": [result["optimizer_steps"] for result in results],
        "solved": [bool(result.get("all_stages_solved", result.get("solved"))) for result in results],
        **provenance(runs),
        "command": section.study.key(label),
    }


def acting_ms(agent: Agent, *, episodes: int = 100, steps: int = 30) -> float:
    """Processor milliseconds per step of this many parallel episodes: the median after ten steps."""
    actor = Actor(agent.eval(), episodes, np.ones(episodes))
    shape, dtype = agent.spec.observation_shape, np.uint8 if agent.spec.is_image else np.float32
    observations, rewards, taken = np.zeros((episodes, *shape), dtype), np.zeros(episodes), []
    for _ in range(10 + steps):
        start = time.process_time()
        actor.act(observations, rewards)
        taken.append(time.process_time() - start)
    return 1e3 * float(np.median(taken[10:]))


def success_table(section: Section, entries: dict[str, dict]) -> str:
    """Success by case, mean and standard error over seeds, as Markdown."""
    rows = [[label, *(cell(entry["success_rate"][str(c)]) for c in section.cases)] for label, entry in entries.items()]
    return table(["memory", *section.cases], rows)


def cost_table(entries: dict[str, dict]) -> str:
    """Sizes and times, as Markdown."""
    rows = [
        [
            label,
            entry["d_model"],
            entry["memory_parameters"],
            entry["parameters"],
            entry["state_numbers"],
            " ".join(map(str, entry["seeds"])),
            cell(entry["optimizer_steps"], 0),
            f"{sum(entry['solved'])} of {len(entry['solved'])}",
            cell(entry["train_seconds"], 0),
            f"{entry['acting_ms']:.2f}",
            ", ".join(commit[:12] for commit in entry["commit"]),
            entry["date"],
        ]
        for label, entry in entries.items()
    ]
    header = ["memory", "d_model", "memory parameters", "agent parameters", "state, numbers", "seeds"]
    return table([*header, "optimizer steps", "all stages solved", "training, s", "ms a step", "commit", "date"], rows)


def of_section(document: dict[str, dict], section: Section) -> dict[str, dict]:
    """The entries of an environment by memory."""
    start = f"{section.title}: "
    return {label.removeprefix(start): entry for label, entry in document.items() if label.startswith(start)}


def panels(section: Section, entries: dict[str, dict]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """The curves of each panel: a few memories, in the table's order."""
    curves = {
        label: {int(case): rates for case, rates in entry["success_rate"].items()} for label, entry in entries.items()
    }
    labels = list(curves)
    groups = [labels[start : start + _LINES] for start in range(0, len(labels), _LINES)]
    return {f"{section.title}: {', '.join(group)}": {label: curves[label] for label in group} for group in groups}


def write(document: dict[str, dict], options: Options) -> None:
    """Write results/memories.json, one picture per section, and the generated part of the page."""
    texts = []
    for name, section in SECTIONS.items():
        if not (entries := of_section(document, section)):
            continue
        picture = f"{PAGE}_{name}.png"
        path = options.results_dir / picture
        plot_success_panels(panels(section, entries), path, trained=section.trained, xlabel=section.called)
        commands = (section.study.commands(entry["seeds"], [label]) for label, entry in entries.items())
        texts.append(
            f"## {section.title}\n\nSuccess rate by {section.called}, mean and standard error over seeds, measured "
            f"{origin(entries)}.\n\n![Success by {section.called}]({picture})\n\n{success_table(section, entries)}\n\n"
            f"{cost_table(entries)}\n\nCommands:\n\n" + "\n".join(commands)
        )
    write_results(PAGE, "Memories", document, "\n\n".join(texts), options)


def main(argv: Sequence[str] | None = None) -> int:
    """Train missing runs, collect all figures, write the results; 1 if a memory failed."""
    with exit_on_user_error():
        return run(
            parse_options(Options, argv=argv, prog="reproduce_memories.py", description=f"Make results/{PAGE}.*")
        )


def run(options: Options) -> int:
    """As `main`, with parsed options. Raises UserError."""
    document, keys = read_results(PAGE, options), _keys()
    check_entries(PAGE, document, keys, _check, options)
    if options.join:
        write(join_pages(document, options.join, keys, _check), options)
        return 0
    if not options.environments:
        raise UserError(f"--environments is empty; give some of {', '.join(SECTIONS)}")
    sections = [SECTIONS[name] for name in dict.fromkeys(options.environments)]
    labels = {section.title: chosen(section, options.models) for section in sections}
    for model in options.models:
        if not any(chosen(section, [model]) for section in sections):
            elsewhere = " ".join(name for name, section in SECTIONS.items() if chosen(section, [model]))
            asked = " ".join(options.environments)
            raise UserError(f"--models {shlex.quote(model)} is not in --environments {asked}, but in {elsewhere}")
    asked = {_name(section, label) for section in sections for label in labels[section.title]}
    keep_outdated(PAGE, document, {name: keys[name] for name in asked}, options)
    missing = {
        name: list(options.seeds) if options.again else missing_seeds(entry_of(document, name, key), options.seeds)
        for name, key in keys.items()
    }
    for section in sections:
        if any(missing[_name(section, label)] for label in labels[section.title]):
            section.make_data(section.study.setting().data)
    failed = set()
    for seed, section in itertools.product(options.seeds, sections):
        names = {label: _name(section, label) for label in labels[section.title]}
        cells = [(label, seed) for label, name in names.items() if seed in missing[name] and name not in failed]
        with closing(section.study.run_each(options, cells)) as finished:
            for label, done in finished:
                if isinstance(done, UserError):
                    print(f"left out: {done}", file=sys.stderr, flush=True)
                    failed.add(names[label])
                    continue
                new = collect(section, label, [done])
                entry = with_seeds(entry_of(document, names[label], new["command"]), new)
                document = merged(document, {names[label]: entry}, list(keys))
                write(document, options)
    write(document, options)
    for section in sections:
        print(success_table(section, of_section(document, section)))
    return 1 if failed else 0


def check_entry(section: Section, entry: Any, place: str) -> None:
    """Raise a UserError unless an entry has success and costs of each of its seeds, and rates are from 0 to 1."""
    check_figures(
        entry,
        place,
        of_seeds=("train_seconds", "optimizer_steps", "solved"),
        rates={"success_rate": section.cases},
        alone=("d_model", "parameters", "memory_parameters", "state_numbers", "acting_ms"),
    )


def _check(name: str, entry: Any, place: str) -> None:
    """`check_entry`, by the label of an entry in memories.json."""
    title = name.partition(": ")[0]
    check_entry(next(section for section in SECTIONS.values() if section.title == title), entry, place)


def _name(section: Section, label: str) -> str:
    """The label of an entry in memories.json."""
    return f"{section.title}: {label}"


def chosen(section: Section, models: Sequence[str]) -> list[str]:
    """The labels of a section that `--models` names, directly or by their memory; all if empty. Raises UserError for
    unknown ones."""
    check_models(models, (*LABELS, *(TMAZE_TRIES | MINIGRID_TRIES)))
    return [label for label in section.study.models if not models or {label, label.partition(",")[0]} & set(models)]


def _keys() -> dict[str, str]:
    """The names of entries in the order of the page, and the commands that make them."""
    return {
        _name(section, label): section.study.key(label)
        for section in SECTIONS.values()
        for label in section.study.models
    }


if __name__ == "__main__":
    sys.exit(main())
