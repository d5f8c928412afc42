"""Test whether and how long agents remember: a verdict, success against horizon, and control experiments.

    python3 -m RATE_model.protocol --checkpoint RUN_1 RUN_2 RUN_3
    python3 -m RATE_model.protocol --checkpoint RUN_1 RUN_2 RUN_3 --control FREE_1 FREE_2 FREE_3 --cases 90 900 9600

Runs that differ only in their seed are examined together. Each gets eval/protocol.json, eval/protocol.md and
plots/protocol.png; with --output, all of them go there.

    python3 -m RATE_model.protocol --env NAME --model_mode LSTM --grid

trains a memory on one length at a time, as one segment, two and three, and plots at which lengths it succeeds. Finished
runs are kept and interrupted ones continued.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.cli.evaluation import (
    evaluation_of_run,
    parse_cases,
    print_table,
    recorded_evaluation_flags,
    recorded_flags,
)
from RATE_model.cli.limits import at_least, each_once, writable
from RATE_model.cli.options import Boolean, check_choice, exit_on_user_error, flag_pairs, flag_words, parse_options
from RATE_model.environments.contract import Environment, Evaluation
from RATE_model.environments.find import common_environment
from RATE_model.environments.table import environment as named
from RATE_model.errors import UserError, error_reason
from RATE_model.loading import same_interface
from RATE_model.memories import MODES
from RATE_model.pages.study import StudyOptions
from RATE_model.plots.bars import plot_bars
from RATE_model.plots.horizons import Point, plot_horizons
from RATE_model.protocol.examination import RunPlayer, document, examine, facts_of, task_cases_of
from RATE_model.protocol.grid import Grid, run_grid, write_grid
from RATE_model.protocol.verdict import AgentFacts, Case, Verdict, judge
from RATE_model.system.atomic import atomic_write_json, atomic_write_text
from RATE_model.training.checkpoints import run_of
from RATE_model.training.runs import check_unowned

NAME = "protocol"
# Flags in which runs of the same agent may differ.
_OWN = {"seed", "start_seed", "end_seed", "text", "ckpt_folder", "output_dir", "data_dir", "device", "save_minutes"}


@dataclass(frozen=True)
class Options:
    """Which runs to examine, and how."""

    # Run directories, or checkpoints in them. Runs that differ only in their seed count as one agent
    checkpoint: tuple[Path, ...] = ()
    # Runs of an agent without memory on the same data (--model_mode MLP or BC-MLP). What they achieve does not need
    # memory
    control: tuple[Path, ...] = ()
    # Episodes per case and seed
    episodes: int = 100
    # Cases, such as episode lengths; none given = the defaults of the environment's inference script
    cases: tuple[str, ...] = ()
    # Evaluate with other settings, as flag=value of the environment's inference script
    play: tuple[str, ...] = ()
    # Environment: its name or its module; none = that of the runs
    env: str | None = None
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"
    # Folder for all results; none = each run's own (with --grid: the working directory)
    output: Path | None = None
    # Train and validate --model_mode on the grid of contexts and horizons instead
    grid: Boolean = False
    # --grid: memory to train
    model_mode: str = "RATE"
    # --grid: further flags of the train script, as flag=value. Values are split at spaces
    train: tuple[str, ...] = ()
    # --grid: seeds; consecutive
    seeds: tuple[int, ...] = (1, 2, 3)
    # --grid: parallel runs
    jobs: int = 1
    # --grid: folder for the runs; none = the environment's checkpoint folder
    runs_dir: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for anything that can be checked before loading."""
        if self.grid:
            for name in ("checkpoint", "control", "cases", "play"):
                if given := getattr(self, name):
                    raise UserError(f"--{name} {given[0]}: --grid trains and plays its own runs; leave it out")
            if self.env is None:
                raise UserError("--grid trains its own runs: give --env and --model_mode")
            check_choice(list(MODES), model_mode=self.model_mode)
        elif not self.checkpoint:
            raise UserError("--checkpoint is missing: give one or more run directories")
        at_least(2, episodes=self.episodes)
        each_once(checkpoint=self.checkpoint, control=self.control)
        writable(output=self.output)
        flag_pairs(self.play, flag="play")
        flag_words(self.train, flag="train")
        for run in self.checkpoint:
            check_unowned(checkpoint=run)


