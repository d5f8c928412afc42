"""The `Environment` of a user's own data and environment. Everything follows from its spaces and its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from RATE_model.acting.rollout import Episodes, error_entry
from RATE_model.acting.vector import step_limit
from RATE_model.cli.limits import Return, at_least
from RATE_model.cli.options import changeable
from RATE_model.cli.settings import CurriculumOptions, ExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.environments.spaces import Actions, Encoded, Observations, spec_of
from RATE_model.errors import UserError
from RATE_model.own.dataset import FIRST_SEED, Dataset
from RATE_model.own.making import MAX_STEPS, EnvironmentLike, maker_of, read_arguments
from RATE_model.spec import EnvironmentSpec


@dataclass(frozen=True)
class EnvOptions(PlayOptions):
    """The environment to play in."""

    # A registered id, or module:Class; none = no evaluation
    env: str | None = None
    # Arguments of the environment, as NAME=VALUE
    env_args: tuple[str, ...] = ()
    # Wrappers, as module:Class, the innermost first
    wrappers: tuple[str, ...] = ()
    # Truncate episodes after N steps; none = the environment's own limit, or 10,000
    max_episode_steps: int | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        at_least(1, max_episode_steps=self.max_episode_steps)
        read_arguments(self.env_args, "env_args")
        for name in ("env_args", "wrappers"):
            if self.env is None and getattr(self, name):
                raise UserError(f"--{name}: without --env nothing is played; give it too, or leave this out")

    def maker(self) -> Callable[..., gymnasium.Env]:
        """A function that makes the environment. Raises UserError without one."""
        if self.env is None:
            raise UserError("--env is missing: give a registered id, or module:Class")
        arguments = read_arguments(self.env_args, "env_args")
        return maker_of(self.env, arguments=arguments, wrappers=self.wrappers, max_steps=self.max_episode_steps)


@dataclass(frozen=True)
class Task(EnvOptions, SegmentOptions):
    """Segments, the environment, and evaluation."""

    # Target return; none = the largest in the data
    target_return: Return | None = None


@dataclass(frozen=True)
class DataOptions:
    """The training data."""

    # Trajectories: an HDF5 file in D4RL's layout, a folder of .npz files, or a Minari dataset (folder or name)
    data: Path | None = changeable(None)
    # Share of the episodes used for training; the rest is for validation
    training_share: float = 0.9

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if not 0 < self.training_share < 1:
            raise UserError(f"--training_share {self.training_share}: must be above 0 and below 1")


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """All flags of training on your own data."""

    task: Task = field(default_factory=Task)
    data: DataOptions = field(default_factory=DataOptions)
    curriculum: CurriculumOptions = field(default_factory=CurriculumOptions)


class OwnEnvironment(Environment):
    """Any Gymnasium environment, or none, and any data.

    Args:
        make: makes the environment; None: use the flags.
        data: the training data; None: use the flags.
    """

    name = "an environment of your own"
    folder = Path(__file__).resolve().parent
    checkpoints = Path("runs")
    train_script = "-m RATE_model.train"
    inference_script = "-m RATE_model.evaluate"
    config = Config
    play_options = EnvOptions
    aliases = {"model": "model_mode", "memory": "model_mode"}

    def __init__(self, make: EnvironmentLike | None = None, data: Dataset | None = None) -> None:
        self._made, self._data, self._given = make, data, data is not None

    def read_config(self, argv: Sequence[str] | None = None) -> Config:
        """The configuration from the flags, completed from the data if the flags name any.

        Raises:
            UserError: a flag is wrong, or the data is missing, damaged, or does not fit the environment.
        """
        config: Config = super().read_config(argv)
        task, playable = config.task, self._made is not None or config.task.env is not None
        if not playable:
            task = replace(task, online_inference=False, last_inference=False)
        if not self._given and config.data.data is not None:
            self._data = Dataset.open(config.data.data, environment=self.maker(task) if playable else None)
        if self._data is not None and task.target_return is None:
            task = replace(task, target_return=float(self._data.returns.max()))
        return replace(config, task=task)

    def maker(self, options: Any) -> Callable[..., gymnasium.Env]:
        """A function that makes the environment named by the flags. Raises UserError without one."""
        if self._made is None:
            return options.maker()
        arguments = read_arguments(options.env_args, "env_args")
        return maker_of(self._made, arguments=arguments, wrappers=options.wrappers, max_steps=options.max_episode_steps)

    def check(self, config: Config) -> None:
        """Check that there is data, and that the environment can be made and matches it."""
        if self._data is None:
            raise UserError(
                "--data is missing: give an HDF5 file, a folder of .npz files, or a Minari dataset. A run that Python "
                "trained does not store its data: save it with Dataset.to_hdf5, and name the file (for diagnose, "
                "--train data=FILE)"
            )
        if config.task.last_inference or config.task.online_inference:
            with closing(self.make(None, config.task)) as environment:
                seen, acted = environment.observation_space, environment.action_space
            if (seen, acted) != (self._data.observations.box, self._data.actions.box):
                raise UserError(
                    f"{self._data.name} comes from another environment: a model sees its observations as "
                    f"{self._data.observations.box} and its actions as {self._data.actions.box}; those of the "
                    f"environment are {seen} and {acted}"
                )

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """From the data, or from the environment's spaces."""
        if self._data is not None:
            return self._spec_of_data()
        options = EnvOptions(**{name: _tuple(flags[name]) for name in ("env", "env_args", "wrappers") if name in flags})
        environment = self.make(None, options)
        try:
            encoded = environment.env if isinstance(environment, Encoded) else environment
            return spec_of(Observations.of(encoded.observation_space), Actions.of(encoded.action_space))
        finally:
            environment.close()

    def _spec_of_data(self) -> EnvironmentSpec:
        assert self._data is not None
        return _spec_of(self._data)

    def load(self, config: Config) -> TrainingData:
        """Windows of a stage of s segments: whole episodes where they fit, pieces of longer ones."""
        data = self._data
        assert data is not None, "checked by check"

        @lru_cache
        def windows(segments: int) -> Any:
            return data.windows(segments * config.context_length, fraction=config.data.training_share)

        return TrainingData(windows, range(1, config.segments + 1), self._spec_of_data())

    def make(self, case: None, options: Any, *, render_mode: str | None = None) -> gymnasium.Env:
        """The environment, encoded for the model."""
        environment = Encoded(self.maker(options)(render_mode=render_mode))
        try:
            step_limit(environment)
        except UserError:
            return Encoded(gymnasium.wrappers.TimeLimit(environment.env, MAX_STEPS))
        return environment

    def seeds(self, episodes: int) -> np.ndarray:
        """0, 1, ...; `Dataset.collect` uses other seeds."""
        assert episodes <= FIRST_SEED
        return np.arange(episodes)

    def metrics(
        self, played: Mapping[None, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Return, its standard error, and length."""
        episodes = played[None]
        found = {"eval_return": float(episodes.returns.mean()), "eval_length": float(episodes.lengths.mean())}
        return found | error_entry("eval_sem", episodes.returns)

    def headlines(self, config: Config) -> Mapping[str, str]:
        """The return."""
        return {"eval_return": f"target return {config.task.target_return:g}"}

    def references(self, evaluation: Evaluation) -> dict[str, float]:
        """Mean and best return of the data, if known."""
        if self._data is None:
            return {}
        return {"data, mean": float(self._data.returns.mean()), "data, best": float(self._data.returns.max())}


@lru_cache(maxsize=1)
def _spec_of(data: Dataset) -> EnvironmentSpec:
    return data.spec()


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
