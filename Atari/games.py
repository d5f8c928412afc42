"""The games: their actions, target returns, and reference scores.

Four games are described here; every other game of ale-py works, too, by its ROM's name in CamelCase (`space_invaders`
is ``SpaceInvaders``), with --target_return and without a normalised score.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Annotated, TypeVar

import numpy as np

from RATE_model.cli.limits import Check
from RATE_model.errors import UserError
from RATE_model.system.packages import extra, needed

Returns = TypeVar("Returns", float, np.ndarray)


@dataclass(frozen=True, kw_only=True)
class Game:
    """A game. Fields that may be None are only known for the four games."""

    name: str  # in CamelCase
    actions: int  # in the minimal action set: those with an effect in this game
    target_return: float | None = None  # in evaluation; unclipped points
    # Mean scores of a random player and of a human one: the 0 and the 100 of the normalised score
    random_score: float | None = None
    human_score: float | None = None
    unit_points: bool = False  # all rewards are -1, 0 or 1, so clipping changes nothing

    @property
    def rom(self) -> str:
        """ale-py's name of the game."""
        return _roms()[self.name.lower()]

    def normalised_score(self, returns: Returns) -> Returns | None:
        """Score of undiscounted, unclipped returns, in percent of a human player's; None if not measured."""
        if self.random_score is None or self.human_score is None:
            return None
        return 100 * (returns - self.random_score) / (self.human_score - self.random_score)


# Targets are the published ones. Random and human scores are those used since Wang et al. 2016
# (arXiv 1511.06581); the Decision Transformer's gamer-normalised scores (arXiv 2106.01345) round the same ones.
GAMES: dict[str, Game] = {
    game.name: game
    for game in (
        Game(name="Breakout", actions=4, target_return=180, random_score=1.7, human_score=30.5),
        Game(name="Qbert", actions=6, target_return=14000, random_score=163.9, human_score=13455.0),
        Game(name="Seaquest", actions=18, target_return=1150, random_score=68.4, human_score=42054.7),
        Game(name="Pong", actions=6, target_return=20, random_score=-20.7, human_score=14.6, unit_points=True),
    )
}


def game(name: str, *, flag: str = "game") -> Game:
    """The game of this name; upper and lower case do not matter.

    Raises:
        UserError: there is no such game, or it is not one of the four and ale-py is missing.
    """
    known = next((one for one in GAMES.values() if one.name.lower() == name.lower()), None)
    if known is not None:
        return known
    described = f"{', '.join(GAMES)} are described here"
    try:
        rom = _roms().get(name.lower())
    except UserError as error:
        raise UserError(f"--{flag} {name}: {described}; for any other game: {error}") from error
    if rom is None:
        raise UserError(
            f"--{flag} {name}: there is no such game. {described}, and any ALE game works with --game, spelled as "
            "ale-py's ROM in CamelCase (space_invaders is SpaceInvaders)."
        )
    emulator = ale_py().ALEInterface()
    emulator.loadROM(rom_path(rom))
    return Game(name=_camel_case(rom), actions=len(emulator.getMinimalActionSet()))


GameName = Annotated[str, Check(game)]


def ale_py() -> ModuleType:
    """The package ale-py, with its output silenced. Raises UserError if it is missing."""
    package = needed("Atari games need the package ale-py", "ale_py", install=extra("atari"))
    package.ALEInterface.setLoggerMode(package.LoggerMode.Error)
    return package


def rom_path(rom: str) -> Path:
    """The file of a game, given by ale-py's name of it."""
    ale_py()
    return importlib.import_module("ale_py.roms").get_rom_path(rom)


def _camel_case(rom: str) -> str:
    return "".join(word.capitalize() for word in rom.split("_"))


def _roms() -> dict[str, str]:
    """Lower-case names without separators -> ale-py's names."""
    ale_py()
    return {_camel_case(rom).lower(): rom for rom in importlib.import_module("ale_py.roms").get_all_rom_ids()}
