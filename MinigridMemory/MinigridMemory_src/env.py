"""Minigrid-Memory (Chevalier-Boisvert et al. 2023, arXiv 2306.13831), as used in the RATE paper.

A green key or ball lies in the room at the west end of a corridor; at the east end the corridor forks, and one arm of
the fork shows a key, the other a ball. The agent starts anywhere in the corridor, facing east. Stepping into the arm
that shows the same object as the room is a success; the other arm also ends the episode.

    # . . . . . . . # . #     # wall   O object of the room (the cue)   > agent
    # # # # # . . . # A #     A, B  the objects at the ends of the fork's two arms
    # O . . # # # # # a #     a, b  the cells that end the episode
    # . . . . . . > . . #     <- row of the corridor: the middle row of a grid of ``size`` x ``size`` cells
    # . . . # # # # # b #
    # # # # # . . . # B #
                    ^ corridor end: fixed at ``size - 3``, or drawn from 4 to ``size - 3`` (random)

Actions: 0 turn left, 1 turn right, 2 go forward. The agent sees the 3x3 cells in front of it, itself in the middle of
the last row, as an image of 28-pixel tiles, (3, 84, 84) uint8: channels first, the way it faces is up. This view never
shows more than the cue or one end of the fork, so the agent has to remember the object along the whole corridor.

An episode is truncated after ``max_steps`` steps. A success after t steps is worth ``1 - 0.9 t / 845``, the scale of
the published environment, which enlarged the maze of size 13 and left its time limit of 5 * 13**2 steps; where our
limit is longer, the reward never falls below the 0.1 of step 845. Everything else is worth 0.

The layout is a function of the seed, with the generator of the installed Minigrid (``layouts="own"``) or that of the
published system (``layouts="published"``), which makes different mazes from the same seeds.
"""

from __future__ import annotations

import functools
import hashlib
from types import ModuleType
from typing import Annotated, Any, Literal, get_args

import numpy as np

from RATE_model.acting.single import SeededEnv
from RATE_model.acting.vector import SeededVectorEnv, register_once
from RATE_model.cli.limits import Check
from RATE_model.errors import UserError
from RATE_model.spec import IMAGES, EnvironmentSpec
from RATE_model.system.packages import extra, needed

NAME = "Minigrid-Memory"
ENV_ID = "MinigridMemory-v0"
LEFT, RIGHT, FORWARD = range(3)
NUM_ACTIONS = 3
CUES = ("key", "ball")
VIEW = 3  # cells that the agent sees, in each direction
TILE = 28  # pixels of a cell
OBSERVATION_SHAPE = (3, VIEW * TILE, VIEW * TILE)
MIN_SIZE, MAX_SIZE = 7, 2001
DEFAULT_SIZE = 31
PUBLISHED_CAP = 96
REWARD_STEPS = 845
LEAST_REWARD = 0.1

# How the model sees it. The published model had a fourth action, which denoted padding in its action table and could be
# sampled when acting. Here the table keeps its four rows, but the head predicts three actions.
SPEC = EnvironmentSpec(
    observation_shape=OBSERVATION_SHAPE, num_actions=NUM_ACTIONS, action_embeddings=NUM_ACTIONS + 1, **IMAGES
)

_UNLIMITED = 2**31  # time limit of the wrapped maze: only ours ends episodes


def expert_cap(size: int) -> int:
    """A time limit in steps that suffices for the expert in a maze of this size, for every layout and start.

    The longest path of an agent that has to look: start at the last cell E = size - 3 of a full corridor, turn round
    (2), walk west until the cue shows at column 3 (E - 3), turn round (2), walk to the fork (E - 2), turn to one arm
    (1), find that it is the wrong one (2), enter (1): 2 E + 3 = 2 size - 3 steps; one fewer for our expert, which
    remembers what it sees of the fork while turning there. The limit adds 17 steps for detours, as many as the
    published one, 96, leaves at size 41, so that ``expert_cap(41) == PUBLISHED_CAP``.
    """
    return 2 * size + 14


