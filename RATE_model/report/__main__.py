"""Write a self-contained HTML page about runs: flags, verdict, curves, comparison, and an episode to step through.

    python3 -m RATE_model.report RUN [RUN ...] --output report.html

The page needs no network and no server. Verdicts and success against horizon are read from the runs, where
python3 -m RATE_model.protocol wrote them.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from RATE_model.cli.evaluation import evaluation_of_run, parse_cases
from RATE_model.cli.limits import at_least, at_most, each_once, writable_file
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.environments.contract import Environment, Evaluation
from RATE_model.environments.find import common_environment
from RATE_model.errors import UserError, error_reason
from RATE_model.memories.contract import MemoryTransform
from RATE_model.report.episode import Trace, control, player_data, record
from RATE_model.report.page import build, read_run
from RATE_model.system.atomic import atomic_write_text


@dataclass(frozen=True)
class Options:
    """What to show."""

    # Run directories; the flag's name may be left out if they come first
    runs: tuple[Path, ...] = ()
    # The HTML file to write
    output: Path = Path("report.html")
    # Case of the recorded episodes, such as an episode length; none = the first one longer than two segments
    case: str | None = None
    # Recorded episodes per run; 0 = none
    episodes: int = 1
    # Environment: its name or its module; none = that of the runs
    env: str | None = None
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"

    def validate(self) -> None:
        """Raise a UserError for anything that can be checked before loading."""
        if not self.runs:
            raise UserError("the run is missing: python3 -m RATE_model.report RUN [RUN ...] --output report.html")
        at_least(0, episodes=self.episodes)
        each_once(runs=self.runs)
        writable_file(output=self.output)


def evaluation_for(environment: Environment, run: Path, options: Options) -> Evaluation:
    """The evaluation that plays the recorded episodes of a run."""
    evaluation = evaluation_of_run(environment, run, device=options.device)
    if options.case is not None:
        return replace(evaluation, cases=parse_cases(evaluation, [options.case], flag="case"))
    cases, segment = environment.cases(evaluation.options), evaluation.agent.memory.segment
    horizons = {case: max(environment.horizons(case, evaluation.options), default=0) for case in cases}
    beyond = [case for case in cases if horizons[case] > 2 * segment]
    return replace(evaluation, cases=(beyond or list(cases))[:1])


def recorded(evaluation: Evaluation, number: int, transform: MemoryTransform | None, *, twin: bool) -> Trace:
    """Episode `number` of an evaluation, and its twin if `twin` and there is one."""
    environment, (case,) = evaluation.environment, evaluation.cases
    seed = environment.seeds(max(2, number + 1))[number]
    has_twins = environment.has_twins(evaluation.options)
    rows = 2 if twin and has_twins else 1
    seeds = np.repeat(seed, rows)
    given: dict[str, Any] = dict(environment.reset_options(seeds, evaluation.options))
    if has_twins and environment.twins is not None:
        name, values = environment.twins
        if name in given:  # this episode's value, and another one
            values = sorted(values, key=lambda value: value != given[name][0])
        if name in given or not given:  # otherwise twins differ in other options
            given[name] = np.array(values[:rows])
    environments = environment.vector(np.array([case] * rows), evaluation.options)
    target = evaluation.targets[0]
    try:
        return record(
            evaluation.agent,
            environments,
            seeds=seeds,
            target_return=target,
            max_steps=int(np.max(getattr(environments, "max_steps"))),  # noqa: B009  unknown to gymnasium's VectorEnv
            options=given or None,
            transform=transform,
            picture=None if evaluation.agent.spec.is_image else environment.picture,
            player=partial(environment.player, evaluation),
        )
    finally:
        environments.close()


def episodes_of(environment: Environment, run: Path, name: str, options: Options) -> list[dict[str, Any]]:
    """The recorded episodes of a run, for the player."""
    if not options.episodes:
        return []
    evaluation = evaluation_for(environment, run, options)
    transform, (case,) = control(evaluation.agent), evaluation.cases
    names = () if evaluation.agent.spec.continuous else environment.action_names
    found = []
    for number in range(options.episodes):
        intact = recorded(evaluation, number, None, twin=True)
        knocked_out = None if transform is None else recorded(evaluation, number, transform, twin=False)
        where = f", {environment.axis} {case}" if environment.axis else ""
        title = f"{name}: {environment.name}{where}, episode {number + 1}"
        found.append(player_data(evaluation.agent, intact, knocked_out, actions=names, title=title))
    return found


def read_options(argv: Sequence[str] | None = None) -> Options:
    """Parse the options (None: from the command line). Runs may come first, without the flag."""
    words = list(sys.argv[1:] if argv is None else argv)
    first = next((place for place, word in enumerate(words) if word.startswith("-")), len(words))
    return parse_options(
        Options,
        argv=[*(["--runs", *words[:first]] if first else []), *words[first:]],
        prog="python3 -m RATE_model.report RUN",
        description="Write one HTML page about one or more runs: curves, results and an episode to step through.",
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page."""
    with exit_on_user_error():
        options = read_options(argv)
        environment = common_environment(options.runs, options.env)
        at_most(environment.episode_counts[-1], episodes=options.episodes)
        runs = [read_run(run) for run in options.runs]
        episodes = [
            episode
            for run, found in zip(options.runs, runs, strict=True)
            for episode in episodes_of(environment, run, found.name, options)
        ]
        page = build(runs, episodes, title=f"{environment.name}: {len(runs)} run{'s' * (len(runs) > 1)}")
        try:
            atomic_write_text(options.output, page)
        except OSError as error:
            raise UserError(f"--output {options.output} cannot be written: {error_reason(error)}") from error
        print(f"{options.output}: {len(page) / 1e3:,.0f} kB")


if __name__ == "__main__":
    main()
