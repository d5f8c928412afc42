"""Writers of Doom's file formats: WAD archives, UDMF maps, ACS scripts in object code, PNG sprites.

Only what our scenarios need, from the public descriptions of the formats. It needs no game file, compiler or node
builder: the engine builds a map's nodes itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

Fields = Mapping[str, "bool | int | float | str"]

OPEN, ENTER, CLOSED = 1, 4, 0  # when a script starts: with the map, with the player, when called

_WORD = 4  # bytes
_CODE_START = 8  # in an ACS object: after its magic number and the address of its directory
_OPCODES = {
    "terminate": 1,
    "push": 3,
    "special1": 4,
    "special3": 6,
    "less": 21,
    "set_variable": 25,
    "variable": 28,
    "increment_variable": 46,
    "goto": 52,
    "goto_if": 53,
    "drop": 54,
    "delay": 55,
    "random": 57,
    "goto_unless": 79,
    "clear_inventory": 142,
    "spawn": 149,
    "set_thing_special": 180,
    "set_global": 181,
    "global": 182,
    "add_global": 183,
    "subtract_global": 184,
}
SPECIALS = {"damage_thing": 119, "remove_thing": 132, "execute_script": 226}


def wad(lumps: Sequence[tuple[str, bytes]]) -> bytes:
    """A patch WAD of (name, content) lumps. Their order matters: maps and sprites lie between markers.

    Raises:
        ValueError: a name is longer than 8 characters.
    """
    header = struct.calcsize("<4sii")
    position, directory = header, b""
    for name, content in lumps:
        if len(name) > 8:
            raise ValueError(f"the name of a lump has at most 8 characters: {name}")
        directory += struct.pack("<ii8s", position, len(content), name.encode("ascii"))
        position += len(content)
    body = b"".join(content for _, content in lumps)
    return struct.pack("<4sii", b"PWAD", len(lumps), position) + body + directory


def udmf(blocks: Sequence[tuple[str, Fields]]) -> bytes:
    """The text of a map: (kind, fields) of its things, vertices, lines, sides and sectors, those of a kind in order."""
    lines = ['namespace = "zdoom";']
    for kind, fields in blocks:
        lines.append(f"{kind} {{ {' '.join(f'{name}={_udmf_value(value)};' for name, value in fields.items())} }}")
    return "\n".join(lines).encode("ascii")


def _udmf_value(value: bool | int | float | str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:.3f}" if isinstance(value, float) else str(value)


class Acs:
    """Assembles scripts in the oldest object format of the Action Code Script language, of 32-bit words.

        +------+-----------+------+---------+-----------------------------------------+
        | ACS0 | directory | code | strings | directory: scripts, then string offsets |
        +------+-----------+------+---------+-----------------------------------------+

    Operations work on a stack. Those with an operand (a variable's number, a label) take it as an argument; everything
    else is pushed before.
    """

    def __init__(self) -> None:
        self._words: list[int | str] = []  # a name is a placeholder for its label's address
        self._scripts: list[tuple[int, int, int]] = []  # number and kind, first word, number of arguments
        self._strings: list[str] = []
        self._labels: dict[str, int] = {}

    def script(self, number: int, kind: int = CLOSED) -> Acs:
        """Begin a script that takes no arguments."""
        self._scripts.append((number + 1000 * kind, len(self._words), 0))
        return self

    def do(self, operation: str, operand: int | None = None) -> Acs:
        """Append an operation by name."""
        self._words.append(_OPCODES[operation])
        if operand is not None:
            self._words.append(operand)
        return self

    def push(self, *numbers: int) -> Acs:
        """Push integers onto the stack."""
        for number in numbers:
            self.do("push", number)
        return self

    def push_fixed(self, *numbers: float) -> Acs:
        """Push fixed-point numbers with 16 fractional bits."""
        return self.push(*(round(number * 2**16) for number in numbers))

    def push_text(self, text: str) -> Acs:
        """Push a string, as its index in the string table."""
        if text not in self._strings:
            self._strings.append(text)
        return self.push(self._strings.index(text))

    def label(self, name: str) -> Acs:
        """Define a jump target."""
        self._labels[name] = len(self._words)
        return self

    def jump(self, operation: str, label: str) -> Acs:
        """Append goto, goto_if or goto_unless to a label."""
        self._words += [_OPCODES[operation], label]
        return self

    def special(self, name: str, arguments: int) -> Acs:
        """Append an action special, whose 1 or 3 arguments were pushed."""
        return self.do(f"special{arguments}", SPECIALS[name])

    def assemble(self) -> bytes:
        """The object, as stored in the lump BEHAVIOR."""
        code = b"".join(struct.pack("<i", self._resolved(word)) for word in self._words)
        strings, offsets = b"", []
        for text in self._strings:
            offsets.append(_CODE_START + len(code) + len(strings))
            strings += text.encode("ascii") + b"\0"
        strings += b"\0" * (-len(strings) % _WORD)
        directory = struct.pack("<i", len(self._scripts))
        for number, first, arguments in self._scripts:
            directory += struct.pack("<iii", number, self._address(first), arguments)
        directory += struct.pack(f"<{1 + len(offsets)}i", len(offsets), *offsets)
        return struct.pack("<4si", b"ACS\0", _CODE_START + len(code) + len(strings)) + code + strings + directory

    def _resolved(self, word: int | str) -> int:
        return self._address(self._labels[word]) if isinstance(word, str) else word

    @staticmethod
    def _address(word: int) -> int:
        return _CODE_START + _WORD * word


def sprite(pixels: np.ndarray) -> bytes:
    """A PNG of (H, W, 4) uint8 pixels, red, green, blue, opacity, that stands on the middle of its lower edge."""
    height, width, _ = pixels.shape
    anchor, content = PngInfo(), BytesIO()
    anchor.add(b"grAb", struct.pack(">ii", width // 2, height))
    Image.fromarray(pixels).save(content, "png", pnginfo=anchor)
    return content.getvalue()
