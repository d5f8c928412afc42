"""Examine a run's agent on the data it was trained on.

    python3 -m RATE_model.diagnose RUN
    python3 -m RATE_model.diagnose RUN --probes infos/agent_pos infos/target --since infos/target_visible

Linear probes measure what its memory knows, the copying check how much it copies past actions, and the imitation gap
at which steps of an episode it imitates worse. It runs on whole training and held-out episodes. Results go to
eval/diagnosis.json and plots/diagnosis.png of the run, or to --output. See docs/diagnosis.md.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # before the slow imports below

import numpy as np
import torch

from RATE_model.agent import Agent
from RATE_model.cli.aliases import ALIASES
from RATE_model.cli.evaluation import print_table, recorded_flags
from RATE_model.cli.limits import at_least, writable
from RATE_model.cli.options import exit_on_user_error, flag_pairs, flag_words, to_flat_dict
from RATE_model.cli.settings import TaskOptions
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.trajectories import FIRST_SEEN
from RATE_model.diagnose import command
from RATE_model.diagnose.imitation import by_step, by_time_since, copying
from RATE_model.diagnose.probes import Probe, Sample, baseline
from RATE_model.diagnose.recording import Recording, record, whole_episodes_of
from RATE_model.environments.contract import Environment
from RATE_model.environments.find import environment_of
from RATE_model.environments.table import environment as environment_named
from RATE_model.errors import UserError
from RATE_model.objectives.privileged import PREFIX, Privileged, check_infos, infos_of, named, with_infos
from RATE_model.plots.diagnosis import plot_diagnosis
from RATE_model.system.precision import pick_device
from RATE_model.training.checkpoints import resolve_checkpoint, run_of
from RATE_model.training.runs import check_unowned

NAME = "diagnosis"
# Infos of any data that do not describe the step; probed only if named.
_OF_THE_FILE = frozenset({"seed", FIRST_SEEN.removeprefix(PREFIX), "expert_action"})
SIDES = ("training", "held_out")
_FEW_EPISODES = 10  # below which intervals over episodes are unreliable


@dataclass(frozen=True)
class Options:
    """Which run to examine, and on which data."""

    # A run directory (its newest checkpoint) or one of its checkpoints; the flag's name may be left out at the start
    run: Path | None = None
    # Arrays of the data to probe, infos/NAME; default: all that fit
    probes: tuple[str, ...] = ()
    # Also measure imitation by the number of steps since this array, infos/NAME, was last nonzero
    since: str | None = None
    # Training episodes, and as many held-out ones
    episodes: int = 50
    # First steps of each episode to use; none = all
    steps: int | None = None
    # Use other data: its flags as flag=value of the train script, such as data_path=FILE (your own data: data=FILE).
    # Values are split at spaces
    train: tuple[str, ...] = ()
    # Folder for the results; none = the run directory
    output: Path | None = None
    # Environment: its name or its module; none = that of the run
    env: str | None = None
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"

    def validate(self) -> None:
        """Raise a UserError for anything that can be checked before loading."""
        if self.run is None:
            raise UserError("the run is missing: python3 -m RATE_model.diagnose RUN")
        check_infos(named(self.probes), flag="probes")
        check_infos([] if self.since is None else [self.since], flag="since")
        at_least(2, episodes=self.episodes)
        at_least(1, steps=self.steps)
        writable(output=self.output)
        flag_words(self.train, flag="train")
        if self.output is None:
            check_unowned(run=self.run)


def read_options(argv: Sequence[str] | None = None) -> Options:
    """Parse the options (None: from the command line). The run may come first, without the flag."""
    return command.read_options(
        Options,
        argv,
        prog="python3 -m RATE_model.diagnose RUN",
        description="Measure what a run's memory knows, how much it copies past actions, and where imitation fails.",
    )


@dataclass(frozen=True)
class Examined:
    """What is examined.

    Attributes:
        environment, run, checkpoint, agent: the agent and where it comes from.
        slide: steps by which its window slides when it acts.
        sides: whole training and held-out episodes.
    """

    environment: Environment
    run: Path
    checkpoint: Path
    agent: Agent
    slide: int
    sides: tuple[WindowDataset, WindowDataset]

    def with_infos(self, wanted: Sequence[str], flag: str) -> Examined:
        """The same with these arrays of the data. Raises UserError if they are missing."""
        training, held_out = (with_infos(side, wanted, flag=flag) for side in self.sides)
        return replace(self, sides=(training, held_out))


def load(options: Options) -> Examined:
    """Load a run's agent and its data. Raises UserError if one of them is missing or damaged."""
    assert options.run is not None, "checked by validate"
    checkpoint = resolve_checkpoint(options.run)
    run = run_of(checkpoint.absolute())
    environment: Environment = environment_of(run) if options.env is None else environment_named(options.env)
    check_data_flags(options.train, environment)
    changes = flag_words(options.train, flag="train")
    config = environment.read_config(["--config", str(run / "config.yaml"), *changes])
    environment.check(config)
    agent = environment.load_agent(checkpoint, recorded_flags(environment, checkpoint), {}, device="cpu")
    data = environment.load(config)
    training, held_out = (
        whole_episodes_of(side, episodes=options.episodes, steps=options.steps)
        for side in data.windows(max(data.stages))
    )
    agent = agent.to(pick_device(options.device))
    return Examined(environment, run, checkpoint, agent, config.task.slide, (training, held_out))


