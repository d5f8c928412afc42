"""Checksums of a trajectory file: damage never goes unnoticed, and the error names its place.

    checksums/<array>   (chunks,) uint64   XXH3 of each chunk of that array, as it is stored (compressed)
    checksums           attribute ``digest``: of these numbers, the attributes, and the shapes and types of all arrays

Damage to a chunk, or to the pointer to it, changes its checksum; damage to a description changes the digest. A checksum
is compared when a process first reads its chunk: as HDF5 reads it (`RATE_model.data.hdf5.Source`), or in a separate
read if HDF5 reads only part of the chunk or had it in memory. HDF5's own checksum, Fletcher-32, accepts a block of
zeros as intact and is recomputed with every read; benchmarks/checksums.py measures both.

XXH3 runs at memory speed; CRC-32 takes some twenty times as long.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import h5py
import numpy as np
import xxhash

from RATE_model.data.hdf5 import Hdf5, Source

GROUP = "checksums"
_DIGEST = "digest"
_NOWHERE = (0, 0, 0)


class Checksums:
    """The checksums of a file, and which chunks have been compared with them. Can be pickled."""

    def __init__(self, tables: dict[str, np.ndarray], sizes: dict[str, int]) -> None:
        self._tables, self._sizes = tables, sizes  # by array; sizes are steps per chunk
        self._compared = {name: np.zeros(len(table), dtype=bool) for name, table in tables.items()}
        self._buffer = bytearray()  # for one chunk; allocating memory for each would take longer than the comparison
        self._places: dict[str, dict[int, tuple[int, int, int]]] = {}  # by array, filled on first read
        self._chunks: dict[int, tuple[str, int]] = {}  # offset -> the array and number of the chunk there
        self._intact: set[str] = set()  # arrays whose chunks have all been compared

    @classmethod
    def read(cls, file: Hdf5) -> Checksums | None:
        """The checksums of an open file; None if it has none.

        Raises:
            ValueError: the file's description or its checksums are damaged.
        """
        if GROUP not in file:
            return None
        arrays = _arrays(file)
        names = [name for name in arrays if name.startswith(f"{GROUP}/")]
        tables = {name.removeprefix(f"{GROUP}/"): arrays.pop(name)[:] for name in names}
        if file[GROUP].attrs.get(_DIGEST) != _digest(file, arrays, tables):
            raise ValueError(
                f"its attributes, shapes or types differ from their checksum; if it was changed on purpose, "
                f"delete its group '{GROUP}'"
            )
        return cls(tables, {name: arrays[name].chunks[0] for name in tables})

    def expect(self, file: Hdf5, name: str) -> None:
        """Register the chunks of an array with `compare`; call before reading it."""
        if name not in self._places:
            self._places[name] = _places(file[name])
            self._chunks |= {offset: (name, chunk) for chunk, (offset, _, _) in self._places[name].items()}

    def compare(self, offset: int, content: memoryview) -> None:
        """Record a chunk as intact if these bytes, read at an offset, match; mismatches are left to `damaged`."""
        name, chunk = self._chunks.get(offset, ("", 0))
        if name and not self._compared[name][chunk]:
            _, size, filters_left_out = self._places[name][chunk]
            if len(content) == size and _checksum(content, filters_left_out) == self._tables[name][chunk]:
                self._compared[name][chunk] = True

    def damaged(self, file: Hdf5, name: str, steps: slice | np.ndarray) -> range | None:
        """The steps of the first damaged chunk of an array that overlaps some steps; None if all are intact.

        Chunks that `compare` found intact are not read again.

        Raises:
            OSError: a chunk cannot be read at all.
        """
        if name in self._intact:
            return None
        size, compared = self._sizes[name], self._compared[name]
        if isinstance(steps, slice):
            start, stop, _ = steps.indices(size * len(compared))
            first, last = start // size, -(-stop // size)
            if compared[first:last].all():
                return None
            chunks = np.arange(first, last)
        else:
            chunks = np.unique(steps // size)
        self.expect(file, name)
        for chunk in chunks[~compared[chunks]].tolist():
            if self._checksum_at(file.source, *self._places[name].get(chunk, _NOWHERE)) != self._tables[name][chunk]:
                return range(chunk * size, (chunk + 1) * size)
            compared[chunk] = True
        if compared.all():
            self._intact.add(name)
        return None

    def _checksum_at(self, source: Source, offset: int, size: int, filters_left_out: int) -> int:
        """The checksum of the chunk at an offset of the file."""
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        content = memoryview(self._buffer)[:size]
        return _checksum(content[: source.read_at(offset, content)], filters_left_out)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffer": bytearray()}


class ChunkSums:
    """Computes the checksums of a file while it is written."""

    def __init__(self) -> None:
        self._sums: dict[str, list[int]] = {}

    def update(self, array: Hdf5, *, last: bool = False) -> None:
        """Add the chunks that have become full, and the rest if nothing follows."""
        sums = self._sums.setdefault(array.name.lstrip("/"), [])
        full, rest = divmod(len(array), array.chunks[0])
        for chunk in range(len(sums), full + (last and rest > 0)):
            filters_left_out, content = array.id.read_direct_chunk(_first_element(array, chunk))
            sums.append(_checksum(content, filters_left_out))

    def write(self, file: Hdf5) -> None:
        """Write all checksums to a file whose arrays and attributes are complete."""
        tables = {name: np.array(sums, dtype=np.uint64) for name, sums in self._sums.items()}
        arrays = _arrays(file)
        for name, table in tables.items():
            make_groups(file, f"{GROUP}/{name}")
            file[f"{GROUP}/{name}"] = table
        file[GROUP].attrs[_DIGEST] = _digest(file, arrays, tables)


def make_groups(file: Hdf5, name: str) -> None:
    """Create the groups in an array's name. Groups that HDF5 creates itself contain the time, so equal files would
    differ."""
    if group := name.rpartition("/")[0]:
        file.require_group(group)


def _first_element(array: Hdf5, chunk: int) -> tuple[int, ...]:
    """The start of a chunk. Chunks divide an array along its steps only."""
    return (chunk * array.chunks[0],) + (0,) * (array.ndim - 1)


def _places(array: Hdf5) -> dict[int, tuple[int, int, int]]:
    """Offset, size and skipped filters of every chunk; querying them one by one takes longer than comparing."""
    found, size = {}, array.chunks[0]

    def note(place: Any) -> None:
        found[place.chunk_offset[0] // size] = (place.byte_offset, place.size, place.filter_mask)

    array.id.chunk_iter(note)
    return found


def _checksum(content: bytes | memoryview, filters_left_out: int) -> int:
    """The checksum of a chunk's bytes and of HDF5's record of its compression."""
    return xxhash.xxh3_64_intdigest(content, seed=filters_left_out)


def _arrays(file: Hdf5) -> dict[str, Hdf5]:
    """All arrays of a file by name, in the order of their names."""
    found: dict[str, Hdf5] = {}
    file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
    return dict(sorted(found.items()))


def _digest(file: Hdf5, arrays: dict[str, Hdf5], tables: dict[str, np.ndarray]) -> str:
    """The digest of the tables of checksums and of everything else outside the chunks."""

    def noted(item: Hdf5) -> dict[str, Any]:
        return {name: getattr(value, "tolist", lambda value=value: value)() for name, value in item.attrs.items()}

    described = {name: [array.shape, array.dtype.str, array.chunks, noted(array)] for name, array in arrays.items()}
    digest = hashlib.blake2b(
        json.dumps([noted(file), described], sort_keys=True, default=repr).encode(), digest_size=16
    )
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table, dtype="<u8").data)
    return digest.hexdigest()
