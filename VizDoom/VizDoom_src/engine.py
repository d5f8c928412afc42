"""The game engine: a separate process, started, driven and ended here. It reads and writes no settings."""

from __future__ import annotations

import os
import weakref
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from RATE_model.system.packages import extra, needed
from VizDoom.VizDoom_src.graphics import ensure_graphics
from VizDoom.VizDoom_src.launcher import launcher
from VizDoom.VizDoom_src.scenario import CLEAR_MAPS, GREEN, RED, TICS_PER_STEP, Scenario, ensure_scenario

SCREEN = (180, 320)  # height and width of the engine's pictures
REWARD_PER_TIC = 0.01
# Buttons of each action: turn left, turn right, move forward.
BUTTONS = ([1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [0, 1, 1])

_OUTSIDE = 2000.0  # farther from the origin than anything in the game
_VARIABLES = ("HEALTH", "POSITION_X", "POSITION_Y", "ANGLE", "VELOCITY_X", "VELOCITY_Y", "USER2")
_DIED = (
    "ViZDoomErrorException",
    "ViZDoomUnexpectedExitException",
    "ViZDoomIsNotRunningException",
    "MessageQueueException",
    "SharedMemoryException",
    "FileDoesNotExistException",
)


class EngineDied(Exception):
    """The engine's process ended unexpectedly, or could not be started."""


@dataclass(frozen=True)
class Surroundings:
    """The state of a running game beyond its picture; lengths in map units, angles in degrees."""

    position: np.ndarray  # (2,) float64
    angle: float  # 0 east, 90 north
    velocity: np.ndarray  # (2,) float64, per tic
    health: float
    right: np.ndarray  # (R, 2) float64, items of the pillar's colour
    wrong: np.ndarray  # (W, 2) float64
    pillar: bool  # whether it is there


def vizdoom() -> ModuleType:
    """The package vizdoom, imported when the first engine starts. Raises UserError if it is missing."""
    sentence = "ViZDoom-Two-Colors needs the package vizdoom"
    return needed(sentence, "vizdoom", install=extra("vizdoom"), with_reason=True)


def describe_graphics(scenario: Scenario) -> str:
    """What results say about their pictures: graphics and engine version."""
    return f"{scenario.settled().graphics} graphics, vizdoom {vizdoom().__version__}"


class Engine:
    """One running game.

    Attributes:
        health: the player's; keeps its last value after the episode.
        is_red: whether the pillar is red.

    Args:
        scenario: the scenario to play.
        privileged: enable `surroundings`, which makes steps slower.
        replacement: whether it replaces an engine that died.

    Raises:
        UserError: the package is missing, the scenario cannot be built, its graphics cannot be obtained, or no engine
            can be started.
        EngineDied: this engine does not start.
    """

    def __init__(self, scenario: Scenario, *, privileged: bool = False, replacement: bool = False) -> None:
        package = vizdoom()
        self._scenario = scenario
        self._privileged = privileged
        variables = package.GameVariable
        self._variables = [getattr(variables, name) for name in _VARIABLES]
        self._health, self._colour = variables.HEALTH, variables.USER2
        self._died = tuple(getattr(package, name) for name in _DIED)
        self._game = _configured(package, scenario, self._variables, privileged)
        if (script := launcher(package, again=replacement)) is not None:
            self._game.set_vizdoom_path(str(script))
        self.health, self.is_red = 0.0, False
        self._end = weakref.finalize(self, self._game.close)  # also when the interpreter ends
        try:
            self._game.init()
        except self._died as error:
            raise EngineDied(str(error)) from error

    def begin(self, seed: int, red: bool | None = None) -> np.ndarray:
        """Start the episode of a seed and return its first picture, (3, 180, 320) uint8.

        Args:
            seed: for the engine's random numbers, 0 to 2**32 - 1. It only gives the published colours if set after the
                engine's start and before every episode.
            red: whether the pillar is red; only the variant ``clear`` lets the caller choose.

        Raises:
            EngineDied: see the class.
        """
        try:
            self._game.set_seed(seed)
            if self._scenario.variant == "clear":
                self._game.set_doom_map(CLEAR_MAPS[bool(red)])
            self._game.new_episode()
            self.is_red = bool(red) if red is not None else bool(self._game.get_game_variable(self._colour))
            self.health = self._game.get_game_variable(self._health)
            return self._game.get_state().screen_buffer
        except self._died as error:
            raise EngineDied(str(error)) from error

    def act(self, action: int) -> tuple[np.ndarray | None, float]:
        """One step of 2 tics: the picture, None when the episode is over, and the game's reward. Raises EngineDied."""
        try:
            reward = self._game.make_action(BUTTONS[action], TICS_PER_STEP)
            self.health = self._game.get_game_variable(self._health)
            over = self._game.is_episode_finished()
            return None if over else self._game.get_state().screen_buffer, reward
        except self._died as error:
            raise EngineDied(str(error)) from error

    def surroundings(self) -> Surroundings:
        """The current positions; only for a ``privileged`` engine whose episode is not over."""
        state = self._game.get_state()
        health, x, y, angle, dx, dy, _ = state.game_variables
        places: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
        pillar = False
        for thing in state.objects:
            if (right := _is_right(thing.name, self.is_red)) is not None:
                places[right].append((thing.position_x, thing.position_y))
            elif "Column" in thing.name or "Pillar" in thing.name:
                pillar |= abs(thing.position_x) < _OUTSIDE
        right, wrong = (np.array(places[kind], dtype=np.float64).reshape(-1, 2) for kind in (True, False))
        return Surroundings(np.array([x, y]), float(angle), np.array([dx, dy]), float(health), right, wrong, pillar)

    def close(self) -> None:
        """End the process. Further calls do nothing."""
        self._end()


def _is_right(name: str, is_red: bool) -> bool | None:
    """Whether a thing is an item of the pillar's colour; None if it is not an item."""
    if name in (GREEN, RED):
        return (name == RED) == is_red
    if name.startswith(("TwoColorsRight", "TwoColorsWrong")):
        return name.startswith("TwoColorsRight")
    return None


def _configured(package: ModuleType, scenario: Scenario, variables: list[Any], privileged: bool) -> Any:
    """A configured game, not yet running."""
    game = package.DoomGame()
    game.set_doom_config_path(os.devnull)
    wad = ensure_graphics(scenario)
    if wad is not None:
        game.set_doom_game_path(str(wad))
    game.set_doom_scenario_path(str(ensure_scenario(scenario)))
    game.set_doom_map(CLEAR_MAPS[0])
    game.set_screen_resolution(package.ScreenResolution.RES_320X180)
    game.set_screen_format(package.ScreenFormat.CRCGCB)
    for part in ("hud", "crosshair", "weapon", "decals", "particles"):
        getattr(game, f"set_render_{part}")(False)
    game.set_render_screen_flashes(wad is None)  # versions before 1.3 do not flash
    game.set_available_buttons([getattr(package.Button, name) for name in ("TURN_LEFT", "TURN_RIGHT", "MOVE_FORWARD")])
    game.set_available_game_variables(variables)
    game.set_objects_info_enabled(privileged)
    game.set_episode_timeout(0)  # no limit: the environment counts steps
    game.set_living_reward(REWARD_PER_TIC)
    game.set_mode(package.Mode.PLAYER)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    return game