def check_size(size: int, *, flag: str = "size") -> None:
    """Raise a `UserError` that names the flag if the size is invalid: even, below 7 or above 2001."""
    if not MIN_SIZE <= size <= MAX_SIZE or size % 2 == 0:
        raise UserError(f"--{flag} {size}: the size of a maze must be odd and {MIN_SIZE} to {MAX_SIZE}")


# Where layouts come from. own: the generator of the installed Minigrid; published: that of gym 0.18.3 and gym-minigrid
# 1.0.2. The same seed gives different mazes.
Layouts = Literal["own", "published"]
Size = Annotated[int, Check(check_size)]
Sizes = Annotated[tuple[int, ...], Check(check_size)]


def frames_of_views(views: np.ndarray) -> np.ndarray:
    """Render encoded views, (..., 3, 3, 3) uint8, as observations, (..., 3, 84, 84) uint8, each picture once."""
    views = np.ascontiguousarray(views, dtype=np.uint8)
    leading = views.shape[:-3]
    flat = views.reshape(-1, VIEW**2 * 3)
    distinct, inverse = np.unique(flat, axis=0, return_inverse=True)
    frames = np.array([_frame(view.tobytes()) for view in distinct], dtype=np.uint8).reshape(-1, *OBSERVATION_SHAPE)
    return frames[inverse.reshape(-1)].reshape(*leading, *OBSERVATION_SHAPE)


