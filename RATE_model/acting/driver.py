"""DAgger data collection: a trained agent acts while an expert labels every step with its own action.

Ross, Gordon and Bagnell 2011, "A reduction of imitation learning and structured prediction to no-regret online
learning" (arXiv 1011.0686). An imitating agent reaches states that no expert episode contains; when it drives, the
expert's labels cover exactly these states.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from RATE_model.data.arrays import info_rows
from RATE_model.errors import UserError

if TYPE_CHECKING:
    from RATE_model.environments.contract import Evaluation

# Seeds of driven episodes, disjoint from those of the experts. Two agents share seeds with probability 1/1000.
_FIRST_SEED, _SEEDS_PER_DRIVER, _DRIVERS = 100_000_000, 1_000_000, 1000


@dataclass(frozen=True)
class DriverChoice:
    """The agent that drives, fixed even if its run changes later.

    Attributes:
        run: name of its run.
        step: step of its checkpoint.
        digest: digest of its weights.
        acting: the run's flags that affect its actions, as JSON; some may change when a run is resumed.
        checkpoint: the checkpoint's directory.
    """

    run: str
    step: int
    digest: str
    acting: str
    checkpoint: str

    @classmethod
    def of(cls, path: Path) -> DriverChoice:
        """The newest checkpoint at a path. Raises UserError if there is none."""
        from RATE_model.cli.evaluation import flags_of  # late: imports torch
        from RATE_model.cli.settings import ACTING_FLAGS
        from RATE_model.training.checkpoints import MANIFEST, MODEL, resolve_checkpoint, run_of

        checkpoint = resolve_checkpoint(path).absolute()
        if not (step := checkpoint.stem.removeprefix("step_")).isdecimal():
            raise UserError(f"--driver {path}: not in a run; give a run directory, or one of its step_* directories")
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        flags = flags_of(checkpoint)
        acting = json.dumps({name: flags[name] for name in sorted({*ACTING_FLAGS, "use_argmax"} & flags.keys())})
        return cls(run_of(checkpoint).name, int(step), manifest["files"][MODEL], acting, str(checkpoint))

    @property
    def name(self) -> str:
        """Used in file names; depends on its weights and on how it acts."""
        return f"driver-{self._mark}"

    @property
    def _mark(self) -> str:
        return hashlib.sha256((self.digest + self.acting).encode()).hexdigest()[:8]

    @property
    def attributes(self) -> dict[str, str | int]:
        """Attributes for data files."""
        return {
            "driver": self.run,
            "driver_step": self.step,
            "driver_weights": self.digest,
            "driver_acting": self.acting,
        }

    @property
    def first_seed(self) -> int:
        """The first seed of the episodes that it drives."""
        return _FIRST_SEED + int(self._mark, 16) % _DRIVERS * _SEEDS_PER_DRIVER

    def driver(self, environment: str, seed: int) -> Driver:
        """A driver at the start of an episode.

        Args:
            environment: name of the environment that data is made in.
            seed: seed for sampling its actions, if it samples.

        Raises:
            UserError: the agent was trained in another environment, or its checkpoint is damaged.
        """
        return Driver(_evaluation(self.checkpoint, self.acting, environment), seed)


def driver_attributes(choice: DriverChoice | None) -> dict[str, str | int]:
    """`DriverChoice.attributes`; empty without a driver."""
    return {} if choice is None else choice.attributes


def generator_of(choice: DriverChoice | None, expert: str) -> str:
    """What a data file names as its generator: the expert, or the agent that the expert labels."""
    return expert if choice is None else f"trained agent, labelled by {expert}"


class Driver:
    """A trained agent in one episode, with the evaluation settings of its run."""

    def __init__(self, evaluation: Evaluation, seed: int) -> None:
        environment, target = evaluation.environment, evaluation.targets[0]
        self._told = [kind.name for kind in evaluation.agent.spec.oracle]
        acting = replace(environment.acting(evaluation, target), seed=seed)
        self._player = environment.player(evaluation, acting.actor(evaluation.agent, 1))

    def act(self, observation: np.ndarray, reward: float, infos: Mapping[str, Any] | None = None) -> int:
        """The action on an observation, after the reward of the action before.

        Args:
            observation, reward: of the one environment.
            infos: what data notes of the step, by name; an oracle is told what it saw in training.

        Raises:
            UserError: an oracle misses something.
        """
        from RATE_model.acting.rollout import torch_threads  # torch comes with it

        if missing := [name for name in self._told if name not in (infos or {})]:
            raise UserError(f"--driver: is an oracle that sees infos/{missing[0]}, which is not noted while it drives")
        seen = {name: info_rows(np.asarray((infos or {})[name])[None], name, 1, "the driver") for name in self._told}
        with torch_threads(1):  # one process per core plays
            return int(self._player.act(observation[None], np.array([reward]), *([seen] if seen else []))[0])


@lru_cache(maxsize=1)
def _evaluation(checkpoint: str, acting: str, name: str) -> Evaluation:
    """The evaluation of a checkpoint's run, with these flags of acting; loaded once per process."""
    from RATE_model.cli.evaluation import evaluation_of_run
    from RATE_model.environments.find import environment_of
    from RATE_model.training.checkpoints import run_of

    path = Path(checkpoint)
    environment = environment_of(run_of(path))
    if environment.name != name:
        raise UserError(f"--driver {run_of(path)}: trained in {environment.name}, but data is made in {name}")
    return evaluation_of_run(environment, path, flags=json.loads(acting))
