"""Examine how long a run's agent remembers, and why it stops, with twins: episodes that differ in one hint only.

    python3 -m RATE_model.diagnose.retention RUN

During one long episode, it compares the memories of twins, and reads the hint from them with linear probes. For every
case, such as a length, it measures success, and how much the last decision depends on the first observation. Results
go to eval/retention.json and plots/retention.png of the run, or to --output. See docs/diagnosis.md.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # before the slow imports below

import numpy as np
import torch
from torch import Tensor

from RATE_model.agent import Agent, AgentConfig, RawSteps
from RATE_model.cli.evaluation import check_cases, evaluation_of_run, print_table
from RATE_model.cli.limits import at_least, writable
from RATE_model.cli.options import exit_on_user_error
from RATE_model.diagnose import command
from RATE_model.diagnose.probes import Probe, Sample
from RATE_model.diagnose.recording import vector_of
from RATE_model.environments.contract import Case, Environment, Evaluation
from RATE_model.environments.find import environment_of
from RATE_model.environments.table import environment as environment_named
from RATE_model.errors import UserError
from RATE_model.memories.contract import Memory, State, Steps
from RATE_model.objectives.privileged import Privileged
from RATE_model.plots.retention import plot_retention
from RATE_model.training.checkpoints import resolve_checkpoint, run_of
from RATE_model.training.runs import check_unowned

NAME = "retention"
# Borders at which the memory is examined, evenly on a logarithmic scale.
_BORDERS = 28
# Success from here on counts as right; a probe's accuracy below the second as chance.
RIGHT, GUESSING = 0.95, 0.75
# Pairs that a verdict by probes needs. Half of them are scored: a guess is right at 12 of 16 in 4 % of cases, at 3 of 4
# in 31 %.
ENOUGH_PAIRS = 16
_OF_SAMPLES = ("features", "rows", "episode")
MEASURES = ("distance", "fitted_in_training", "fitted_here")


@dataclass(frozen=True)
class Options:
    """Which run to examine, and in how many episodes."""

    # A run directory (its newest checkpoint) or one of its checkpoints; the flag's name may be left out at the start
    run: Path | None = None
    # Pairs of twins; probes are fitted on one half, and scored on the other. Below 16 they do not explain failures
    pairs: int = 16
    # Cases, such as lengths; empty = those of the run's final evaluation
    cases: tuple[int, ...] = ()
    # Act with other sizes of the memory, NAME=VALUE of its configuration, that no weight depends on: chunks=240 (HCAM)
    sizes: tuple[str, ...] = ()
    # Longest episode in which gradients are computed, in steps
    gradient_steps: int = 1200
    # Folder for the results; none = the run directory
    output: Path | None = None
    # Environment: its name or its module; none = that of the run
    env: str | None = None
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"

    def validate(self) -> None:
        """Raise a UserError for anything that can be checked before loading."""
        if self.run is None:
            raise UserError("the run is missing: python3 -m RATE_model.diagnose.retention RUN")
        at_least(4, pairs=self.pairs)
        at_least(0, gradient_steps=self.gradient_steps)
        if wrong := [text for text in self.sizes if not text.partition("=")[2].isdecimal()]:
            raise UserError(f"--sizes {wrong[0]}: write NAME=VALUE with a whole number, such as chunks=960")
        writable(output=self.output)
        if self.output is None:
            check_unowned(run=self.run)


class Snapshots:
    """A memory transform that changes nothing, and keeps the memory at some borders.

    Args:
        memory: whose states they are.
        every: all borders, ascending.
        steps: those to keep.

    Attributes:
        found: step -> all real numbers of the memory, `(B, n)`; empty for a memory that passes nothing on.
    """

    def __init__(self, memory: Memory, every: Iterable[int], steps: Sequence[int]) -> None:
        self._largest, self._every, self._steps = memory.largest_state(), iter(every), set(steps)
        self.found: dict[int, np.ndarray] = {}

    def __call__(self, memory: State, initial: State) -> State:
        step = next(self._every, None)
        if step in self._steps and (vector := vector_of(memory.fitted(self._largest))) is not None:
            self.found[step] = vector
        return memory


def borders(memory: Memory, slide: int, last: int) -> range:
    """The steps, before a last one, at which an acting memory is passed on.

    Every K steps; a window that slides by `slide` passes on when it is full, which may be some steps later.
    """
    segment = memory.segment
    slide = min(slide, segment) if memory.slides else segment
    return range(segment, last, -(-segment // slide) * slide)


def spread(every: Sequence[int]) -> list[int]:
    """At most `_BORDERS` of these borders, evenly on a logarithmic scale."""
    return sorted({every[round(place) - 1] for place in np.geomspace(1, len(every), _BORDERS)}) if every else []


def twin_distance(memories: np.ndarray) -> float:
    """The distance of twins' memories `(2 n, width)`, rows 2i and 2i + 1, relative to their norm: the median."""
    one, other = memories[0::2].astype(np.float64), memories[1::2].astype(np.float64)
    norms = (np.linalg.norm(one, axis=1) + np.linalg.norm(other, axis=1)) / 2
    return float(np.median(np.linalg.norm(one - other, axis=1) / np.maximum(norms, 1e-30)))


