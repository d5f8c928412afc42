"""The emulator of one game: decisions of four frames, what the agent sees of them, and saved states.

This is the preprocessing of the published system and of the DQN-replay data (Mnih et al. 2015; Machado et al. 2018,
arXiv 1709.06009): a decision holds its action for four frames; each pixel is the brighter grey of the last two,
because the console draws some objects only on every second frame; the picture is averaged down to 84x84.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from Atari.games import Game, ale_py, rom_path
from RATE_model.data.resize import area_mean

if TYPE_CHECKING:
    from ale_py import ALEState

FRAME_SKIP = 4  # frames of a decision
FRAMES_PER_SECOND = 60
SIZE = 84  # rows and columns of what the agent sees


class Console:
    """One game, switched on.

    The emulator is deterministic: its state depends only on the actions since `switch_on`.

    Args:
        game: the game.

    Raises:
        UserError: ale-py is missing.
    """

    def __init__(self, game: Game) -> None:
        package = ale_py()
        self.game = game
        self._emulator = package.ALEInterface()
        self._emulator.setInt("random_seed", 0)
        self._emulator.setFloat("repeat_action_probability", 0.0)
        self._emulator.loadROM(rom_path(game.rom))
        self._emulator.reset_game()
        self._begin = self._emulator.cloneState()
        self._actions = self._emulator.getMinimalActionSet()
        names = [action.name for action in self._actions]
        self.fire = names.index("FIRE") if "FIRE" in names else None
        self.noop = names.index("NOOP")
        self._screens = np.zeros((2, *self._emulator.getScreenDims()), dtype=np.uint8)
        self._act, self._look = self._emulator.act, self._emulator.getScreenGrayscale

    @property
    def lives(self) -> int:
        """Lives left; always 0 in games without lives."""
        return self._emulator.lives()

    @property
    def over(self) -> bool:
        """Whether the game is over."""
        return self._emulator.game_over()

    def switch_on(self, idle_frames: int = 0) -> None:
        """Start a game, and let this many frames pass without pressing a button."""
        self._emulator.restoreState(self._begin)
        idle = self._actions[self.noop]
        for _ in range(idle_frames):
            self._act(idle)
        if self.over:  # no known game ends that early
            self._emulator.restoreState(self._begin)
        self._screens[0] = 0
        self._look(self._screens[1])

    def press(self, action: int, *, before: int | None = None, stuck: np.ndarray | None = None) -> float:
        """One decision: hold an action for four frames. Does nothing once the game is over.

        Args:
            action: 0 to ``game.actions`` - 1.
            before: the previous decision's action, repeated in ``stuck`` frames.
            stuck: (4,) bool, frames that repeat the previous action (sticky actions); None: none.

        Returns:
            The points of these frames.
        """
        held = [self._actions[action]] * FRAME_SKIP
        if stuck is not None and before is not None and stuck[0]:
            # After an action got through, a later sticky frame repeats it.
            through = int(np.argmin(stuck)) if not stuck.all() else FRAME_SKIP
            held[:through] = [self._actions[before]] * through
        act, look, screens = self._act, self._look, self._screens
        points = act(held[0]) + act(held[1]) + act(held[2])
        look(screens[0])
        points += act(held[3])
        look(screens[1])
        return points

    def simulate(self, action: int) -> float:
        """Like `press`, but faster: `observation` is not valid afterwards."""
        held, act = self._actions[action], self._act
        return act(held) + act(held) + act(held) + act(held)

    def observation(self) -> np.ndarray:
        """What the agent sees after a decision: (84, 84) uint8, grey."""
        return area_mean(np.maximum(self._screens[0], self._screens[1]), (SIZE, SIZE))

    def picture(self) -> np.ndarray:
        """The last frame in colour: (210, 160, 3) uint8; a few games have 250 rows."""
        return self._emulator.getScreenRGB()

    def memory(self) -> np.ndarray:
        """The console's memory: (128,) uint8."""
        return self._emulator.getRAM()

    def save(self) -> ALEState:
        """The state of the game, for `restore`."""
        return self._emulator.cloneState()

    def restore(self, state: Any) -> None:
        """Restore a saved state of this console, without the agent's observation."""
        self._emulator.restoreState(state)
