"""Memory Maze (Pasukonis et al. 2022, arXiv 2210.13383) for Gymnasium: one maze, and many.

A maze of 9x9 cells (also 11, 13, 15) holds three coloured balls (4, 5, 6). The border of the picture shows the colour
of the target ball; touching it gives a reward of 1 and selects another target. The maze stays the same over the
episode, so an agent that remembers where it saw each ball earns more. Only the time limit of 1000 steps ends the
episode (2000, 3000, 4000); an agent that knows the map reaches about 31 balls in 9x9.

Actions: 0 nothing, 1 forward, 2 turn left, 3 turn right, 4 forward and left, 5 forward and right; four per second. The
agent sees (3, 64, 64) uint8, channels red, green, blue first.

An episode depends only on its seed and the actions: pictures and rewards equal those of the package's task.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np

from MemoryMaze.MemoryMaze_src.simulation import IMAGE, SIZES, STEPS_PER_SECOND, VIEW_IMAGE, Maze
from RATE_model.acting.single import SeededEnv
from RATE_model.acting.vector import SeededVectorEnv, register_once
from RATE_model.cli.limits import Check
from RATE_model.errors import UserError
from RATE_model.spec import IMAGES, TANH, EnvironmentSpec

NOOP, FORWARD, LEFT, RIGHT, FORWARD_LEFT, FORWARD_RIGHT = range(6)
NUM_ACTIONS = 6
# The mirror image of each action: a mirrored view of a maze is the view of another maze.
MIRRORED = (NOOP, FORWARD, RIGHT, LEFT, FORWARD_RIGHT, FORWARD_LEFT)
OBSERVATION_SHAPE = (3, IMAGE, IMAGE)
DEFAULT_SIZE = 9
EPISODE_STEPS = {9: 1000, 11: 2000, 13: 3000, 15: 4000}
NAME = "Memory Maze"
SEED_LIMIT = 2**32
# How the model sees it.
SPEC = EnvironmentSpec(observation_shape=OBSERVATION_SHAPE, num_actions=NUM_ACTIONS, conv_padding=2, **IMAGES, **TANH)
VIEWS = ("agent", "top")  # of pictures for people


def env_id(size: int) -> str:
    """The name under which a maze of this size is registered, as ``MemoryMaze-9x9-v0``."""
    return f"MemoryMaze-{size}x{size}-v0"


def check_size(size: int, *, flag: str = "size") -> None:
    """Raise a `UserError` that names the flag if the size does not exist."""
    if size not in SIZES:
        raise UserError(f"--{flag} {size}: Memory Maze has the sizes {', '.join(map(str, SIZES))}.")


Size = Annotated[int, Check(check_size)]


class MemoryMazeEnv(SeededEnv):
    """One maze; see the module for rules and observations. The seed determines maze, start and order of the balls.

    ``info`` is empty, or with ``privileged`` holds what a player must not know, in cells; x grows to the right and y
    upwards in the view from above, and the cell of a position is its floor:

    - ``maze_layout`` (size, size) bool, row y, column x, True = free;
    - ``agent_pos`` (2,), ``agent_dir`` (2,) float64: x and y of the agent, and of the unit vector in which it faces;
    - ``targets_pos`` (n, 2) float64: x and y of the balls; ``target_index`` int: which of them is the target.

    Args:
        size: cells of a side: 9, 11, 13 or 15.
        max_steps: steps until truncation; None: the package's, 1000, 2000, 3000, 4000.
        privileged: fill ``info``.
        render_mode: None, or "rgb_array" for `render`.
        view: what `render` shows by default: "agent", what the agent sees, or "top", the maze from above. (After
            `gymnasium.make`, `render` takes no argument.)

    Raises:
        UserError: a value is out of range, or (by the first reset) a package is missing or nothing can draw.
    """

    # Videos play at four times the agent's speed
    metadata = {"render_modes": ["rgb_array"], "render_fps": 4 * STEPS_PER_SECOND}
    seeds_below = drawn_below = SEED_LIMIT

    def __init__(
        self,
        size: int = DEFAULT_SIZE,
        *,
        max_steps: int | None = None,
        privileged: bool = False,
        render_mode: str | None = None,
        view: str = "agent",
    ) -> None:
        check_size(size)
        steps = EPISODE_STEPS[size] if max_steps is None else max_steps
        super().__init__(NAME, OBSERVATION_SHAPE, NUM_ACTIONS, max_steps=steps, render_mode=render_mode)
        if view not in VIEWS:
            raise UserError(f"{NAME}: view is {view!r}; it must be {' or '.join(map(repr, VIEWS))}.")
        self.size, self._view, self._privileged = int(size), view, privileged
        self._maze: Maze | None = None

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
        if self._maze is None:
            return np.zeros((VIEW_IMAGE, VIEW_IMAGE, 3), dtype=np.uint8)
        return self._maze.view(view)

    def close(self) -> None:
        """Free the maze. The next reset builds another one."""
        maze, self._maze = self._maze, None
        self._truncated = True
        if maze is not None:
            maze.close()

    def _start(self, seed: int, options: dict[str, Any]) -> None:
        self.close()
        # The package's generator of mazes is seeded only when it is made, so only a new task gives the seed's episode.
        self._maze = Maze(self.size, seed, views=self.render_mode is not None)
        self._observe()

    def _advance(self, action: int) -> float:
        assert self._maze is not None
        self._maze.step(action)
        self._observe()
        return self._maze.reward

    def _observe(self) -> None:
        assert self._maze is not None
        self._observation = np.ascontiguousarray(self._maze.image().transpose(2, 0, 1))

    def _info(self) -> dict[str, Any]:
        if not self._privileged or self._maze is None:
            return {}
        return self._maze.state()


class MemoryMazeVectorEnv(SeededVectorEnv):
    """B mazes side by side, each a `MemoryMazeEnv`, divided among processes, as drawing holds Python's lock."""

    name = NAME
    single = MemoryMazeEnv
    computes = True


for _size in SIZES:
    register_once(env_id(_size), f"{__name__}:MemoryMazeEnv", f"{__name__}:MemoryMazeVectorEnv", size=_size)