def _samples(memories: np.ndarray, half: np.ndarray) -> Sample:
    """The rows of a half of the pairs; what is to be read is which twin a row is."""
    rows = np.flatnonzero(half)
    return Sample(memories[rows], rows[:, None] % 2, rows // 2)


def by_step(found: Mapping[int, np.ndarray], lengths: np.ndarray, *, trained: int) -> list[dict[str, Any]]:
    """How twins' memories differ at every step, and how well probes tell them apart.

    Args:
        found: step -> the memory of all rows.
        lengths: `(B,)` steps of each row's episode; pairs of which one is over are left out.
        trained: steps of the longest training episodes.

    Returns:
        For every step "step", "pairs", "distance", and the accuracy of two linear probes on the second half of the
        pairs: "fitted_in_training", on the first half at all trained steps, and "fitted_here", at this step. The last
        three are None if a memory holds numbers that are not finite.
    """
    if not found:
        return []
    first_half = np.arange(len(lengths)) < 2 * (len(lengths) // 4)
    running = {step: np.repeat((lengths.reshape(-1, 2) > step).all(axis=1), 2) for step in found}
    finite = {step: bool(np.isfinite(memories[running[step]]).all()) for step, memories in found.items()}
    kind = Privileged.of("twin", np.array([[0], [1]]), flag="probes")

    def fitted(steps: Iterable[int]) -> Probe | None:
        """A probe fitted on the first half of the pairs at these steps; None if there is nothing to fit it on."""
        samples = [_samples(found[step], first_half & running[step]) for step in steps if finite[step]]
        if not sum(len(sample.rows) for sample in samples):
            return None
        joined = (np.concatenate([getattr(each, name) for each in samples]) for name in _OF_SAMPLES)
        return Probe(kind, Sample(*joined))

    in_training = fitted(step for step in found if step <= max(trained, min(found)))
    table = []
    for step, memories in found.items():
        scored = _samples(memories, ~first_half & running[step])
        if not len(scored.rows) or not (first_half & running[step]).any():
            continue
        entry: dict[str, Any] = {"step": step, "pairs": int(running[step].sum()) // 2} | dict.fromkeys(MEASURES)
        if finite[step]:
            entry["distance"] = twin_distance(memories[running[step]])
            for name, probe in (("fitted_in_training", in_training), ("fitted_here", fitted([step]))):
                entry[name] = None if probe is None else float(probe.score(scored).value)
        table.append(entry)
    return table


def gradient(agent: Agent, observations: Tensor, actions: Tensor, rtg: Tensor) -> float:
    """The norm of the derivative of the last decision with respect to the first embedded observation.

    A decision is its logits, less their mean, or its continuous actions. (The gradient of a loss would also vanish
    where the agent is certain.)

    Args:
        agent: in eval mode.
        observations, actions, rtg: of one episode: `(T, ...)`, `(T, ...)` and `(T,)`.
    """
    count, memory = agent.spec.num_actions, agent.memory
    observations, actions, rtg = (
        each[None].expand(count, *each.shape).to(agent.device) for each in (observations, actions, rtg)
    )
    raw = RawSteps(agent.encoder, observations, actions, rtg)
    with torch.no_grad():
        shown = agent.latents(observations)
        steps = Steps(
            observations=shown.requires_grad_(),
            previous_actions=raw.previous_actions if memory.sees_actions else torch.zeros_like(shown),
            rtg=raw.rtg,
            actions=raw.actions if memory.sees_actions else None,
        )
    valid = torch.ones(rtg.shape, dtype=torch.bool)
    # One row per output, so that a single backward pass gives the whole matrix of derivatives.
    outputs = memory.decide(steps, valid, memory.initial(count), agent.head)[0][:, -1].float()
    if not agent.spec.continuous:
        outputs = outputs - outputs.mean(dim=-1, keepdim=True)
    (found,) = torch.autograd.grad(outputs.diagonal().sum(), shown, allow_unused=True)
    return 0.0 if found is None else float(found[:, 0].norm())


def episodes_of(
    environment: Environment, evaluation: Evaluation, cases: Sequence[Case]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """An episode of each case: observations `(T, ...)`, actions `(T, ...)` and returns-to-go `(T,)`."""
    options, target = evaluation.options, evaluation.targets[0]
    seeds = np.repeat(environment.seeds(2)[:1], len(cases))
    environments = environment.vector(np.array(cases), options)
    try:
        actor = evaluation.acting(target).actor(evaluation.agent, len(cases))
        reset: dict[str, Any] = {"seed": seeds, "options": environment.reset_options(seeds, options) or None}
        shown, _ = environments.reset(**reset)
        observations, actions, rewards = [], [], [np.zeros(len(cases))]
        running = [np.ones(len(cases), dtype=bool)]
        while running[-1].any():
            observations.append(shown)
            actions.append(actor.act(shown, rewards[-1]))
            shown, reward, ended, stopped, _ = environments.step(actions[-1])
            rewards.append(reward)
            running.append(running[-1] & ~(ended | stopped))
    finally:
        environments.close()
    lengths = np.sum(running, axis=0)
    seen, done, rtg = np.stack(observations), np.stack(actions), target - np.cumsum(rewards, axis=0)
    arrays = (torch.from_numpy(each).float() if each is rtg else torch.from_numpy(each) for each in (seen, done, rtg))
    first, second, third = arrays
    return [(first[:n, row], second[:n, row], third[:n, row]) for row, n in enumerate(lengths)]


def gradients(
    environment: Environment, evaluation: Evaluation, cases: Sequence[Case], *, most_steps: int
) -> dict[Case, tuple[int, float]]:
    """Case -> steps of an episode, and `gradient` at its end; without cases that allow more steps."""
    if not evaluation.agent.memory.trains_encoders or not most_steps:
        return {}
    short = [case for case in cases if step_limit_of(environment, evaluation, case) <= most_steps]
    played = episodes_of(environment, evaluation, short) if short else []
    return {case: (len(each[2]), gradient(evaluation.agent, *each)) for case, each in zip(short, played, strict=True)}


def _worth_playing(environment: Environment, evaluation: Evaluation) -> Case:
    """The longest case; if the memory's reach is limited, the first that allows more than twice as many steps."""
    reach = evaluation.agent.memory.reach
    long = [case for case in evaluation.cases if step_limit_of(environment, evaluation, case) > 2 * (reach or 0)]
    return evaluation.cases[-1] if reach is None or not long else long[0]


def resized(agent: Agent, sizes: Mapping[str, int]) -> Agent:
    """The agent with other sizes of its memory, and the same weights.

    Raises:
        UserError: a size is unknown or invalid, or weights depend on it.
    """
    config, memory = agent.config.sizes, agent.config.memory
    if unknown := [name for name in sizes if not isinstance(getattr(config, name, None), int)]:
        known = ", ".join(field.name for field in fields(config) if type(getattr(config, field.name)) is int)
        raise UserError(f"--sizes {unknown[0]}: {memory} has the sizes {known}")
    found = Agent(AgentConfig(memory, replace(config, **sizes)), agent.spec).to(agent.device)
    try:
        found.load_state_dict(agent.state_dict())
    except RuntimeError:
        changed = " ".join(f"{name}={value}" for name, value in sizes.items())
        raise UserError(f"--sizes {changed}: {memory} has weights that depend on this; train it with it") from None
    return found.train(agent.training)


def step_limit_of(environment: Environment, evaluation: Evaluation, case: Case) -> int:
    """The most steps of an episode."""
    environments = environment.vector(np.array([case]), evaluation.options)
    environments.close()
    return int(np.max(getattr(environments, "max_steps")))  # noqa: B009  no VectorEnv has it


def examine(options: Options, *, outcomes: Mapping[Case, float] | None = None) -> tuple[Path, dict[str, Any]]:
    """The run's directory and all measurements.

    Args:
        options: the run, and how to measure.
        outcomes: of the cases, if they are known; None: play them.

    Raises:
        UserError: the run is missing or damaged, or its task has no twins that differ in one hint.
    """
    assert options.run is not None, "checked by validate"
    checkpoint = resolve_checkpoint(options.run)
    run = run_of(checkpoint.absolute())
    environment: Environment = environment_of(run) if options.env is None else environment_named(options.env)
    config = environment.read_config(["--config", str(run / "config.yaml")])
    environment.check_episodes(pairs=options.pairs)
    if (most := environment.max_environments) is not None and 2 * options.pairs > most:
        raise UserError(
            f"--pairs {options.pairs}: {environment.name} plays {most // 2} pairs at a time; give at most that"
        )
    cases = sorted(outcomes or options.cases or environment.training_cases(config, final=True))
    evaluation = evaluation_of_run(environment, checkpoint, device=options.device, cases=cases, episodes=options.pairs)
    if options.cases:
        check_cases(evaluation)
    if options.sizes:
        sizes = {name: int(value) for name, _, value in (text.partition("=") for text in options.sizes)}
        evaluation = replace(evaluation, agent=resized(evaluation.agent, sizes))
    given = environment.reset_options(environment.seeds(2), evaluation.options).keys()
    if not environment.has_twins(evaluation.options) or given - {(environment.twins or ("",))[0]}:
        raise UserError(f"{run}: {environment.name} has no twins in this task: episodes that differ in one hint only")
    agent = evaluation.agent
    longest = _worth_playing(environment, evaluation)
    every = borders(agent.memory, evaluation.options.slide, step_limit_of(environment, evaluation, longest))
    snapshots = Snapshots(agent.memory, every, spread(every))
    (twins,) = (
        played[longest] for played in replace(evaluation, cases=[longest]).play_with(snapshots, twins=True).values()
    )
    if outcomes is None:
        others = replace(evaluation, cases=[case for case in cases if case != longest], episodes=2 * options.pairs)
        played = {longest: twins, **(next(iter(others.play().values())) if others.cases else {})}
        outcomes = {case: float(environment.outcomes(case, each, evaluation).mean()) for case, each in played.items()}
    derivatives = gradients(environment, evaluation, cases, most_steps=options.gradient_steps)
    table = []
    for case in cases:
        table.append({"case": case, "steps": step_limit_of(environment, evaluation, case), "outcome": outcomes[case]})
        if case in derivatives:
            table[-1] |= dict(zip(("steps", "gradient"), derivatives[case], strict=True))
    trained = config.segments * config.context_length
    return run, {
        "run": run.name,
        "checkpoint": checkpoint.name,
        "trained_steps": trained,
        "trained_case": environment.training_cases(config, final=False)[-1],
        "axis": environment.axis,
        "measure": environment.outcome,
        "reach": agent.memory.reach,
        "pairs": options.pairs,
        **({"sizes": list(options.sizes)} if options.sizes else {}),
        "by_step": by_step(snapshots.found, twins.lengths, trained=trained),
        "by_case": table,
    }


def first_wrong(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The first case without success; None if there is none."""
    return next((each for each in found["by_case"] if each["outcome"] < RIGHT), None)


def memory_at(found: Mapping[str, Any], step: int) -> Mapping[str, Any] | None:
    """The measurements of memory at the last examined border up to a step; None if there is none."""
    return next((each for each in reversed(found["by_step"]) if each["step"] <= step), None)


def reason(found: Mapping[str, Any]) -> str:
    """What the memory lacks at the first case without success, in one word; empty if outcomes are not successes."""
    if found["measure"] != "success":
        return ""
    wrong = first_wrong(found)
    if wrong is None:
        return "right"
    if wrong["case"] <= found["trained_case"]:
        return "not learned"
    there = memory_at(found, wrong["steps"])
    if there is None:
        return "no memory"
    if there["distance"] is None:
        return "overflow"
    if there["pairs"] < ENOUGH_PAIRS or there["fitted_in_training"] is None:
        return "unclear"
    if there["fitted_here"] < GUESSING:
        return "gone"
    return "moved" if there["fitted_in_training"] < GUESSING else "misread"


def cells(there: Mapping[str, Any] | None) -> list[str]:
    """The distance and the accuracy of both probes, as text; empty where there is no memory."""
    if there is None:
        return [""] * len(MEASURES)
    if there["distance"] is None:
        return ["not finite", "", ""]
    probes = ("" if there[name] is None else f"{there[name]:.2f}" for name in MEASURES[1:])
    return [f"{there['distance']:.2g}", *probes]


def print_retention(found: Mapping[str, Any]) -> None:
    """Print the tables."""
    print(f"{found['run']}, {found['checkpoint']}: {reason(found)}\n\nmemories of twins, after a number of steps")
    rows = [[str(each["step"]), *cells(each)] for each in found["by_step"]]
    print_table(["steps", "distance / norm", "probe fitted in training", "probe fitted here"], rows)
    print("\nlast decisions")
    rows = [
        [f"{each['case']}", f"{each['outcome']:.2f}", f"{each['gradient']:.2g}" if "gradient" in each else ""]
        for each in found["by_case"]
    ]
    print_table([found["axis"], found["measure"], "gradient of the first observation"], rows)


def read_options(argv: Sequence[str] | None = None) -> Options:
    """Parse the options (None: from the command line). The run may come first, without the flag."""
    return command.read_options(
        Options,
        argv,
        prog="python3 -m RATE_model.diagnose.retention RUN",
        description="Measure how long a run's agent remembers, and why it stops.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Examine a run; print and write the results."""
    with exit_on_user_error():
        options = read_options(argv)
        torch.manual_seed(0)
        run, found = examine(options)
        print_retention(found)
        command.write_results(NAME, found, run, options.output, functools.partial(plot_retention, {run.name: found}))


if __name__ == "__main__":
    main()
