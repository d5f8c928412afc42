"""The tasks of D4RL's locomotion suite (Fu et al. 2020, arXiv 2004.07219): data, robots and scores.

`TASKS[env_id]` is the task of the published ``--env_id``:

    env_id  robot        dataset             env_id  robot        dataset
    0       halfcheetah  medium              6       hopper       medium
    1       halfcheetah  medium-replay       7       hopper       medium-replay
    2       halfcheetah  expert              8       hopper       expert
    3       walker2d     medium              9       halfcheetah  medium-expert
    4       walker2d     medium-replay       10      walker2d     medium-expert
    5       walker2d     expert              11      hopper       medium-expert
"""

from __future__ import annotations

import os
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args

import numpy as np

from RATE_model.cli.limits import Check
from RATE_model.errors import UserError
from RATE_model.system.packages import extra, needed

if TYPE_CHECKING:
    import gymnasium

Version = Literal["v4", "v5"]  # of Gymnasium's environments
MAX_EPISODE_STEPS = 1000
RETURN_SCALE = 1000.0
"""The model sees returns-to-go in thousands: `EnvironmentSpec.return_scale` is 1 / RETURN_SCALE."""
RobotName = Literal["halfcheetah", "hopper", "walker2d"]
DatasetName = Literal["medium", "medium-replay", "expert", "medium-expert"]
DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)
Returns = TypeVar("Returns", float, np.ndarray)


@dataclass(frozen=True)
class Robot:
    """A robot and the reference returns of its scores."""

    name: RobotName  # as in D4RL's file names
    gymnasium_name: str  # without the version
    observation_size: int
    action_size: int  # actions lie in [-1, 1]
    _: KW_ONLY
    # Returns of a random and of an expert policy, the 0 and the 100 of D4RL's normalised score
    random_return: float
    expert_return: float
    # Mean return of D4RL's medium dataset, at which the policy of our own stops training
    medium_return: float

    def normalised_score(self, returns: Returns) -> Returns:
        """D4RL's score of undiscounted returns: 0 is a random policy's, 100 an expert's."""
        return 100 * (returns - self.random_return) / (self.expert_return - self.random_return)

    def environment_id(self, version: Version = "v4") -> str:
        """Gymnasium's name. D4RL's dynamics are those of v4; v5 changed details of contacts and rewards."""
        return f"{self.gymnasium_name}-{version}"


HALFCHEETAH = Robot(
    "halfcheetah", "HalfCheetah", 17, 6, random_return=-280.178953, expert_return=12135.0, medium_return=4770.0
)
HOPPER = Robot("hopper", "Hopper", 11, 3, random_return=-20.272305, expert_return=3234.3, medium_return=1422.0)
WALKER2D = Robot("walker2d", "Walker2d", 17, 6, random_return=1.629008, expert_return=4592.3, medium_return=2852.0)
ROBOTS = {robot.name: robot for robot in (HALFCHEETAH, HOPPER, WALKER2D)}


@dataclass(frozen=True)
class Task:
    """A robot, its training data, and the target return in evaluation."""

    robot: Robot
    dataset: DatasetName
    target_return: float  # in units of reward

    @property
    def name(self) -> str:
        """The task's name, e.g. hopper-medium-replay."""
        return f"{self.robot.name}-{self.dataset}"


TASKS = (
    *(Task(HALFCHEETAH, dataset, 6000.0) for dataset in DATASETS[:3]),
    *(Task(WALKER2D, dataset, 5000.0) for dataset in DATASETS[:3]),
    *(Task(HOPPER, dataset, 3600.0) for dataset in DATASETS[:3]),
    Task(HALFCHEETAH, "medium-expert", 12000.0),
    Task(WALKER2D, "medium-expert", 5000.0),
    Task(HOPPER, "medium-expert", 3600.0),
)


def task_of(env_id: int, *, flag: str = "env_id") -> Task:
    """The task of the flag ``--env_id``. Raises UserError for an unknown number."""
    if not 0 <= env_id < len(TASKS):
        listed = ", ".join(f"{number} {task.name}" for number, task in enumerate(TASKS))
        raise UserError(f"--{flag} {env_id}: must be one of {listed}")
    return TASKS[env_id]


TaskNumber = Annotated[int, Check(task_of)]


def make_environment(robot: Robot, version: Version = "v4", **rendering: Any) -> gymnasium.Env:
    """The robot's Gymnasium environment, of at most 1000 steps. Raises UserError if MuJoCo cannot be loaded.

    ``rendering`` is passed to `gymnasium.make`: render_mode, width, height, camera_name.
    """
    try:
        mujoco = needed(f"{robot.environment_id(version)} needs MuJoCo", "mujoco", install=extra("mujoco"))
    except UserError:
        raise
    except Exception as error:  # it loads the backend named by MUJOCO_GL, whose absence raises various errors
        backend = os.environ.get("MUJOCO_GL")
        raise UserError(f"MuJoCo cannot be loaded with MUJOCO_GL={backend} ({error}): unset MUJOCO_GL") from error
    import gymnasium

    handler = mujoco.get_mju_user_warning()
    # MuJoCo warns that HalfCheetah's model is outdated, on the terminal and in a file MUJOCO_LOG.TXT.
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings():
            # D4RL's scores refer to v4, so silence the warning about a newer version.
            warnings.filterwarnings("ignore", message=".*out of date")
            return gymnasium.make(robot.environment_id(version), disable_env_checker=True, **rendering)
    finally:
        mujoco.set_mju_user_warning(handler)
