"""MuJoCo trajectories for training: open a file, normalise its observations, cut windows.

Windows of L steps end at every step of every episode: step t of its episode is the last of min(t + 1, L) real steps.
So a uniform draw of windows picks episodes in proportion to their length and a uniform step in each; every step,
including an episode's first, is in L windows, except near the end of an episode.

Near the start of an episode, windows are shorter than L. ``--pad right``, the default, pads them after their steps:

    t = 0      0 . . . . .        The first step is the first of a segment, as when acting, and no step attends to
    t = 1      0 1 . . . .        padding: a causal model does not see later steps, and segments of only padding are
    t = 5      0 1 2 3 4 5        skipped.
    t = 6      1 2 3 4 5 6

``--pad left``, as published, puts zeros before them. Steps then attend to the padding in their segment, which a model
never sees when acting; the published code trained only on full windows.

An unfinished tail, steps after the last terminal or timeout of a file, is dropped, as in the published conversion: its
returns-to-go would be too small. If nothing in a file marks truncations, episodes end after 1000 steps, D4RL's rule;
otherwise, a longer episode is an error (`RATE_model.data.ends`).

Returns-to-go run to the end of an episode, in units of reward; the model's spec scales them (`tasks.RETURN_SCALE`).
Observations stay raw: in training and in acting, the model normalises them by the file's mean and standard deviation,
which are part of its spec.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from MuJoCo.files import DATA_DIRECTORY, find_data, how_to_get
from MuJoCo.tasks import MAX_EPISODE_STEPS, RETURN_SCALE, Robot, Task
from RATE_model.cli.options import changeable
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.episodes import as_trajectory_file
from RATE_model.data.maker import split_datasets
from RATE_model.data.selection import tiling_windows, windows_at_every_step
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec

TRAINING_FRACTION = 0.95
STD_MARGIN = 1e-6
ACTION_MARGIN = 1e-3


@dataclass(frozen=True)
class DataOptions:
    """Which trajectories to train on."""

    # Data: a folder to search, a file, or a Minari dataset's folder; none = `mujoco: data_dir_prefix:` of
    # wandb_config.yaml, else MuJoCo/MuJoCo_data
    data_path: Path | None = changeable(None)
    # Side on which windows near the start of an episode are padded. left: published; the steps of such windows attend
    # to padding
    pad: Literal["right", "left"] = "right"
    # Training windows: those that end at every step of an episode, or only the full ones (published)
    windows: Literal["every", "full"] = "every"
    # Folder for conversions of pickles and Minari datasets; none = next to the original, or MuJoCo/MuJoCo_data if that
    # folder is read-only
    data_dir: Path | None = changeable(None)


def spec_of(robot: Robot, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> EnvironmentSpec:
    """How the model sees a robot: its numbers, actions in [-1, 1].

    Args:
        robot: the robot.
        statistics: mean and standard deviation with which the model normalises observations; None: no normalisation.
    """
    mean, std = (None, None) if statistics is None else (tuple(values.tolist()) for values in statistics)
    return EnvironmentSpec(
        observation_shape=(robot.observation_size,),
        num_actions=robot.action_size,
        continuous=True,
        observation_mean=mean,
        observation_std=std,
        return_scale=1 / RETURN_SCALE,
    )


class MuJoCoFile(TrajectoryFile):
    """A trajectory file of a robot.

    Attributes in addition to those of `TrajectoryFile`:
        statistics: mean and standard deviation (plus 1e-6) of the observations of all whole episodes,
            (observation_size,) float32 each.
        returns: (whole episodes,) float32, in units of reward.

    Raises:
        UserError: as `TrajectoryFile`; also if actions leave [-1, 1] or no episode is whole.
    """

    def __init__(self, path: Path, robot: Robot, *, hint: str = "") -> None:
        super().__init__(
            path,
            observation_shape=(robot.observation_size,),
            observation_dtype="float32",
            action_size=robot.action_size,
            max_episode_steps=MAX_EPISODE_STEPS,
            hint=hint,
        )
        beyond = np.abs(self.actions).max(axis=1) > 1 + ACTION_MARGIN
        if beyond.any():
            step = int(np.argmax(beyond))
            raise self._error(f"has the action {self.actions[step].tolist()} at step {step}; must be from -1 to 1")
        if not self.whole.any():
            raise self._error("has no complete episode: no step is a terminal state or a timeout")
        self.returns = self.episode_returns()
        observations, _ = self.load()
        values = observations[: self.lengths[self.whole].sum()].astype(np.float64)
        mean, std = values.mean(axis=0), values.std(axis=0) + STD_MARGIN
        self.statistics = mean.astype(np.float32), std.astype(np.float32)


@dataclass(frozen=True)
class Data:
    """A task's data, ready for training."""

    file: MuJoCoFile
    training: WindowDataset
    validation: WindowDataset


def open_data(task: Task, data_path: Path | None = None, data_dir: Path | None = None) -> MuJoCoFile:
    """Find, convert if needed, open and check the task's data. Raises UserError; see `find_data`.

    Conversions go to ``data_dir``; None: see `DataOptions`.
    """
    source = find_data(task, data_path)
    path = as_trajectory_file(
        source,
        data_dir or DATA_DIRECTORY,
        prefix="mujoco",
        max_episode_steps=MAX_EPISODE_STEPS,
        beside=data_dir is None,
    )
    hint = f"It is read as {task.name}. {how_to_get(task)}"
    if path != source:
        hint = f"It was converted from '{source}'; delete it to convert it again."
    return MuJoCoFile(path, task.robot, hint=hint)


def load_data(task: Task, options: DataOptions, *, size: int, fraction: float = TRAINING_FRACTION) -> Data:
    """Windows of ``size`` steps (segments x steps of a segment) for training and validation.

    Episodes are split between the two. Training windows end at every step; validation windows do not overlap, so every
    step of an episode is in exactly one.

    Raises:
        UserError: the data is missing or bad, or has too few episodes.
    """
    file = open_data(task, options.data_path, options.data_dir)
    everywhere, tiles = windows_at_every_step(0, file, size), tiling_windows(0, file, size)
    if options.windows == "full":
        everywhere = everywhere[everywhere[:, 2] == size]
        if not len(everywhere):
            raise UserError(
                f"--windows full leaves nothing to train on: no episode of '{file.path}' has {size} steps (--segments "
                "times --context_length). Use --windows every."
            )
    # The model sees padding on the left: as published, it is 0 after normalisation.
    shown = {"size": size, "pad": options.pad, "blank": file.statistics[0]}
    return Data(file, *split_datasets([file], everywhere, tiles, fraction=fraction, **shown))
