"""Many mazes side by side, on all cores."""

from functools import partial

import gymnasium
import numpy as np

from MemoryMaze.MemoryMaze_src.env import (
    DEFAULT_SIZE,
    NUM_ACTIONS,
    OBSERVATION_SHAPE,
    SEED_LIMIT,
    MemoryMazeEnv,
    check_arguments,
)
from RATE_model.acting.vector import FrozenVectorEnv
from RATE_model.system.processes import available_cores


class MemoryMazeVectorEnv(FrozenVectorEnv):
    """B mazes, each of them a `MemoryMazeEnv`; drawing holds Python's lock, so they are divided among processes.

    Args:
        num_envs: B.
        size, max_steps, privileged, render_mode, view: see `MemoryMazeEnv`.
        workers: processes. 0: the mazes are in this process. None: one per core this process may use.

    Raises:
        UserError: a value is out of range, or (by the first reset) a package is missing or nothing can draw.
    """

    metadata = MemoryMazeEnv.metadata | FrozenVectorEnv.metadata

    def __init__(
        self,
        num_envs: int = 1,
        size: int = DEFAULT_SIZE,
        *,
        max_steps: int | None = None,
        workers: int | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
        view: str = "agent",
    ) -> None:
        limit = check_arguments(size, max_steps, render_mode, view)
        make = partial(
            MemoryMazeEnv, size, max_steps=max_steps, privileged=privileged, render_mode=render_mode, view=view
        )
        super().__init__(
            [make] * num_envs,
            max_steps=limit,
            workers=available_cores() if workers is None else workers,
            spaces=(gymnasium.spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8), gymnasium.spaces.Discrete(NUM_ACTIONS)),
            render_mode=render_mode,
            seeds_below=SEED_LIMIT,
            name="Memory Maze",
        )
        self.size = size
