"""The Two-Colors scenario (Cherepanov et al. 2023, arXiv 2306.09459, after Beeching et al. 2019), written from scratch.

A square room with a damaging floor: 8 health every 32 tics from the first tic on. A red or green pillar stands in front
of the player for the first ``pillar_steps`` steps. The room has items of both colours; when the pillar disappears, new
ones start to appear, green and red in turn. Touching an item of the pillar's colour heals, touching the other hurts.

    y  512 +-----------------+
           |   o    x   o    |      P pillar       ^ player, facing it, 320 units away
           |      P      x   |      o, x green and red items, at random places
           | x    ^   o      |
      -768 +-----------------+      1 step = 2 tics = 2/35 s
         -768       x       512

Two variants:

- ``published``: the stock sprites, and scripts that draw from the engine's random numbers in the order of the
  original, so that a seed gives the same episode as there; with the graphics ``published`` (`graphics.py`), frame by
  frame. An item is a piece of armour that absorbs part of the damage, so a wrong item costs 17 (green) or 13 (red)
  health, although the script says 25.
- ``clear``: large, bright sprites of our own, and exactly 25 health gained or lost. Seeds give other layouts.

WADs are built on first use and cached.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from string import Template
from typing import Annotated, Literal, get_args

import numpy as np

from RATE_model.cli.limits import Range, Ranged
from RATE_model.cli.options import Boolean
from RATE_model.errors import UserError
from RATE_model.system import cache
from VizDoom.VizDoom_src import wad
from VizDoom.VizDoom_src.wad import CLOSED, ENTER, OPEN, Acs

BUILDER_VERSION = 1  # of this module, wad.py and clear.decorate; other versions ignore cached files of this one
TICS_PER_STEP = 2
ROOM = (-768.0, -768.0, 512.0, 512.0)  # west, south, east, north; 32 units are about a metre
START = (-128.0, -448.0)
PILLAR = (-128.0, -128.0)
HEALTH_PER_ITEM = 25
GREEN, RED = "GreenArmor", "BlueArmor"  # the stock item called blue is red in the free graphics
CLEAR_MAPS = ("MAP01", "MAP02")  # variant `clear`: green and red
MAX_TIME = 1_000_000
MAX_ITEMS = 100  # of each colour; more would not fit

_DAMAGING_FLOOR = 83
_SHAPING, _IS_RED = 1, 2  # global variables, reported by the game as USER1 and USER2
_PICKED_RIGHT, _PICKED_WRONG = 21, 22  # scripts
_ITEM_TAGS = {GREEN: 31, RED: 32}
_HANDLERS = {GREEN: 0, RED: 1}  # variables that hold the script of a colour
_COUNTER = 2
_PILLAR_TAG = 77
_DAMAGE_KIND = 18

Variant = Literal["published", "clear"]
Graphics = Literal["published", "installed"]
# Default graphics of each variant. `clear` keeps those its results were measured with.
GRAPHICS: dict[str, Graphics] = {"published": "published", "clear": "installed"}
# Graphics of runs and data files that do not record them.
BEFORE = {"graphics": "installed"}


@dataclass(frozen=True)
class Scenario(Ranged):
    """The scenario to play. The default is the published one."""

    # published: the original's graphics, seeds and damage; clear: larger, brighter sprites and exactly 25 damage
    variant: Variant = "published"
    # Steps during which the pillar is visible
    pillar_steps: Annotated[int, Range(1, MAX_TIME)] = 45
    # Items of each colour at the start
    items: Annotated[int, Range(1, MAX_ITEMS)] = 10
    # Tics between two new items; a step is 2 tics
    spawn_tics: Annotated[int, Range(1, MAX_TIME)] = 30
    # Show the pillar. Without it, nothing shows the colour
    pillar: Boolean = True
    # published: Freedoom of vizdoom 1.2.4 without flashes on damage, downloaded once (28 MB); installed: Freedoom of
    # the installed vizdoom, with flashes; none = published for the variant published, installed for clear
    graphics: Graphics | None = None

    @property
    def rules(self) -> dict[str, int | bool | str]:
        """The fields that affect more than the pictures."""
        return {name: value for name, value in asdict(self).items() if name != "graphics"}

    def settled(self) -> Scenario:
        """The same scenario with its graphics resolved. Raises UserError as `validate`."""
        self.validate()
        return replace(self, graphics=self.graphics or GRAPHICS[self.variant])

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if self.variant not in ("published", "clear"):
            raise UserError(f"--variant {self.variant}: must be published or clear")
        if self.graphics not in (None, *get_args(Graphics)):
            raise UserError(f"--graphics {self.graphics}: must be published or installed")
        super().validate()


def build(scenario: Scenario) -> bytes:
    """The WAD of a scenario. Raises UserError for a value out of range."""
    scenario.validate()
    return _published(scenario) if scenario.variant == "published" else _clear(scenario)


def cache_directory() -> Path:
    """The folder of built scenarios."""
    return cache.directory("vizdoom")


def ensure_scenario(scenario: Scenario) -> Path:
    """The WAD file of a scenario, built if it is not cached.

    Raises:
        UserError: a value is out of range, or the cache cannot be written.
    """
    scenario.validate()
    digest = hashlib.sha256(repr((BUILDER_VERSION, sorted(scenario.rules.items()))).encode()).hexdigest()[:12]
    path = cache_directory() / f"two_colors_{scenario.variant}_{digest}.wad"
    if not path.exists():
        cache.write(path, build(scenario))
    return path


def _map(things: list[dict[str, float | int | bool]]) -> bytes:
    """The room with the player's start and these things in it."""
    west, south, east, north = ROOM
    everywhere = {f"skill{level}": True for level in range(1, 6)} | {"single": True, "coop": True, "dm": True}
    start = {"x": START[0], "y": START[1], "type": 1, "angle": 90}
    blocks: list[tuple[str, wad.Fields]] = [("thing", thing | everywhere) for thing in (start, *things)]
    # Clockwise: a line's front is on its right, here the inside.
    blocks += [("vertex", {"x": x, "y": y}) for x, y in ((west, south), (west, north), (east, north), (east, south))]
    blocks += [("linedef", {"v1": i, "v2": (i + 1) % 4, "sidefront": i, "blocking": True}) for i in range(4)]
    blocks += [("sidedef", {"sector": 0, "texturemiddle": "STONE2"})] * 4
    surfaces = {"texturefloor": "NUKAGE1", "textureceiling": "CEIL4_1", "heightceiling": 128}
    return wad.udmf([*blocks, ("sector", surfaces | {"special": _DAMAGING_FLOOR})])