@functools.lru_cache(maxsize=1024)  # a few dozen views exist; rendering one costs as much as a step
def _frame(view: bytes) -> np.ndarray:
    """The observation of one encoded view, (3, 84, 84) uint8, read-only. Unseen cells have their own code."""
    grid, visible = minigrid_package().core.grid.Grid.decode(np.frombuffer(view, dtype=np.uint8).reshape(VIEW, VIEW, 3))
    image = grid.render(TILE, agent_pos=(VIEW // 2, VIEW - 1), agent_dir=3, highlight_mask=visible)
    frame = np.ascontiguousarray(image.transpose(2, 0, 1))
    frame.setflags(write=False)
    return frame


def minigrid_package() -> ModuleType:
    """The module of the maze, imported when the first maze is built."""
    modules = ("minigrid", "minigrid.core.grid", "minigrid.core.world_object", "minigrid.envs.memory")
    sentence = "Minigrid-Memory needs the package minigrid"
    return needed(sentence, *modules, install=extra("minigrid"), with_reason=True)


class MinigridMemoryEnv(SeededEnv):
    """One maze; rules and observations: see the module. The seed determines the layout.

    ``info`` holds ``success`` (bool). The option ``cue`` of ``reset``, "key" or "ball", overrides the seed's object in
    the room.

    Attributes:
        view: (3, 3, 3) uint8, what the picture shows, as Minigrid encodes it: ``[across, ahead]`` from left to right
            and from far to near, the agent at ``[1, 2]``; type (0 unseen), colour, state of each cell.
        cue: "key" or "ball", the object of the room.
        arm: "north" or "south", where the same object lies at the fork.
        success: whether the episode ended in that arm.

    Args:
        size: rows and columns of the grid; odd, 7 to 2001.
        random_length: draw the end of the corridor; False: use all columns.
        max_steps: steps until truncation.
        layouts: "own" or "published"; see `Layouts`.
        render_mode: None, or "rgb_array" for `render`.

    Raises:
        UserError: a value is out of range, or the package minigrid is missing.
    """

    def __init__(
        self,
        size: int = DEFAULT_SIZE,
        *,
        random_length: bool = True,
        max_steps: int = PUBLISHED_CAP,
        layouts: Layouts = "own",
        render_mode: str | None = None,
    ) -> None:
        check_size(size)
        super().__init__(NAME, OBSERVATION_SHAPE, NUM_ACTIONS, max_steps=max_steps, render_mode=render_mode)
        if layouts not in get_args(Layouts):
            raise UserError(f"{NAME}: layouts is {layouts!r}; it must be 'own' or 'published'.")
        self.size = int(size)
        self.random_length = bool(random_length)
        self.layouts = layouts
        # The view size is an argument: Minigrid's wrappers would declare this shape and return another.
        self._maze = minigrid_package().envs.memory.MemoryEnv(
            size=self.size, random_length=self.random_length, max_steps=_UNLIMITED, agent_view_size=VIEW
        )
        self.view = np.zeros((VIEW, VIEW, 3), dtype=np.uint8)
        self.cue, self.arm, self.success = "", "", False

    @property
    def pose(self) -> tuple[int, int, int]:
        """Column and row of the agent, and its direction: 0 east, 1 south, 2 west, 3 north."""
        x, y = self._maze.agent_pos
        return int(x), int(y), int(self._maze.agent_dir)

    @property
    def horizons(self) -> tuple[int, ...]:
        """The correlation horizons of the task (Cherepanov et al. 2024, arXiv 2412.06531), shortest first: steps from
        the last sight of the cue to the turn into the arm last looked at, inclusive and without detours.

        A corridor that ends at column E has E + 2. An agent with a shorter context than the first one needs memory.
        """
        return tuple(range(6, self.size)) if self.random_length else (self.size - 1,)

    def render(self) -> np.ndarray | None:
        """The maze around the corridor, (H, W, 3) uint8, with the agent's view lit; None without a render mode."""
        if self.render_mode is None:
            return None
        from MinigridMemory.MinigridMemory_src.render import render_maze

        return render_maze(self._maze)

    def _start(self, seed: int, options: dict[str, Any]) -> None:
        """Start the episode of a seed, with its own cue or the one in the options."""
        if self.layouts == "published":
            self._maze.np_random = PublishedDraws(seed)
            first, _ = self._maze.reset()
        else:
            first, _ = self._maze.reset(seed=seed)
        self.cue = self._maze.grid.get(1, self.size // 2 - 1).type
        if (cue := options.get("cue")) not in (None, self.cue):
            first = self._exchange_cue(cue)
        self._see(first["image"])
        self.arm = "north" if self._maze.success_pos[1] < self.size // 2 else "south"
        self.success = False

    def _exchange_cue(self, cue: str) -> dict[str, Any]:
        """Put the other object into the room and the reward into the other arm; returns the new first view."""
        if cue not in CUES:
            raise ValueError(f"cue must be one of {', '.join(CUES)}, got {cue!r}")
        maze = self._maze
        maze.grid.set(1, self.size // 2 - 1, getattr(minigrid_package().core.world_object, cue.capitalize())("green"))
        maze.success_pos, maze.failure_pos = maze.failure_pos, maze.success_pos
        self.cue = cue
        return maze.gen_obs()

    def _advance(self, action: int) -> float:
        seen, _, self._terminated, _, _ = self._maze.step(action)
        self._see(seen["image"])
        self.success = self._terminated and tuple(self._maze.agent_pos) == self._maze.success_pos
        return max(LEAST_REWARD, 1 - 0.9 * self._steps / REWARD_STEPS) if self.success else 0.0

    def _see(self, view: np.ndarray) -> None:
        self.view = view
        self._observation = _frame(view.tobytes())

    def _info(self) -> dict[str, bool]:
        return {"success": self.success}


class PublishedDraws:
    """The random numbers of gym 0.18.3 for a seed, behind the interface that Minigrid uses.

    gym hashed the seed and seeded NumPy's legacy generator with the words of the hash. Minigrid still draws in the
    order of gym-minigrid 1.0.2: the corridor's end (if random), the agent's column, the cue, the fork's objects.

    Args:
        seed: at least 0.
    """

    def __init__(self, seed: int) -> None:
        low, high = np.frombuffer(hashlib.sha512(str(seed).encode()).digest()[:8], dtype="<u4").tolist()
        self._generator = np.random.RandomState([low, high] if high else [low])

    def integers(self, low: int, high: int) -> int:
        """A random integer from `low` to `high` - 1."""
        return int(self._generator.randint(low, high, dtype=np.int64))


class MinigridMemoryVectorEnv(SeededVectorEnv):
    """Many mazes side by side, possibly of different sizes, corridors and step limits, each a `MinigridMemoryEnv`.

    The option ``cue`` of ``reset``, (B,) text, "key" or "ball", overrides the seeds' objects in the rooms.
    """

    name = NAME
    single = MinigridMemoryEnv


register_once(ENV_ID, f"{__name__}:MinigridMemoryEnv", f"{__name__}:MinigridMemoryVectorEnv")
