"""The main function of every inference script. By default a checkpoint is evaluated as its run was during training."""

import os
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields, make_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.acting.controls import knock_out_memory
from RATE_model.acting.video import check_drawable, record_videos
from RATE_model.agent import Agent
from RATE_model.cli.aliases import canonical_flags
from RATE_model.cli.console import one_line
from RATE_model.cli.limits import MAX_SEED, Ranged, Return, at_least, at_most, writable, writable_file
from RATE_model.cli.options import Boolean, exit_on_user_error, load_yaml, parse_options, typed_values
from RATE_model.cli.settings import ACTING_FLAGS, PlayOptions, Precision, check_acting_flags
from RATE_model.environments.contract import Case, Environment, Evaluation
from RATE_model.errors import UserError, error_reason
from RATE_model.loading import load_config
from RATE_model.memories import MEMORIES
from RATE_model.system.atomic import atomic_write_json
from RATE_model.system.precision import pick_device
from RATE_model.training.checkpoints import load_checkpoint, resolve_checkpoint, run_of
from RATE_model.training.runs import check_unowned, owning

# Evaluation flags of train scripts -> their names in inference scripts.
_ASKED = {"target_return": "target_return", "eval_episodes": "episodes", "precision": "precision"}


def check_typed(checkpoint: Path | None, typed: Set[str]) -> None:
    """Raise a `UserError` for a typed flag that does not apply to the checkpoint's agent.

    Args:
        checkpoint: as typed by the user. Loading reports a missing one.
        typed: names of the flags on the command line.
    """
    if checkpoint is None or not os.path.exists(checkpoint) or not typed & ACTING_FLAGS:
        return
    config = load_config(resolve_checkpoint(checkpoint))
    memory, agent = MEMORIES[config.memory].memory, f"the agent of {checkpoint} ({config.memory})"
    check_acting_flags(typed, memory, conditioned=config.sizes.conditioned, agent=agent)


@dataclass(frozen=True)
class EvaluationOptions(Ranged):
    """Which checkpoint, how to evaluate it, and where results go. Other flags default to the run's own evaluation."""

    # A run directory (its newest checkpoint), a step_* directory, or a tag such as RUN/checkpoints/best
    checkpoint: Path | None = None
    # Episodes per case and target return
    episodes: int = 100
    # Target returns, in units of reward; default: the run's, or the environment's
    target_return: tuple[Return, ...] = ()
    # Seed for sampled actions
    seed: int = 0
    # Knock out the memory: reset it to its initial state at every segment. An agent that depends on its memory falls to
    # chance
    knock_out: Boolean = False
    # 32: float32; bf16: products in bfloat16; auto: bfloat16 if the device has hardware for it
    precision: Precision = "32"
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"
    # Record the first N episodes of every case and target return as MP4 files, into --pictures or the working
    # directory. Sampled actions differ from those of the evaluation
    video: int = 0
    # Draw pictures into this folder
    pictures: Path | None = None
    # Write the results to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for whatever can be checked before anything is loaded."""
        if self.checkpoint is None:
            raise UserError("--checkpoint is missing: give a run directory or a checkpoint")
        super().validate()
        at_least(0, seed=self.seed, video=self.video)
        at_most(MAX_SEED, seed=self.seed)
        writable_file(output=self.output)
        writable(pictures=self.pictures)
        check_unowned(output=self.output, pictures=self.pictures)

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a UserError for a typed flag that does not apply to the checkpoint's agent."""
        check_typed(self.checkpoint, typed)

    def write(self, **results: Any) -> None:
        """Write results and their origin to `output`, if given. Raises UserError if the file cannot be written."""
        if self.output is None:
            return
        try:
            document = {"checkpoint": str(self.checkpoint), "knock_out": self.knock_out, **results}
            with owning(self.output):
                atomic_write_json(self.output, document)
        except OSError as error:
            raise UserError(f"--output {self.output} cannot be written: {error_reason(error)}") from error


@dataclass(frozen=True)
class _Options:
    """All flags of an inference script."""

    common: EvaluationOptions = field(default_factory=EvaluationOptions)


@lru_cache
def options_class(play_options: type[PlayOptions]) -> type[Any]:
    """The flags of an environment's inference script: common flags and its own."""
    return make_dataclass(
        "Options", [("play", play_options, field(default_factory=play_options))], bases=(_Options,), frozen=True
    )


def recorded_flags(environment: Environment, checkpoint: Path) -> dict[str, Any]:
    """`flags_of` for a checkpoint of an environment."""
    return environment.recorded(flags_of(checkpoint, environment.before))


