"""Memory Maze (Pasukonis et al. 2022, arXiv 2210.13383) for Gymnasium: one maze, and many.

A maze of 9x9 cells (also 11, 13, 15) holds three coloured balls (4, 5, 6). The border of the picture shows the colour
of the one to be found next; touching it is worth 1 and another is asked for. The maze stays the same over the
episode, so an agent that remembers where it saw what gets more. Nothing ends the episode but the time limit of 1000
steps (2000, 3000, 4000); an agent that knows the map reaches about 31 balls in 9x9.

Actions: 0 nothing, 1 forward, 2 turn left, 3 turn right, 4 forward and left, 5 forward and right; four a second. The
agent sees (3, 64, 64) uint8, channels red, green, blue first.

An episode is a function of its seed and of the actions: the pictures and rewards of the package's task of that seed.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np

from MemoryMaze.MemoryMaze_src.simulation import IMAGE, SIZES, STEPS_PER_SECOND, Maze
from RATE_model.acting.vector import FrozenVectorEnv, register_once
from RATE_model.errors import UserError
from RATE_model.system.processes import available_cores

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)
NUM_ACTIONS = 6
# Each action in the mirror: what is seen of a maze, left for right, is what is seen of another.
MIRRORED = (NOOP, FORWARD, RIGHT, LEFT, FORWARD_RIGHT, FORWARD_LEFT)
OBSERVATION_SHAPE = (3, IMAGE, IMAGE)
DEFAULT_SIZE = 9
EPISODE_STEPS = {9: 1000, 11: 2000, 13: 3000, 15: 4000}
NUM_TARGETS = {9: 3, 11: 4, 13: 5, 15: 6}
NAME = "Memory Maze"
SEED_LIMIT = 2**32
VIEWS = ("agent", "top")  # of pictures for people


def env_id(size: int) -> str:
    """The name under which a maze of this size is registered, as ``MemoryMaze-9x9-v0``."""
    return f"MemoryMaze-{size}x{size}-v0"


def check_size(size: int, *, flag: str = "size") -> None:
    """Raise a `UserError` that names the flag for a size that there is not."""
    if size not in SIZES:
        raise UserError(f"--{flag} {size}: Memory Maze has the sizes {', '.join(map(str, SIZES))}.")


def check_seed(seed: int) -> None:
    """Raise a ValueError for a seed out of range."""
    if not 0 <= seed < SEED_LIMIT:
        raise ValueError(f"a seed must lie between 0 and 2**32 - 1, got {seed}")


def check_arguments(size: int, max_steps: int | None, render_mode: str | None, view: str) -> int:
    """What both environments are made with, checked: the steps until truncation."""
    check_size(size)
    if max_steps is not None and max_steps < 1:
        raise UserError(f"Memory Maze: max_steps is {max_steps}; it must be at least 1.")
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"Memory Maze: render_mode is {render_mode!r}; it must be 'rgb_array' or None.")
    if view not in VIEWS:
        raise UserError(f"Memory Maze: view is {view!r}; it must be {' or '.join(map(repr, VIEWS))}.")
    return EPISODE_STEPS[size] if max_steps is None else int(max_steps)


class MemoryMazeEnv(gymnasium.Env):
    """One maze; rules and observations: see the module.

    A finished episode stays frozen until the next reset: same observation, reward 0, truncated. ``info`` is empty, or
    with ``privileged`` holds what a player is not to know, in cells; x grows to the right and y upwards in the view
    from above, and the cell of a position is its floor:

    - ``maze_layout`` (size, size) bool, row y, column x, True = free;
    - ``agent_pos`` (2,), ``agent_dir`` (2,) float64: x and y of the agent, and of the unit vector in which it faces;
    - ``targets_pos`` (n, 2) float64: x and y of the balls; ``target_index`` int: which of them is asked for.

    Args:
        size: cells of a side: 9, 11, 13 or 15.
        max_steps: steps until truncation; None: the package's, 1000, 2000, 3000, 4000.
        privileged: tell ``info``.
        render_mode: None, or "rgb_array" for `render`.
        view: what `render` shows unless told: "agent", what the agent sees, or "top", the maze from above. (What
            `gymnasium.make` returns cannot be told.)

    Raises:
        UserError: a value is out of range, or (by the first reset) a package is missing or nothing can draw.
    """

    # Videos are four times as fast as the agent lives
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4 * STEPS_PER_SECOND}

    def __init__(
        self,
        size: int = DEFAULT_SIZE,
        *,
        max_steps: int | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
        view: str = "agent",
    ) -> None:
        self.max_steps = check_arguments(size, max_steps, render_mode, view)
        self.size = int(size)
        self.render_mode = render_mode
        self._view = view
        self.observation_space = gymnasium.spaces.Box(0, 255, OBSERVATION_SHAPE, np.uint8)
        self.action_space = gymnasium.spaces.Discrete(NUM_ACTIONS)
        self._privileged = privileged
        self._maze: Maze | None = None
        self._observation = np.zeros(OBSERVATION_SHAPE, dtype=np.uint8)
        self._steps, self._truncated = 0, True  # nothing moves before the first reset

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode of ``seed``, or a random one: a new maze.

        Args:
            seed: of maze, start and order of the balls, 0 to 2**32 - 1. It also seeds `np_random`, as Gymnasium asks
                for.
            options: none.

        Returns:
            The observation (3, 64, 64) uint8 and info.

        Raises:
            ValueError: the seed is out of range.
            UserError: a package is missing, or nothing can draw.
        """
        if seed is not None:
            check_seed(seed)
        super().reset(seed=seed)
        self._start(int(self.np_random.integers(SEED_LIMIT)) if seed is None else int(seed))
        return self._observation.copy(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one action. Returns observation (3, 64, 64) uint8, reward, terminated (False), truncated, info.

        Raises:
            ValueError: the action is not 0 to 5.
        """
        if not 0 <= action < NUM_ACTIONS:
            raise ValueError(f"action must lie between 0 and {NUM_ACTIONS - 1}, got {action}")
        reward = self._advance(int(action))
        return self._observation.copy(), reward, False, self._truncated, self._info()

    def render(self, view: str | None = None) -> np.ndarray | None:
        """A picture for people within a border of the target's colour, (256, 256, 3) uint8.

        Args:
            view: "agent", what the agent sees, or "top", the maze from above with an arrow on the agent; None: that of
                the constructor.

        Returns:
            The picture, black before the first reset; None without a render mode.

        Raises:
            ValueError: there is no such view.
        """
        view = self._view if view is None else view
        if view not in VIEWS:
            raise ValueError(f"view must be one of {', '.join(VIEWS)}, got {view!r}")
        if self.render_mode is None:
            return None
        return blank_picture() if self._maze is None else self._maze.view(view)

    def close(self) -> None:
        """Free the maze. A reset builds another one."""
        maze, self._maze = self._maze, None
        self._truncated = True
        if maze is not None:
            maze.close()

    def _start(self, seed: int) -> None:
        """Begin the episode of a seed, which is in range."""
        self.close()
        # The package's generator of mazes is seeded once, where it is made: only a new task gives the seed's episode.
        self._maze = Maze(self.size, seed, views=self.render_mode is not None)
        self._steps, self._truncated = 0, False
        self._observe()

    def _advance(self, action: int) -> float:
        """One step of the rules, and its reward; nothing happens once the episode is over."""
        maze = self._maze
        if self._truncated or maze is None:
            return 0.0
        maze.step(action)
        self._observe()
        self._steps += 1
        self._truncated = self._steps >= self.max_steps
        return maze.reward

    def _observe(self) -> None:
        assert self._maze is not None
        self._observation = np.ascontiguousarray(self._maze.image().transpose(2, 0, 1))

    def _info(self) -> dict[str, Any]:
        if not self._privileged or self._maze is None:
            return {}
        maze = self._maze
        return {
            "maze_layout": maze.layout,
            "agent_pos": maze.position,
            "agent_dir": maze.direction,
            "targets_pos": maze.targets,
            "target_index": maze.target,
        }


def blank_picture() -> np.ndarray:
    """What `MemoryMazeEnv.render` returns before the first reset."""
    from MemoryMaze.MemoryMaze_src.simulation import VIEW_IMAGE

    return np.zeros((VIEW_IMAGE, VIEW_IMAGE, 3), dtype=np.uint8)


class MemoryMazeVectorEnv(FrozenVectorEnv):
    """B mazes side by side; drawing holds Python's lock, so they are divided among processes.

    Args:
        num_envs: B.
        size, render_mode, options: of every maze, see `MemoryMazeEnv`.
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
        workers: int | None = None,
        render_mode: str | None = None,
        **options: Any,
    ) -> None:
        example = MemoryMazeEnv(size, render_mode=render_mode, **options)  # nothing is built before its first reset
        super().__init__(
            [partial(MemoryMazeEnv, size, render_mode=render_mode, **options)] * num_envs,
            max_steps=example.max_steps,
            workers=available_cores() if workers is None else workers,
            spaces=(example.observation_space, example.action_space),
            render_mode=render_mode,
            seeds_below=SEED_LIMIT,
            name="Memory Maze",
        )
        self.size = size


for _size in SIZES:
    register_once(env_id(_size), f"{__name__}:MemoryMazeEnv", f"{__name__}:MemoryMazeVectorEnv", size=_size)
