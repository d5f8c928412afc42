"""Atari games for Gymnasium, as the published system plays them: one, or many side by side.

A decision lasts four frames (`console.py`); the agent sees the last four pictures, oldest first, (4, 84, 84) uint8,
black where the episode had not begun, and earns unclipped points. An episode starts with 1 to 30 frames in which
nothing is pressed. It ends when the game is over, not with a life, and is truncated after 7000 decisions (28,000
frames). In games that have the button FIRE it is pressed for four frames at the start and after each life lost, as some
of them wait for it; what happens meanwhile belongs to the step, and only the last picture of it is seen.

The ``published`` opening is that of the authors' evaluation: before an episode the first picture is repeated instead of
black ones, FIRE is pressed twice, each time with a picture of its own, and after a life lost the agent is shown both
the picture at the loss and the one after FIRE, whose points do not count.

An episode is a function of its seed and of the actions, whatever was played before.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, get_args

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from Atari.console import FRAME_SKIP, FRAMES_PER_SECOND, SIZE, Console
from Atari.games import game as game_of
from RATE_model.acting.vector import FrozenVectorEnv, register_once
from RATE_model.errors import UserError

ENV_ID = "AtariFrames-v0"
FRAME_STACK = 4
PUBLISHED_NOOPS = 30
PUBLISHED_CAP = 7000  # decisions
SEED_LIMIT = 2**63
Opening = Literal["black", "published"]


class AtariEnv(gymnasium.Env):
    """One game; what it shows and when it ends: see the module.

    A finished episode stays frozen until the next reset: same observation, reward 0, the same flags. ``info`` holds
    ``lives`` (int), 0 all along in games without lives.

    Attributes:
        console: the emulator; scripted players read its memory and look ahead with it.
        frame: (84, 84) uint8, the newest picture.

    Args:
        game: its name; see `Atari.games`.
        sticky: probability, at every frame, that the action before goes on instead.
        noops: most frames at the start in which nothing is pressed; 0: none.
        max_steps: decisions until truncation.
        frame_stack: pictures that the agent sees at once.
        opening: what is seen where an episode or a ball begins; see the module.
        render_mode: None, or "rgb_array" for `render`.

    Raises:
        UserError: there is no such game, a value is out of range, or the package ale-py is missing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND / FRAME_SKIP}

    def __init__(
        self,
        game: str,
        *,
        sticky: float = 0.0,
        noops: int = PUBLISHED_NOOPS,
        max_steps: int = PUBLISHED_CAP,
        frame_stack: int = FRAME_STACK,
        opening: Opening = "black",
        render_mode: str | None = None,
    ) -> None:
        self.game = game_of(game)
        if not 0 <= sticky < 1:
            raise UserError(f"{self.game.name}: sticky is {sticky}; it must be at least 0 and less than 1.")
        if min(max_steps, frame_stack) < 1 or noops < 0:
            raise UserError(
                f"{self.game.name}: max_steps is {max_steps}, frame_stack {frame_stack}, noops {noops}; they must be "
                "at least 1, 1 and 0."
            )
        if opening not in get_args(Opening):
            raise UserError(f"{self.game.name}: opening is {opening!r}; it must be one of {get_args(Opening)}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise UserError(f"{self.game.name}: render_mode is {render_mode!r}; it must be 'rgb_array' or None.")
        self.sticky, self.noops, self.max_steps = float(sticky), int(noops), int(max_steps)
        self.render_mode, self.opening = render_mode, opening
        self.console = Console(self.game)
        self.observation_space = gymnasium.spaces.Box(0, 255, (frame_stack, SIZE, SIZE), np.uint8)
        self.action_space = gymnasium.spaces.Discrete(self.game.actions)
        self._observation = np.zeros((frame_stack, SIZE, SIZE), dtype=np.uint8)
        self._steps, self._lives, self._before = 0, 0, self.console.noop
        self._generator = np.random.default_rng(0)
        self._terminated, self._truncated = False, True  # nothing moves before the first reset

    @property
    def frame(self) -> np.ndarray:
        """The newest picture: a view, (84, 84) uint8."""
        return self._observation[-1]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start the episode of ``seed``, or a random one.

        Args:
            seed: 0 to 2**63 - 1: of the frames without a button and of sticky ones. It also seeds `np_random`.
            options: none are known.

        Returns:
            The observation (4, 84, 84) uint8 and info.

        Raises:
            ValueError: the seed is out of range.
        """
        super().reset(seed=seed)
        self._start(int(self.np_random.integers(2**31)) if seed is None else int(seed))
        return self._observation.copy(), self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Take one decision. Returns observation (4, 84, 84) uint8, reward, terminated, truncated, info.

        Raises:
            ValueError: there is no such action.
        """
        if not 0 <= action < self.game.actions:
            raise ValueError(f"action must lie between 0 and {self.game.actions - 1}, got {action}")
        reward = self._advance(int(action))
        return self._observation.copy(), reward, self._terminated, self._truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The screen in colour, (210, 160, 3) uint8 (a few games: 250 rows); None without a render mode."""
        return None if self.render_mode is None else self.console.picture()

    def _start(self, seed: int) -> None:
        """Begin the episode of a seed."""
        if not 0 <= seed < SEED_LIMIT:
            raise ValueError(f"a seed must lie between 0 and 2**63 - 1, got {seed}")
        self._generator = np.random.default_rng(seed)
        self.console.switch_on(int(self._generator.integers(1, self.noops + 1)) if self.noops else 0)
        self._steps, self._before = 0, self.console.noop
        self._terminated = self._truncated = False
        if self.opening == "published":
            self._observation[:] = self.console.observation()
            for _ in range(2 if self.console.fire is not None else 0):
                self._press_fire()
                self._show()
        else:
            self._press_fire()
            self._observation[:] = 0
            self._observation[-1] = self.console.observation()
        self._lives = self.console.lives

    def _advance(self, action: int) -> float:
        """One decision, and its points; nothing happens once the episode is over."""
        if self._terminated or self._truncated:
            return 0.0
        stuck = self._generator.random(FRAME_SKIP) < self.sticky if self.sticky else None
        points = self.console.press(action, before=self._before, stuck=stuck)
        self._before = self._before if stuck is not None and stuck.all() else action
        self._terminated = self.console.over
        lives = self.console.lives
        if lives < self._lives and not self._terminated:
            if self.opening == "published" and self.console.fire is not None:
                self._show()
                self._press_fire()
            else:
                points += self._press_fire()
            self._terminated = self.console.over
        self._lives = lives
        self._steps += 1
        self._truncated = not self._terminated and self._steps >= self.max_steps
        self._show()
        return float(points)

    def _show(self) -> None:
        """The newest picture follows those that were seen before."""
        self._observation[:-1] = self._observation[1:]
        self._observation[-1] = self.console.observation()

    def _press_fire(self) -> float:
        """Press the button that starts a ball, where there is one, and return the points of that time."""
        return 0.0 if self.console.fire is None else self.console.press(self.console.fire)

    def _info(self) -> dict[str, Any]:
        return {"lives": self._lives}


class AtariVectorEnv(FrozenVectorEnv):
    """B games side by side; ``info`` holds ``lives`` (B,) int64.

    ale-py's emulator does not leave Python to other threads, so that threads would not make this faster.

    Args:
        num_envs: B.
        game, render_mode, options: of every game, see `AtariEnv`.

    Raises:
        UserError: as for `AtariEnv`.
    """

    metadata = {**AtariEnv.metadata, "autoreset_mode": AutoresetMode.DISABLED}

    def __init__(
        self, num_envs: int = 1, game: str = "Breakout", *, render_mode: str | None = None, **options: Any
    ) -> None:
        make = partial(AtariEnv, game, render_mode=render_mode, **options)
        super().__init__([make] * num_envs, render_mode=render_mode, seeds_below=SEED_LIMIT, name=game)


register_once(ENV_ID, f"{__name__}:AtariEnv", f"{__name__}:AtariVectorEnv")