def _published(scenario: Scenario) -> bytes:
    """The variant with the original's order of random draws: the colour, then x and y of each try to place an item."""
    acs = Acs().script(1, OPEN)
    acs.push(0, 1).do("random").do("set_global", _IS_RED).push(0).do("set_global", _SHAPING)
    acs.do("global", _IS_RED).jump("goto_if", "red")
    _begin_colour(acs, GREEN, "TallGreenColumn" if scenario.pillar else None)
    acs.jump("goto", "fill").label("red")
    _begin_colour(acs, RED, "TallRedColumn" if scenario.pillar else None)
    acs.label("fill").push(0).do("set_variable", _COUNTER).label("more")
    _spawn(acs, GREEN, "first green")
    _spawn(acs, RED, "first red")
    acs.do("increment_variable", _COUNTER).do("variable", _COUNTER).push(scenario.items).do("less")
    acs.jump("goto_if", "more")
    acs.push(scenario.pillar_steps * TICS_PER_STEP).do("delay").push(_PILLAR_TAG).special("remove_thing", 1)
    acs.label("for ever")
    for item in (GREEN, RED):
        _spawn(acs, item, f"next {item}")
        acs.push(scenario.spawn_tics).do("delay")
    acs.jump("goto", "for ever")
    acs.script(2, ENTER).do("clear_inventory").do("terminate")
    # Negative damage heals. The armour is removed at once: only health counts.
    for script, damage, operation in (
        (_PICKED_RIGHT, -HEALTH_PER_ITEM, "add_global"),
        (_PICKED_WRONG, HEALTH_PER_ITEM, "subtract_global"),
    ):
        acs.script(script, CLOSED).push(0, damage, _DAMAGE_KIND).special("damage_thing", 3)
        acs.push_fixed(1).do(operation, _SHAPING).do("clear_inventory").do("terminate")
    return wad.wad([("MAP01", b""), ("TEXTMAP", _map([])), ("BEHAVIOR", acs.assemble()), ("ENDMAP", b"")])


def _begin_colour(acs: Acs, right: str, column: str | None) -> None:
    """Set the scripts that run when items are picked up, and place the pillar."""
    for item, variable in _HANDLERS.items():
        acs.push(_PICKED_RIGHT if item == right else _PICKED_WRONG).do("set_variable", variable)
    if column is not None:
        acs.push_text(column).push_fixed(*PILLAR, 0).push(_PILLAR_TAG, 0).do("spawn").do("drop")


