"""Our own data in the layout of D4RL's files, from policies trained here.

    python3 MuJoCo/generate_dataset.py --env hopper --dataset medium

PPO (`RATE_model.data.ppo`) trains a policy, and the stochastic policy acts, in Gymnasium's v4 environments. The kinds
of data are those of `RATE_model.data.policies`; a policy is medium if its training episodes reach the mean return of
D4RL's medium data, about a third of an expert's score.

Policies are saved in the folder `policies` next to the data: a second dataset of a robot trains only what is missing.

A file holds whole episodes only, with at least --steps steps in total: D4RL's observations, actions, rewards, terminals
and timeouts, and the simulator's states before each action (infos/qpos, infos/qvel). It omits D4RL's
next_observations. Its attributes record the training steps and episode returns of every policy.
"""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from MuJoCo.files import data_directory, generated_name
from MuJoCo.tasks import MAX_EPISODE_STEPS, ROBOTS, DatasetName, Robot, RobotName, Task, make_environment
from RATE_model.cli.limits import MAX_EPISODE_STEPS as MAX_COUNT
from RATE_model.cli.limits import EpisodeSteps, Range, Ranged
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.data.policies import PolicyData
from RATE_model.data.ppo import NUM_ENVIRONMENTS, ROUND_STEPS, PPOTraining
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.system.locks import making
from RATE_model.system.packages import extra

SCRIPT = "python3 MuJoCo/generate_dataset.py"

# Sizes of D4RL's datasets, except for medium-replay.
STEPS = {"medium": 1_000_000, "expert": 1_000_000, "medium-expert": 2_000_000}
REPLAY_STEPS = {"halfcheetah": 202_000, "hopper": 402_000, "walker2d": 302_000}
TRAIN_STEPS = {"medium": 2_000_000, "medium-replay": 2_000_000, "expert": 5_000_000, "medium-expert": 5_000_000}
# Initial log standard deviation of actions. The stochastic policy acts in our data, and noise slows HalfCheetah down:
# from 0 it learns a third as fast. From -1, Hopper does not learn to hop.
_LOG_STD = {"halfcheetah": -1.0, "hopper": 0.0, "walker2d": 0.0}


def training_of(robot: Robot, seed: int = 0, round_steps: int = ROUND_STEPS) -> PPOTraining:
    """The training settings for a robot's policies."""
    return PPOTraining(
        name=robot.name,
        make=partial(make_environment, robot),
        seed=seed,
        round_steps=round_steps,
        log_std_init=_LOG_STD[robot.name],
        about={"robot": robot.name},
        install=extra("mujoco"),
    )


@dataclass(frozen=True)
class GenerateOptions(Ranged):
    """What to make."""

    # Robot
    env: RobotName = "hopper"
    # Kind of data
    dataset: DatasetName = "medium"
    # Minimum number of steps in the file; episodes are whole. none = as many as in D4RL's
    steps: EpisodeSteps | None = None
    # Maximum training steps; none = 2 million for medium and medium-replay, 5 million with expert
    train_steps: EpisodeSteps | None = None
    # Mean return at which a policy counts as medium; none = the mean of D4RL's medium data
    medium_return: float | None = None
    # Seed of the training and of the episodes
    seed: Annotated[int, Range(0, MAX_COUNT)] = 0
    # Training steps between saved policies
    round_steps: Annotated[int, Range(16 * NUM_ENVIRONMENTS, MAX_COUNT)] = ROUND_STEPS
    # Folder for the file and the policies; none = `mujoco: data_dir_prefix:` of wandb_config.yaml, else
    # MuJoCo/MuJoCo_data
    data_path: Path | None = None
    # Replace an existing file
    overwrite: Boolean = False

    @property
    def robot(self) -> Robot:
        """The selected robot."""
        return ROBOTS[self.env]

    @property
    def path(self) -> Path:
        """The file to make."""
        return data_directory(self.data_path) / generated_name(Task(self.robot, self.dataset, 0.0))


def generate(options: GenerateOptions) -> Path:
    """Train missing policies and make the file; returns its path.

    Raises:
        UserError: the file exists and may not be replaced, a package is missing, or something cannot be written.
    """
    robot = options.robot
    with making(options.path, overwrite=options.overwrite) as wanted:
        if wanted:
            make_environment(robot).close()  # fails before anything is trained if a package is missing
            data = PolicyData(
                training_of(robot, options.seed, options.round_steps),
                data_directory(options.data_path) / "policies",
                options.dataset,
                goal=robot.medium_return if options.medium_return is None else options.medium_return,
                budget=options.train_steps or TRAIN_STEPS[options.dataset],
                steps=options.steps or STEPS.get(options.dataset) or REPLAY_STEPS[options.env],
                seed=options.seed,
            )
            data.write(
                options.path,
                attributes=_attributes(robot, data),
                state=_state,
                figures=lambda returns: {"normalised_score": float(robot.normalised_score(returns.mean()))},
            )
    return options.path


def _state(environment: Any) -> dict[str, np.ndarray]:
    """The simulator's state."""
    data = environment.unwrapped.data
    return {"qpos": data.qpos.copy(), "qvel": data.qvel.copy()}


def describe(path: Path, robot: Robot) -> str:
    """A one-line description of a file made here."""
    with TrajectoryFile(path) as file:
        mean, std = file.attributes["return_mean"], file.attributes["return_std"]
        return (
            f"{path}: {file.num_steps} steps in {file.num_episodes} episodes, return {mean:.0f}, standard deviation "
            f"{std:.0f} (normalised score {robot.normalised_score(mean):.1f}), {path.stat().st_size / 1e6:.0f} MB"
        )


def _attributes(robot: Robot, data: PolicyData) -> dict[str, Any]:
    """The file's attributes."""
    return {
        "environment": robot.environment_id(),
        "dataset": data.kind,
        "generator": "PPO, stochastic policies",
        "seed": data.seed,
        "medium_return": data.goal,
        "most_training_steps": data.budget,
        "settings": data.training.settings | {"round_steps": data.training.round_steps},
        "packages": {name: importlib.metadata.version(name) for name in ("gymnasium", "mujoco", "torch")},
        "episode_steps": MAX_EPISODE_STEPS,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Make the requested file; see the module."""
    with exit_on_user_error():
        options = parse_options(
            GenerateOptions,
            argv=argv,
            prog=SCRIPT,
            description="Make MuJoCo data by PPO.",
            aliases={"data_dir": "data_path"},
        )
        try:
            path = generate(options)
        except KeyboardInterrupt:
            print("The policies trained so far are kept, the file was not made.", file=sys.stderr)
            raise
        print(describe(path, options.robot))


if __name__ == "__main__":
    main()
