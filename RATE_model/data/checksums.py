"""Checksums of a trajectory file: found damage has a name, and none passes in silence.

    checksums/<array>   (chunks,) uint32   CRC-32 of each chunk of that array, as it is stored (compressed)
    checksums           attribute ``digest``: of these numbers, the attributes, and the shapes and types of all arrays

Damage that changes what a chunk holds, or where it is looked for, changes its CRC-32; damage to a description changes
the digest. HDF5's own checksum of chunks, Fletcher-32, takes a block of zeros for intact and is computed again with
every read; a CRC-32 here is compared when a process first reads a chunk, which costs next to nothing over an epoch.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from typing import Any

import h5py
import numpy as np

GROUP = "checksums"
_DIGEST = "digest"
_ALL = slice(None)


class Checksums:
    """The checksums of a file, and which chunks this process has compared with them.

    It can be pickled, and knows then what was compared before.
    """

    def __init__(self, tables: dict[str, np.ndarray]) -> None:
        self._tables = tables
        self._compared = {name: np.zeros(len(table), dtype=bool) for name, table in tables.items()}

    @classmethod
    def read(cls, file: h5py.File) -> Checksums | None:
        """Those of an open file; None if it has none.

        Raises:
            ValueError: the description of the file, or its checksums, are damaged.
        """
        if GROUP not in file:
            return None
        tables = {name: file[GROUP][name][:] for name in _arrays(file[GROUP])}
        if file[GROUP].attrs.get(_DIGEST) != _digest(file, tables):
            raise ValueError(
                f"its attributes, shapes or types differ from their checksum; if it was changed on purpose, "
                f"delete its group '{GROUP}'"
            )
        return cls(tables)

    def damaged(self, array: h5py.Dataset, steps: slice | np.ndarray = _ALL) -> range | None:
        """The steps of the first damaged chunk that holds any of some steps; None if all are intact.

        Raises:
            OSError: a chunk cannot be read at all.
        """
        name, size = array.name.lstrip("/"), array.chunks[0]
        if isinstance(steps, slice):
            start, stop, _ = steps.indices(len(array))
            chunks = np.arange(start // size, -(-stop // size))
        else:
            chunks = np.unique(steps // size)
        for chunk in chunks[~self._compared[name][chunks]].tolist():
            if _crc(array, chunk) != self._tables[name][chunk]:
                return range(chunk * size, min((chunk + 1) * size, len(array)))
            self._compared[name][chunk] = True
        return None


class ChunkSums:
    """Takes the checksums of a file while it is written."""

    def __init__(self) -> None:
        self._sums: dict[str, list[int]] = {}

    def update(self, array: h5py.Dataset, *, last: bool = False) -> None:
        """Take those of the chunks that have become full, and of the rest if nothing follows."""
        sums = self._sums.setdefault(array.name.lstrip("/"), [])
        full, rest = divmod(len(array), array.chunks[0])
        sums += [_crc(array, chunk) for chunk in range(len(sums), full + (last and rest > 0))]

    def write(self, file: h5py.File) -> None:
        """Add all of them to a file whose arrays and attributes are complete."""
        tables = {name: np.array(sums, dtype=np.uint32) for name, sums in self._sums.items()}
        for name, table in tables.items():
            make_groups(file, f"{GROUP}/{name}")
            file[f"{GROUP}/{name}"] = table
        file[GROUP].attrs[_DIGEST] = _digest(file, tables)


def make_groups(file: h5py.File, name: str) -> None:
    """Make the groups of an array's name. Those that HDF5 makes by itself hold the time: equal files would differ."""
    if group := name.rpartition("/")[0]:
        file.require_group(group)


def _crc(array: h5py.Dataset, chunk: int) -> int:
    """CRC-32 of a chunk as it is stored. Chunks divide an array along its steps only."""
    filters_left_out, content = array.id.read_direct_chunk((chunk * array.chunks[0],) + (0,) * (array.ndim - 1))
    return zlib.crc32(content, filters_left_out)


def _arrays(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """All arrays in a group, by their names in it, but for the checksums."""
    found: dict[str, h5py.Dataset] = {}
    group.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return {name: array for name, array in sorted(found.items()) if not name.startswith(f"{GROUP}/")}


def _digest(file: h5py.File, tables: dict[str, np.ndarray]) -> str:
    """Of the tables of checksums and of everything else that the arrays' chunks do not hold."""

    def noted(item: h5py.File | h5py.Dataset) -> dict[str, Any]:
        return {name: getattr(value, "tolist", lambda value=value: value)() for name, value in item.attrs.items()}

    described = {
        name: [array.shape, array.dtype.str, array.chunks, noted(array)] for name, array in _arrays(file).items()
    }
    digest = hashlib.blake2b(
        json.dumps([noted(file), described], sort_keys=True, default=repr).encode(), digest_size=16
    )
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table, dtype="<u4"))
    return digest.hexdigest()
