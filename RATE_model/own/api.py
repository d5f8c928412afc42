"""Train on your own data and evaluate in your own environment, in a few lines of Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.acting.rollout import Episodes, mean_and_error
from RATE_model.agent import Agent
from RATE_model.cli import experiment, training
from RATE_model.cli.limits import MAX_FLOAT, check_seed
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.loading import load_agent, same_interface
from RATE_model.memories.contract import MemoryTransform
from RATE_model.own.arguments import naming_arguments
from RATE_model.own.dataset import Dataset
from RATE_model.own.environment import EnvOptions, OwnEnvironment
from RATE_model.own.making import EnvironmentLike, maker_of, name_of, write_arguments


@dataclass(frozen=True)
class TrainedRun:
    """A finished run.

    Attributes:
        directory: the run's directory, with checkpoints, metrics and pictures.
        result: the content of eval/final.json.
    """

    directory: Path
    result: dict[str, Any]

    def agent(self, which: str | int | None = None) -> Agent:
        """The agent of the newest checkpoint, "best", or a given step; see `load_agent`."""
        return load_agent(self.directory, which)


@dataclass(frozen=True)
class Result:
    """The results of an evaluation. Prints as mean and standard error."""

    episodes: Episodes = field(repr=False)

    @property
    def returns(self) -> np.ndarray:
        """(E,) float64."""
        return self.episodes.returns

    @property
    def lengths(self) -> np.ndarray:
        """(E,) int64, steps."""
        return self.episodes.lengths

    @property
    def mean_return(self) -> float:
        """Mean over the episodes."""
        return float(self.returns.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; NaN for a single episode."""
        return mean_and_error(self.returns)[1]

    def __str__(self) -> str:
        return (
            f"return {self.mean_return:.4g} ± {self.standard_error:.2g} (standard error), {self.lengths.mean():.1f} "
            f"steps, {len(self.returns)} episodes"
        )


@naming_arguments()
def train(
    data: Dataset | str | Path,
    *,
    memory: str = "RATE",
    environment: EnvironmentLike | None = None,
    output_dir: str | Path,
    seed: int = 1,
    **flags: Any,
) -> TrainedRun:
    """Train an agent. Every flag of `python3 -m RATE_model.train` is an argument here.

    Args:
        data: the training data; a path or name is opened with `Dataset.open`.
        memory: a mode: RATE, DT, LSTM, ...
        environment: where to evaluate at checkpoints and at the end: a registered id, ``module:Class``, an environment,
            or a function that makes one; None: nowhere.
        output_dir: the run's directory. `resume="auto"` continues a run in it, `overwrite=True` replaces it.
        seed: of the run.
        flags: such as context_length, segments, epochs, learning_rate, d_model, target_return; the full list:
            ``python3 -m RATE_model.train --help``. `env_args` is a dict here.

    Raises:
        UserError: an argument is wrong, or the data does not fit the environment; nothing is created then.
    """
    check_seed(seed)
    if isinstance(arguments := flags.get("env_args"), Mapping):
        flags["env_args"] = write_arguments(arguments, "env_args")
    if not isinstance(data, Dataset):
        data = Dataset.open(
            data, environment=maker_of(environment, arguments=arguments) if arguments and environment else environment
        )
    own = OwnEnvironment(environment, data)
    named = {"env": name_of(environment)} if environment is not None else {}
    config = own.read_config(_words(named | flags | {"model_mode": memory, "seed": seed}))
    own.check(config)
    experiment.check_calibration(config.train, data.spec())
    if not str(output_dir):
        raise UserError("output_dir is empty: name a directory")
    run = experiment.check(config, Path(output_dir).expanduser(), seed)
    experiment.check_initial(config, run, config.agent_config(), data.spec())
    try:
        return TrainedRun(run.directory, training.train(own, config, run))
    except KeyboardInterrupt as interruption:
        interruption.add_note(f'{run.directory}: stopped; the same call with resume="auto" continues it')
        raise


@naming_arguments()
def evaluate(
    agent: Agent | str | Path,
    environment: EnvironmentLike,
    *,
    episodes: int = 20,
    target_return: float | None = None,
    greedy: bool = True,
    seed: int = 0,
    transform_memory: MemoryTransform | None = None,
    max_episode_steps: int | None = None,
    **acting: Any,
) -> Result:
    """Play episodes with an agent.

    Args:
        agent: from `load_agent`, or a path.
        environment: a registered id, ``module:Class``, an environment, or a function that makes one.
        episodes: with seeds 0, 1, ...
        target_return: the return to aim for; agents without returns (`condition="none"`) need none.
        greedy: take the most probable action; False: sample from the predicted distribution.
        seed: for sampled actions.
        transform_memory: see `Actor`, and `knock_out_memory`.
        max_episode_steps: truncate episodes after this many steps.
        acting: `slide` and `reset_target`, see `Actor`.

    Raises:
        UserError: the environment cannot be made, or its spaces differ from those of the agent's training data.
    """
    agent = agent if isinstance(agent, Agent) else load_agent(agent)
    own = OwnEnvironment(environment)
    if unknown := sorted(set(acting) - {"slide", "reset_target"}):
        raise UserError(f"{unknown[0]}: evaluate has no such argument; see help(evaluate)")
    options = EnvOptions(use_argmax=greedy, max_episode_steps=max_episode_steps, **acting)
    options.validate()
    check_seed(seed)
    expected = own.spec({"max_episode_steps": max_episode_steps})
    if not same_interface(agent.spec, replace(expected, observation_scale=agent.spec.observation_scale)):
        raise UserError(
            f"the agent was trained on another environment: it has {_described(agent.spec)}, "
            f"{name_of(environment)} has {_described(expected)}"
        )
    own.check_episodes(episodes=episodes)
    if target_return is None:
        if agent.config.sizes.conditioned:
            raise UserError("target_return is missing: give the return to aim for")
        target_return = 0.0
    if not isinstance(target_return, int | float | np.number) or not abs(target_return) <= MAX_FLOAT:
        raise UserError(f"target_return {target_return}: must be a finite number, at most {MAX_FLOAT:.2g}")
    evaluation = Evaluation(own, agent, options, (target_return,), episodes=episodes, seed=seed)
    return Result(evaluation.play_with(transform_memory)[target_return][None])


def _described(spec: Any) -> str:
    kind = f"{spec.num_actions} dimensions" if spec.continuous else f"{spec.num_actions} numbers"
    return f"observations of shape {spec.observation_shape} and actions of {kind}"


def _words(flags: dict[str, Any]) -> list[str]:
    """Arguments as typed on the command line; ``--name=`` is an empty list, and ``--name=-x`` is not a flag -x."""
    words = []
    for name, value in flags.items():
        values = value if isinstance(value, list | tuple) else [value]
        first, *rest = [str(one).lower() if isinstance(one, bool | None) else str(one) for one in values] or [""]
        words += [f"--{name}={first}", *rest]
    return words