def check_data_flags(changes: Sequence[str], environment: Environment) -> None:
    """Raise a `UserError` for changes, written flag=value, of the model or its training: they have no effect."""
    config = environment.config()
    without = {*to_flat_dict(config.model), *to_flat_dict(config.train), *to_flat_dict(config.run), "config"}
    without |= {field.name for field in fields(TaskOptions)}
    for given, _ in flag_pairs(changes, flag="train"):
        name = given.replace("-", "_")
        if {**ALIASES, **environment.aliases}.get(name, name) in without:
            raise UserError(
                f"--train {given}: the run is examined as it was trained; --train only chooses the data, for example "
                f"with {'data' if 'data' in to_flat_dict(config) else 'data_path'}=FILE"
            )


def probed(options: Options, environment: Environment, data: WindowDataset) -> tuple[str, ...]:
    """Names of the arrays to probe: those given, or all arrays of the data that describe a step."""
    if options.probes:
        return infos_of(named(options.probes))
    left_out = _OF_THE_FILE | set(environment.bookkeeping)
    offered = [set(file.info_names()) - left_out for file in data.files]
    return tuple(sorted(set.intersection(*offered)))


def sources_of(found: Recording, name: str) -> dict[str, Sample]:
    """The inputs of the probes for an array, by name."""
    rows, episode, before = found.infos[name], found.episode, found.before
    sources = {
        "hidden state": Sample(found.hidden, rows, episode),
        "observation alone": Sample(found.observation, rows, episode),
    }
    if found.knocked_out is not None:
        sources["memory knocked out"] = Sample(found.knocked_out, rows, episode)
    if found.state is not None:
        sources["memory at borders"] = Sample(found.state, rows[before], episode[before])
        sources["observation at borders"] = Sample(found.observation[before], rows[before], episode[before])
    return sources


def probe(name: str, training: Recording, held_out: Recording, *, chosen: bool) -> dict[str, Any] | None:
    """Probe scores for an array, by source; None if it was not named by the user and cannot be probed."""
    try:
        kind = Privileged.of(name, training.infos[name], flag="probes")
    except UserError:
        if chosen:
            raise
        return None
    scores = {}
    others = sources_of(held_out, name)
    for source, sample in sources_of(training, name).items():
        if source in others and len(np.unique(sample.episode)) > 1:
            interval = Probe(kind, sample).score(others[source])
            numbers = {key: float(getattr(interval, key)) for key in ("value", "low", "high")}
            if not np.isnan(numbers["value"]):
                scores[source] = {key: None if np.isnan(x) else round(x, 4) for key, x in numbers.items()}
    return {
        "measure": "accuracy" if kind.kind.classes else "R2",
        "nothing_seen": round(baseline(kind, training.infos[name], held_out.infos[name]), 4),
        "scores": scores,
    }