def flags_of(checkpoint: Path, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The flags of a checkpoint's run; from the checkpoint itself if the run's config.yaml is missing or damaged.

    Args:
        checkpoint: as typed by the user.
        before: values for runs older than these flags. Not used for converted checkpoints, which record their origin.

    Returns:
        Empty if the checkpoint has no run.

    Raises:
        UserError: the checkpoint is missing, or its run's config.yaml is damaged and the checkpoint has no flags.
    """
    path = resolve_checkpoint(checkpoint).absolute()
    config = run_of(path) / "config.yaml"
    trouble: UserError | None = None
    try:
        flags = load_yaml(config)
    except UserError as error:
        flags, trouble = {}, error
    if not flags:
        flags = load_checkpoint(path)[1].get("flags", {})
        if flags:
            _say(f"{config} is missing or damaged; reading the flags from the checkpoint")
        elif trouble is not None and config.exists():
            raise trouble
    recorded = canonical_flags(flags)
    made_here = recorded and "published_variant" not in recorded
    return {**(before or {}), **recorded} if made_here else recorded


@cache
def _say(text: str) -> None:
    """Print a note once per process."""
    print(one_line(text), file=sys.stderr)


def recorded_evaluation_flags(environment: Environment, flags: Mapping[str, Any], *, source: str) -> dict[str, Any]:
    """The evaluation settings among a run's flags, converted and named as in the inference script.

    Raises:
        UserError: a value is invalid; the message names `source`.
    """
    cls = options_class(environment.play_options)
    own = {field.name for field in fields(environment.play_options)}
    found = {name: value for name, value in flags.items() if name in own}
    for name, called in _ASKED.items():
        value = flags.get(name)
        if value is not None:
            found[called] = [value] if name == "target_return" and not isinstance(value, list | tuple) else value
    return typed_values(cls, found, source=source)


def evaluation_of(
    environment: Environment,
    agent: Agent,
    flags: Mapping[str, Any],
    *,
    cases: Sequence[Case],
    run: Path | None = None,
    **changes: Any,
) -> Evaluation:
    """The evaluation described by a run's flags; the same during and after training.

    Args:
        cases: cases to evaluate.
        run: the run's directory.
        changes: attributes of `Evaluation` to replace.
    """
    asked = recorded_evaluation_flags(environment, flags, source=f"{run}")
    own = {field.name for field in fields(environment.play_options)}
    options = environment.play_options(**{name: value for name, value in asked.items() if name in own})
    given = {
        "targets": environment.target_returns(flags),
        "episodes": asked.get("episodes", 100),
        "precision": asked.get("precision", "32"),
        "cuda_graphs": bool(flags.get("compile")),
    }
    return Evaluation(environment, agent, options, cases=cases, run=run, **given | changes)


def evaluation_of_run(
    environment: Environment, run: Path, *, device: str = "cpu", flags: Mapping[str, Any] | None = None, **changes: Any
) -> Evaluation:
    """The final evaluation of a run, to repeat it.

    Args:
        environment, run: the environment, and a run or one of its checkpoints.
        device: where the agent acts.
        flags: replace the run's flags of these names.
        changes: attributes of `Evaluation` to replace.

    Raises:
        UserError: the checkpoint is missing, damaged, or of another environment.
    """
    checkpoint, flags = resolve_checkpoint(run), recorded_flags(environment, run) | dict(flags or {})
    agent = environment.load_agent(checkpoint, flags, {}, device=pick_device(device))
    return evaluation_of(environment, agent, flags, run=run, **{"cases": (None,)} | changes)


def parse_cases(evaluation: Evaluation, texts: Sequence[str], *, flag: str) -> list[Case]:
    """The cases typed after a flag. Raises UserError for one that the environment does not have."""
    environment = evaluation.environment
    example = environment.cases(evaluation.options)[0]
    try:
        cases = [type(example)(text) for text in texts]
    except (TypeError, ValueError):
        raise UserError(f"--{flag} {' '.join(texts)}: {environment.name} has cases such as {example}") from None
    check_cases(replace(evaluation, cases=cases), flag=flag)
    return cases


def check_cases(evaluation: Evaluation, *, flag: str = "cases") -> None:
    """Raise a `UserError` for the first case that the environment does not have, as typed after a flag."""
    for case in evaluation.cases:
        try:
            evaluation.environment.vector(np.array([case]), evaluation.options).close()
        except UserError as error:
            raise UserError(f"--{flag} {case}: {error}") from None


def read_options(environment: Environment, argv: Sequence[str] | None = None) -> tuple[Any, dict[str, Any]]:
    """The options of an inference script, and the flags of the checkpoint's run. Raises UserError."""
    recorded: dict[str, Any] = {}
    troubles: list[UserError] = []  # problems with the checkpoint; wrong flags are reported before these

    def of_run(flags: Mapping[str, Any]) -> dict[str, Any]:
        if (checkpoint := flags.get("checkpoint")) is None:
            return {}
        try:
            recorded.update(recorded_flags(environment, checkpoint))
            return recorded_evaluation_flags(
                environment, environment.inherited_flags(recorded, flags), source=f"the run of {checkpoint}"
            )
        except UserError as error:
            troubles.append(error)
            return {}

    options = parse_options(
        options_class(environment.play_options),
        argv=argv,
        prog=f"python3 {environment.inference_script}",
        description=f"Evaluate a checkpoint on {environment.name}.",
        aliases=dict(environment.aliases),
        recorded=of_run,
    )
    environment.check_episodes(episodes=options.common.episodes)
    at_most(environment.episode_counts[-1], video=options.common.video)
    for trouble in troubles:
        raise trouble
    return options, recorded


def main(environment: Environment, argv: Sequence[str] | None = None) -> None:
    """Evaluate a checkpoint: print a table; write a JSON file, pictures and videos if requested."""
    with exit_on_user_error():
        options, recorded = read_options(environment, argv)
        common: EvaluationOptions = options.common
        assert common.checkpoint is not None, "checked by validate"
        checkpoint, asked = resolve_checkpoint(common.checkpoint), asdict(options.play)
        agent = environment.load_agent(checkpoint, recorded, asked, device=pick_device(common.device))
        evaluation = Evaluation(
            environment,
            agent,
            options.play,
            targets=common.target_return or environment.target_returns({**recorded, **asked}),
            cases=environment.cases(options.play),
            episodes=common.episodes,
            seed=common.seed,
            precision=common.precision,
            cuda_graphs=bool(recorded.get("compile")),
            transform_memory=knock_out_memory if common.knock_out else None,
            run=run_of(checkpoint.absolute()),
        )
        if common.video:
            check_drawable(evaluation)
        results = report(evaluation, checkpoint)
        asked |= {"episodes": common.episodes, "target_return": list(evaluation.targets)}
        common.write(**asked, results=results)
        if common.pictures is not None:
            print("pictures: " + " ".join(map(str, environment.draw(common.pictures, evaluation))))
        if common.video:
            print("videos: " + " ".join(map(str, record_videos(evaluation, common.pictures or Path(), common.video))))


def report(evaluation: Evaluation, checkpoint: Path) -> dict[str, Any]:
    """Play and print one line per target return and case. Returns the same figures, nested by return and case.

    A level with a single return or case is left out. Entries of other players follow, by label.
    """
    environment, several = evaluation.environment, len(evaluation.targets) > 1
    targets = ", ".join(f"{target:g}" for target in evaluation.targets)
    notes = [
        f"{evaluation.episodes} episodes" + (f" per {environment.axis}" if environment.axis else ""),
        *filter(None, [environment.description(evaluation)]),
        f"target return {targets}",
        *["memory knocked out"] * (evaluation.transform_memory is not None),
    ]
    print(f"{checkpoint}: {', '.join(notes)}", flush=True)
    started = time.perf_counter()
    found = {
        target: {case: environment.figures(case, episodes, evaluation) for case, episodes in by_case.items()}
        for target, by_case in evaluation.play().items()
    }
    seconds = time.perf_counter() - started
    header = ["target return"] * (several or not environment.axis) + [environment.axis] * bool(environment.axis)
    rows = [
        [f"{target:g}"] * (several or not environment.axis) + [f"{case}"] * bool(environment.axis) + _cells(values)
        for target, by_case in found.items()
        for case, values in by_case.items()
    ]
    others = environment.others(evaluation)
    rows += [[label, *[""] * (len(header) - 1), *_cells(values)] for label, values in others.items()]
    first = next(iter(next(iter(found.values())).values()))
    print_table([*header, *first], rows)
    print(f"played in {seconds:.1f} s")
    by_target = {
        f"{target:g}": {str(case): values for case, values in by_case.items()} if environment.axis else by_case[None]
        for target, by_case in found.items()
    }
    return (next(iter(by_target.values())) if environment.axis and not several else by_target) | others


def _cells(values: Mapping[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in values.values()]


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print right-aligned columns, as wide as needed."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for row in (header, *rows):
        print("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)))