@dataclass(frozen=True)
class Examined:
    """An agent with several seeds, its outcomes and the verdict."""

    name: str
    runs: Sequence[Path]
    facts: AgentFacts
    cases: Sequence[Case]
    verdict: Verdict
    notes: Sequence[str] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The content of protocol.json."""
        return {
            "name": self.name,
            "runs": [str(run) for run in self.runs],
            "context": self.facts.context,
            "effective_context": self.facts.reach,
            "segment": self.facts.segment,
            "verdict": {
                "label": self.verdict.label,
                "horizon": self.verdict.horizon,
                "sentence": self.verdict.sentence,
                "missing": list(self.verdict.missing),
            },
            "notes": list(self.notes),
            "cases": document(self.facts, self.cases),
        }

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table: means with 95 % intervals."""
        conditions = list(self.cases[0].outcomes)
        rows = []
        for case in self.cases:
            xi = " to ".join(str(horizon) for horizon in sorted({*case.horizons})) or "none declared"
            row = [case.name, xi, case.regime(self.facts.context)]
            row.append("unknown" if case.chance is None else f"{case.chance:.2f}")
            for condition in conditions:
                interval = case.interval(condition)
                row.append(f"{interval.value:.2f} ({interval.low:.2f} to {interval.high:.2f})")
            rows.append(row)
        chance = "chance" if self.cases[0].outcome == "success" else "at random"
        return ["case", "xi", "regime", chance, *conditions], rows


def grouped(environment: Environment, runs: Sequence[Path]) -> dict[str, list[Path]]:
    """Runs grouped by agent: those that differ only in their seed share a name."""
    groups: dict[str, list[Path]] = {}
    names: dict[str, str] = {}
    for run in runs:
        flags = {name: value for name, value in recorded_flags(environment, run).items() if name not in _OWN}
        key = repr(sorted((name, str(value)) for name, value in flags.items() if not name.startswith("wandb")))
        if key not in names:
            directory = run_of(run).name
            name = directory.rpartition("_RUN_")[0] or directory
            names[key] = f"{name} ({len(names) + 1})" if name in groups else name
        groups.setdefault(names[key], []).append(run)
    return groups


