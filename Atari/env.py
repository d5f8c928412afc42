"""Atari games for Gymnasium, as the published system plays them: one, or many side by side.

A decision lasts four frames (`console.py`); the agent sees the last four pictures, oldest first, (4, 84, 84) uint8,
black before the start of the episode, and earns unclipped points. An episode starts with 1 to 30 frames without a
button. It ends when the game is over, not with a life, and is truncated after 7000 decisions (28,000 frames). In games
with the button FIRE it is pressed for four frames at the start and after each lost life, because some games wait for
it; what happens meanwhile belongs to the step, and the agent sees only the last picture.

The ``published`` opening is that of the authors' evaluation: the first picture is repeated instead of black ones, FIRE
is pressed twice at the start, with one picture each, and after a lost life the agent sees both the picture at the loss
and the one after FIRE, whose points do not count.

An episode depends only on its seed and the actions, not on what was played before.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from Atari.console import FRAME_SKIP, FRAMES_PER_SECOND, SIZE, Console
from Atari.games import Game
from Atari.games import game as game_of
from RATE_model.acting.single import SeededEnv
from RATE_model.acting.vector import SeededVectorEnv, register_once
from RATE_model.errors import UserError
from RATE_model.spec import IMAGES, TANH, EnvironmentSpec

ENV_ID = "AtariFrames-v0"
FRAME_STACK = 4
PUBLISHED_NOOPS = 30
PUBLISHED_CAP = 7000  # decisions
Opening = Literal["black", "published"]


def spec_of(game: Game, *, return_scale: float = 1.0, conv_channels: tuple[int, ...] = (32, 64, 64)) -> EnvironmentSpec:
    """How the model sees a game.

    Args:
        game: which.
        return_scale: factor of returns-to-go before a linear map and a tanh encode them; the published system has 1,
            where 20 and 180 look alike. 0: the return token is constant, behaviour cloning.
        conv_channels: of the three convolutions; the default is the published one.
    """
    return EnvironmentSpec(
        observation_shape=(FRAME_STACK, SIZE, SIZE),
        num_actions=game.actions,
        return_scale=return_scale,
        conv_channels=conv_channels,
        **IMAGES,
        **TANH,
    )


class AtariEnv(SeededEnv):
    """One game; see the module for observations and ends.

    The seed determines the frames without a button and the sticky ones. ``info`` holds ``lives`` (int), always 0 in
    games without lives.

    Attributes:
        console: the emulator; scripted players read its memory and look ahead with it.

    Args:
        game: its name; see `Atari.games`.
        sticky: probability, at every frame, of repeating the previous action instead.
        noops: maximum number of initial frames without a button; 0: none.
        max_steps: decisions until truncation.
        frame_stack: pictures that the agent sees at once.
        opening: what the agent sees at the start of an episode or a ball; see the module.
        render_mode: None, or "rgb_array" for `render`.

    Raises:
        UserError: there is no such game, a value is out of range, or the package ale-py is missing.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": FRAMES_PER_SECOND / FRAME_SKIP}

    def __init__(
        self,
        game: str = "Breakout",
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
        if frame_stack < 1 or noops < 0:
            raise UserError(
                f"{self.game.name}: frame_stack {frame_stack} and noops {noops}; they must be at least 1 and 0."
            )
        if opening not in get_args(Opening):
            raise UserError(f"{self.game.name}: opening is {opening!r}; it must be one of {get_args(Opening)}.")
        shape = (frame_stack, SIZE, SIZE)
        super().__init__(self.game.name, shape, self.game.actions, max_steps=max_steps, render_mode=render_mode)
        self.sticky, self.noops, self.opening = float(sticky), int(noops), opening
        self.console = Console(self.game)
        self._lives, self._before = 0, self.console.noop
        self._generator = np.random.default_rng(0)

    def render(self) -> np.ndarray | None:
        """The screen in colour, (210, 160, 3) uint8 (a few games: 250 rows); None without a render mode."""
        return None if self.render_mode is None else self.console.picture()

    def _start(self, seed: int, options: dict[str, Any]) -> None:
        self._generator = np.random.default_rng(seed)
        self.console.switch_on(int(self._generator.integers(1, self.noops + 1)) if self.noops else 0)
        self._before = self.console.noop
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
        """One decision, and its points."""
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
        self._show()
        return float(points)

    def _show(self) -> None:
        """Append the newest picture to the observation."""
        self._observation[:-1] = self._observation[1:]
        self._observation[-1] = self.console.observation()

    def _press_fire(self) -> float:
        """Press FIRE, in games that have it, and return the points earned meanwhile."""
        return 0.0 if self.console.fire is None else self.console.press(self.console.fire)

    def _info(self) -> dict[str, Any]:
        return {"lives": self._lives}


class AtariVectorEnv(SeededVectorEnv):
    """B games side by side, each an `AtariEnv`; ``info`` holds ``lives`` (B,) int64.

    ale-py's emulator does not release the GIL, so threads would not make this faster.
    """

    name = "Atari"
    single = AtariEnv


register_once(ENV_ID, f"{__name__}:AtariEnv", f"{__name__}:AtariVectorEnv")