def diagnose(options: Options) -> tuple[Path, dict[str, Any]]:
    """The run's directory and all measurements. Raises UserError."""
    examined = load(options)
    agent, run = examined.agent, examined.run
    since = infos_of([options.since] if options.since else [])
    for flag, wanted in {"since": since, "oracle": [kind.name for kind in agent.spec.oracle]}.items():
        examined = examined.with_infos(wanted, flag)
    names = []
    for name in probed(options, examined.environment, examined.sides[0]):
        try:
            examined = examined.with_infos([name], "probes")
            names.append(name)
        except UserError as error:
            if options.probes:
                raise
            print(f"note: not probed: {error}")
    training, held_out = (record(agent, side, slide=examined.slide) for side in examined.sides)
    probes = {name: probe(name, training, held_out, chosen=bool(options.probes)) for name in names}
    print_doubts(probes, training, held_out)
    found = {
        "run": str(run),
        "checkpoint": examined.checkpoint.name,
        "episodes": {side: each.episodes for side, each in zip(SIDES, (training, held_out), strict=True)},
        "segment": agent.memory.segment,
        "probes": {name: result for name, result in probes.items() if result is not None},
        "copying": copying(held_out),
        "by_step": {side: by_step(each) for side, each in zip(SIDES, (training, held_out), strict=True)},
    }
    for name in since:
        found["by_time_since"] = {
            "info": name,
            **{side: by_time_since(each, name) for side, each in zip(SIDES, (training, held_out), strict=True)},
        }
    return run, found


def print_doubts(probes: Mapping[str, Any], training: Recording, held_out: Recording) -> None:
    """Print why scores of probes may say little."""
    if any(probes.values()) and held_out.episodes < _FEW_EPISODES:
        print(f"note: only {held_out.episodes} held-out episodes: their scores are uncertain; use data with more")
    for name, found in probes.items():
        for side, each in zip(SIDES, (training, held_out), strict=True):
            if found and found["measure"] == "accuracy" and len(np.unique(each.infos[name], axis=0)) == 1:
                print(f"note: {PREFIX}{name} has a single value in the {side.replace('_', '-')} episodes")


def print_diagnosis(found: Mapping[str, Any]) -> None:
    """Print the tables."""
    counts = found["episodes"]
    shown = f"{counts['training']} training episodes, {counts['held_out']} held out"
    print(f"{found['run']}, {found['checkpoint']}: {shown}")
    if found["probes"]:
        sources = list(dict.fromkeys(source for each in found["probes"].values() for source in each["scores"]))
        rows = [
            [PREFIX + name, each["measure"], f"{each['nothing_seen']:.2f}"]
            + [_score(each["scores"].get(source)) for source in sources]
            for name, each in found["probes"].items()
        ]
        print("\nprobe scores on held-out episodes (95 % interval over episodes)")
        print_table(["", "", "nothing seen", *sources], rows)
    else:
        print("\nprobes: the data has no infos/* to probe; see docs/diagnosis.md")
    table = found["copying"]
    print(f"\ncopying: the target action repeats the last one at {_percent(table['repeats'])} of the held-out steps")
    labels = {name: name.replace("_", " ") for name, each in table.items() if isinstance(each, Mapping)}
    columns = list(dict.fromkeys(key for name in labels for key in table[name]))
    rows = [[label, *(_number(table[name].get(key)) for key in columns)] for name, label in labels.items()]
    print_table(["", *(column.replace("_", " ") for column in columns)], rows)
    for key, title in {"by_step": "step of the episode", "by_time_since": "steps since the event"}.items():
        if key in found:
            print(f"\nimitation by {title}")
            _print_bins(found[key])


def _print_bins(sides: Mapping[str, Any]) -> None:
    training, held_out = ({(each["from"], each["to"]): each for each in sides[side]} for side in SIDES)
    rows = []
    for first, last in sorted(training | held_out):
        both = training.get((first, last), {}), held_out.get((first, last), {})
        numbers = (each.get(key) for key in ("loss", "accuracy") for each in both)
        rows.append([f"{first}" if first == last else f"{first} to {last}", *map(_number, numbers)])
    print_table(["", "training loss", "held-out loss", "training accuracy", "held-out accuracy"], rows)


def _score(score: Mapping[str, float | None] | None) -> str:
    if score is None:
        return ""
    if score["low"] is None:
        return f"{score['value']:.2f} (one episode)"
    return f"{score['value']:.2f} ({score['low']:.2f} to {score['high']:.2f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def main(argv: Sequence[str] | None = None) -> None:
    """Examine a run; print and write the results."""
    with exit_on_user_error():
        options = read_options(argv)
        torch.manual_seed(0)
        run, found = diagnose(options)
        print_diagnosis(found)
        command.write_results(NAME, found, run, options.output, functools.partial(plot_diagnosis, found))


if __name__ == "__main__":
    main()