def evaluation_for(environment: Environment, run: Path, options: Options) -> tuple[Evaluation, list[str]]:
    """The evaluation of a run, and notes about it.

    Raises:
        UserError: the checkpoint is missing, of another environment, or cannot be evaluated that way.
    """
    environment.check_episodes(episodes=options.episodes)
    evaluation = evaluation_of_run(environment, run, device=options.device, episodes=options.episodes)
    flags, notes = recorded_flags(environment, run), []
    changes = dict(flag_pairs(options.play, flag="play"))
    if changes:
        play_options = environment.play_options
        asked = recorded_evaluation_flags(environment, changes, source="--play")
        if unknown := set(changes) - set(asked):
            raise UserError(f"--play {min(unknown)}: {environment.inference_script} has no such flag")
        changed = {name: value for name, value in asked.items() if getattr(evaluation.options, name, value) != value}
        if not same_interface(evaluation.agent.spec, environment.spec(flags | asked)):
            raise UserError(f"--play {' '.join(options.play)}: observations or actions differ from those of {run}")
        notes = [f"not trained with {name} {value}" for name, value in changed.items()]
        evaluation = replace(evaluation, options=replace(evaluation.options, **asked))
        assert isinstance(evaluation.options, play_options)
    if environment.has_twins(evaluation.options):
        evaluation = replace(evaluation, episodes=max(environment.episode_counts[0], options.episodes // 2))
    if options.cases:
        cases = parse_cases(evaluation, options.cases, flag="cases")
    else:
        cases = environment.cases(evaluation.options)
    return replace(evaluation, cases=tuple(cases), targets=tuple(evaluation.targets[:1])), notes


def examine_runs(environment: Environment, name: str, runs: Sequence[Path], options: Options) -> Examined:
    """The verdict on runs that differ only in their seed."""
    asked = [evaluation_for(environment, run, options) for run in runs]
    free = [evaluation_for(environment, run, options)[0] for run in options.control]
    if remembers := [
        run for run, control in zip(options.control, free, strict=True) if control.agent.memory.has_memory
    ]:
        raise UserError(f"--control {remembers[0]}: has a memory; give a run of --model_mode MLP or BC-MLP")
    evaluation = asked[0][0]
    twins = environment.has_twins(evaluation.options)
    episodes = evaluation.episodes * (2 if twins else 1)
    print(f"{name}: {len(runs)} seed{'s' * (len(runs) > 1)} of {episodes} episodes", flush=True)
    facts, task_cases = facts_of(evaluation.agent), task_cases_of(evaluation)
    cases = examine(
        [RunPlayer(evaluation) for evaluation, _ in asked],
        facts,
        task_cases,
        has_memory=evaluation.agent.memory.has_memory,
        twins=twins,
        memory_free=[RunPlayer(evaluation) for evaluation in free],
        report=lambda condition: print(f"  {condition}", flush=True),
    )
    return Examined(name, runs, facts, cases, judge(facts, cases), asked[0][1])


def show(examined: Examined) -> None:
    """Print the table and the verdict."""
    header, rows = examined.table()
    print_table(header, rows)
    reach = examined.facts.reach
    print(f"K = {examined.facts.context}, effective context {'unlimited' if reach is None else reach}")
    print("\n".join(f"note: {note}" for note in examined.notes) + "\n" * bool(examined.notes), end="")
    print(f"verdict: {examined.verdict.sentence}")
    for missing in examined.verdict.missing:
        print(f"missing: {missing}")


def write(examined: Examined, folders: Mapping[Path, Path], stem: str) -> None:
    """Write JSON, table and figure to each pair of folders for documents and figures."""
    header, rows = examined.table()
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    text = f"{examined.name}: {examined.verdict.sentence}.\n\n" + "\n".join(lines) + "\n"
    for folder, figures in folders.items():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            atomic_write_json(folder / f"{stem}.json", examined.as_json())
            atomic_write_text(folder / f"{stem}.md", text)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error_reason(error)}") from error
        draw(examined, figures / f"{stem}.png")


def draw(examined: Examined, path: Path) -> None:
    """Plot outcomes by condition against the horizon, or as bars if the task declares no horizon."""
    first, conditions = examined.cases[0], list(examined.cases[0].outcomes)
    if first.horizons:
        points = {condition: [_point(case, condition) for case in examined.cases] for condition in conditions}
        plot_horizons(
            points,
            path,
            context=examined.facts.context,
            chance=first.chance,
            outcome=first.outcome,
            title=examined.name,
        )
        return
    bars = {case.name: {name: _bar(case, name) for name in conditions} for case in examined.cases}
    plot_bars(bars, path, ylabel=f"{first.outcome}, 95 % interval", title=examined.name)


def draw_grid(options: Options) -> None:
    """Train, validate and draw the grid."""
    assert options.env is not None, "checked by validate"
    environment = named(options.env)
    settings = tuple(flag_words(options.train, flag="train"))
    grid = Grid(environment, options.model_mode, environment.grid_cases, settings)
    study = StudyOptions(seeds=options.seeds, jobs=options.jobs, device=options.device, runs_dir=options.runs_dir)
    study.validate()
    environment.check_episodes(episodes=options.episodes)
    episodes = max(1, options.episodes // (2 if environment.twins is not None else 1))
    found = run_grid(grid, study, episodes=episodes)
    stem = f"grid_{environment.folder.name}_{options.model_mode}"
    print(" ".join(map(str, write_grid(found, options.output or Path(), stem))))


def _point(case: Case, condition: str) -> Point:
    interval = case.interval(condition)
    return max(case.horizons), float(interval.value), float(interval.low), float(interval.high)


def _bar(case: Case, condition: str) -> tuple[float, float]:
    interval = case.interval(condition)
    return float(interval.value), float(interval.high - interval.low) / 2


def read_options(argv: Sequence[str] | None = None) -> Options:
    """Parse the options (None: from the command line). Raises UserError."""
    return parse_options(
        Options,
        argv=argv,
        prog="python3 -m RATE_model.protocol",
        description="Test whether and how long agents remember, with control experiments and confidence intervals.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Examine the runs named by the flags."""
    with exit_on_user_error():
        options = read_options(argv)
        if options.grid:
            draw_grid(options)
            return
        named_runs = [run_of(run) for run in (*options.checkpoint, *options.control)]
        environment = common_environment(named_runs, options.env)
        for name, runs in grouped(environment, options.checkpoint).items():
            examined = examine_runs(environment, name, runs, options)
            show(examined)
            if options.output is not None:
                write(examined, {options.output: options.output}, f"{NAME}_{name}")
            else:
                write(examined, {run / "eval": run / "plots" for run in map(run_of, runs)}, NAME)


if __name__ == "__main__":
    main()
