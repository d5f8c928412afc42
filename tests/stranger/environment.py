"""CartPole that shows positions alone: how fast cart and pole move has to be remembered."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from RATE_model.acting.rollout import Episodes
from RATE_model.cli.options import changeable
from RATE_model.cli.settings import ExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.own.dataset import FIRST_SEED, Dataset
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.locks import ensure

HERE = Path(__file__).resolve().parent
STEPS = 200
SPEC = EnvironmentSpec(observation_shape=(2,), num_actions=2, return_scale=1 / STEPS)


class Positions(gymnasium.ObservationWrapper):
    """The positions of cart and pole, without their velocities."""

    def __init__(self, environment: gymnasium.Env) -> None:
        super().__init__(environment)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return observation[[0, 2]]


@dataclass(frozen=True)
class DataOptions:
    """What is collected."""

    # Episodes
    episodes: int = 200
    # Probability of a random action
    noise: float = 0.2
    # Directory of the data; none = beside this module
    data_dir: Path | None = changeable(None)


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """All flags of the train script."""

    task: SegmentOptions = field(default_factory=SegmentOptions)
    data: DataOptions = field(default_factory=DataOptions)


def collect(options: DataOptions, path: Path) -> None:
    """Balance the pole by all four numbers of its state, and record two of them."""
    rng, scene = np.random.default_rng(0), gymnasium.make("CartPole-v1", max_episode_steps=STEPS)

    def policy(observation: np.ndarray) -> int:
        if rng.random() < options.noise:
            return int(rng.integers(2))
        return int(np.dot(scene.get_wrapper_attr("state"), [0.02, 0.1, 1.0, 0.5]) > 0)

    Dataset.collect(lambda **_: Positions(scene), policy, options.episodes).to_hdf5(path)


class CartPole(Environment):
    """See the module."""

    name = "CartPole without velocities"
    folder = HERE
    checkpoints = HERE / "cartpole_checkpoints"
    train_script = "tests/stranger/train_cartpole.py"
    inference_script = "tests/stranger/inference_cartpole.py"
    config = Config
    data_seeds = range(FIRST_SEED, 2**31)

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """Two numbers, two actions."""
        return SPEC

    def load(self, config: Config) -> TrainingData:
        """Windows of the episodes."""
        options = config.data
        path = (options.data_dir or HERE / "cartpole_data") / f"n{options.episodes}_noise{options.noise:g}.h5"
        ensure(path, lambda: collect(options, path))
        data = Dataset.from_hdf5(path, environment=lambda **_: self.make(None, PlayOptions()))
        windows = lru_cache(lambda segments: data.windows(segments * config.context_length))
        return TrainingData(windows, [config.segments], SPEC)

    def make(self, case: None, options: PlayOptions, *, render_mode: str | None = None) -> gymnasium.Env:
        """One pole."""
        return Positions(gymnasium.make("CartPole-v1", max_episode_steps=STEPS, render_mode=render_mode))

    def metrics(
        self, played: Mapping[None, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Steps that the pole stood."""
        return {"mean_return": float(played[None].returns.mean())}

    def headlines(self, config: Config) -> Mapping[str, str]:
        """Those."""
        return {"mean_return": f"of at most {STEPS}"}


ENVIRONMENT = CartPole()