def _spawn(acs: Acs, item: str, label: str) -> None:
    """An item at a random free place; picking it up runs the script of its colour."""
    low, high = int(ROOM[0]) << 16, int(ROOM[2] - 1) << 16
    acs.label(label).push_text(item)
    acs.push(low, high).do("random").push(low, high).do("random").push_fixed(20).push(_ITEM_TAGS[item], 0).do("spawn")
    acs.jump("goto_unless", label)
    acs.push(_ITEM_TAGS[item], wad.SPECIALS["execute_script"]).do("variable", _HANDLERS[item]).push(0, 0, 0, 0)
    acs.do("set_thing_special")


# The variant `clear`. Every item and pillar is a separate actor, written in the language DECORATE. Two of its rules are
# easily broken. A keyword such as stop must begin a line. And a thing placed on the map stays in its first state for a
# random time, so that state must be as short as possible: one tic.
_ACTORS = Path(__file__).with_name("clear.decorate")  # of one colour
_PLACE = (
    '    TNT1 A 0 A_SpawnItemEx("{item}", random({low},{high}), random({low},{high}), 20, 0, 0, 0, 0, '
    "SXF_ABSOLUTEANGLE|SXF_NOCHECKPOSITION)"
)
_EDITOR_NUMBERS = {"Green": (15001, 15011), "Red": (15002, 15012)}  # pillar and spawner
_WALL_GAP = 20  # an item's radius


def _clear(scenario: Scenario) -> bytes:
    """The variant with one map per colour; the environment chooses between them."""
    template, tics = Template(_ACTORS.read_text(encoding="ascii")), scenario.pillar_steps * TICS_PER_STEP
    texts = {"health": HEALTH_PER_ITEM, "pillar_tics": tics, "later_tics": tics - 1, "spawn_tics": scenario.spawn_tics}
    actors = []
    for colour, (pillar, spawner) in _EDITOR_NUMBERS.items():
        texts |= {"colour": colour, "code": colour[0], "pillar": pillar, "spawner": spawner}
        green, red = (_place(("Right" if item == colour else "Wrong") + item) for item in _EDITOR_NUMBERS)
        first = "\n".join([green, red] * scenario.items)
        actors.append(template.substitute(texts, first=first, green=green, red=red).strip())
    lumps = [("DECORATE", "\n\n".join(actors).encode("ascii"))]
    for name, (pillar, spawner) in zip(CLEAR_MAPS, _EDITOR_NUMBERS.values(), strict=True):
        numbers = (spawner, pillar) if scenario.pillar else (spawner,)
        things = [{"x": PILLAR[0], "y": PILLAR[1], "type": number} for number in numbers]
        lumps += [(name, b""), ("TEXTMAP", _map(things)), ("ENDMAP", b"")]
    lumps.append(("S_START", b""))
    for code, colour in (("G", (40, 220, 60)), ("R", (235, 30, 30))):
        lumps += [
            (f"TCI{code}A0", wad.sprite(_ball(28, colour))),
            (f"TCP{code}A0", wad.sprite(_column(36, 80, colour))),
        ]
    return wad.wad([*lumps, ("S_END", b"")])


def _place(item: str) -> str:
    """The state that creates an item; positions are relative to the spawner in the middle of the room."""
    reach = int(ROOM[2] - PILLAR[0]) - _WALL_GAP
    return _PLACE.format(item=f"TwoColors{item}", low=-reach, high=reach)


def _ball(size: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A shaded ball: (size, size, 4) uint8."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    squared = axis[:, None] ** 2 + axis**2
    return _painted(colour, 1 - 0.55 * squared, squared <= 1)


def _column(width: int, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A shaded, banded column: (height, width, 4) uint8."""
    across = np.abs((np.arange(width) + 0.5) / width * 2 - 1)
    bands = 0.25 * (np.arange(height) // 6 % 2)
    return _painted(colour, 1 - 0.5 * across - bands[:, None], np.ones((height, width), dtype=bool))


def _painted(colour: tuple[int, int, int], light: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """A colour under (H, W) light of at most 1, transparent where hidden: (H, W, 4) uint8."""
    pixels = np.where(shown, light, 0)[..., None].clip(0, 1) * np.array(colour)
    return np.concatenate([pixels, 255 * shown[..., None]], axis=-1).astype(np.uint8)
