"""Checksums of trajectory files, so that damage is always detected and located.

    checksums/<array>   (chunks,) uint64   XXH3 of each chunk of that array as stored (compressed)
    checksums           attribute ``digest``: over these checksums, the attributes, and all shapes and dtypes

Damage to a chunk, or to the pointer to it, changes its checksum; damage to metadata changes the digest. A checksum is
verified when a process first reads its chunk: on the values, if they are stored unfiltered and the chunk is read whole;
else as HDF5 reads it (`RATE_model.data.hdf5.Source`), or in a separate read if HDF5 reads only part of the chunk or has
it cached. HDF5's own checksum, Fletcher-32, accepts a block of zeros and is recomputed on every read;
benchmarks/checksums.py measures both.

XXH3 runs at memory speed; CRC-32 takes some twenty times as long.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
import xxhash

from RATE_model.data.hdf5 import Hdf5, Source

GROUP = "checksums"
_DIGEST = "digest"
_low: Any = h5py  # its low-level API has no type hints


class _Place(NamedTuple):
    """Location of a chunk in its file."""

    offset: int
    size: int
    filters_left_out: int


_NOWHERE = _Place(0, 0, 0)


class Checksums:
    """The checksums of an array, and which chunks have been verified. Picklable.

    Args:
        table: (chunks,) uint64.
        size: steps per chunk.
        plain: values are stored as they are read, without a filter.
    """

    def __init__(self, table: np.ndarray, size: int, *, plain: bool) -> None:
        self._table, self._size, self._plain = table, size, plain
        self._compared = np.zeros(len(table), dtype=bool)
        self._left = len(table)  # chunks not verified yet
        self._places: dict[int, _Place] = {}  # by chunk, filled on first read
        self._chunks: dict[int, int] = {}  # by offset
        self._buffer = bytearray()  # for one chunk; allocating one per chunk would take longer than the comparison

    @property
    def intact(self) -> bool:
        """Whether all chunks have been verified."""
        return self._left == 0

    def read(self, array: Hdf5, steps: slice | np.ndarray) -> np.ndarray | None:
        """These steps of a plain array, if they are whole chunks and match; else None, and nothing is said of why."""
        if not (self._plain and isinstance(steps, slice)):
            return None
        start, stop, _ = steps.indices(len(array))
        whole = start % self._size == 0 and (stop % self._size == 0 or stop == len(array))
        if not whole or start >= stop or 0 in array.shape:
            return None
        values = array[start:stop]
        content = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        bytes_of_chunk = self._size * (len(content) // (stop - start))
        parts: list[bytes | memoryview] = [
            content[place : place + bytes_of_chunk] for place in range(0, len(content), bytes_of_chunk)
        ]
        parts[-1] = bytes(parts[-1]).ljust(bytes_of_chunk, b"\0")  # the last chunk is filled with zeros
        chunks = slice(start // self._size, -(-stop // self._size))
        if [_checksum(part, 0) for part in parts] != self._table[chunks].tolist():
            return None
        self._left -= int(np.count_nonzero(~self._compared[chunks]))
        self._compared[chunks] = True
        return values

    @contextlib.contextmanager
    def watching(self, source: Source, array: Hdf5) -> Iterator[None]:
        """Inside, compare the chunks of this array as HDF5 reads them; mismatches are left to `damaged`."""
        self._find_places(array)
        source.watch = self._compare
        try:
            yield
        finally:
            source.watch = None

    def _find_places(self, array: Hdf5) -> None:
        if not self._places:
            self._places = _places(array)
            self._chunks = {place.offset: chunk for chunk, place in self._places.items()}

    def damaged(self, source: Source, array: Hdf5, steps: slice | np.ndarray) -> range | None:
        """The steps of the first damaged chunk that overlaps some steps; None if all are intact.

        Chunks found intact by `read` or while `watching` are not read again.

        Raises:
            OSError: a chunk cannot be read at all.
        """
        if isinstance(steps, slice):
            start, stop, _ = steps.indices(self._size * len(self._compared))
            first, last = start // self._size, -(-stop // self._size)
            if self._compared[first:last].all():
                return None
            chunks = np.arange(first, last)
        else:
            chunks = np.unique(steps // self._size)
        self._find_places(array)
        for chunk in chunks[~self._compared[chunks]].tolist():
            if self._checksum_at(source, self._places.get(chunk, _NOWHERE)) != self._table[chunk]:
                return range(chunk * self._size, (chunk + 1) * self._size)
            self._note(chunk)
        return None

    def _compare(self, offset: int, content: memoryview) -> None:
        """Mark the chunk at an offset as intact if its content matches."""
        chunk = self._chunks.get(offset)
        if chunk is not None and not self._compared[chunk]:
            _, size, filters_left_out = self._places[chunk]
            if len(content) == size and _checksum(content, filters_left_out) == self._table[chunk]:
                self._note(chunk)

    def _note(self, chunk: int) -> None:
        self._compared[chunk] = True
        self._left -= 1

    def _checksum_at(self, source: Source, place: _Place) -> int:
        """The checksum of the chunk at a location."""
        if len(self._buffer) < place.size:
            self._buffer = bytearray(place.size)
        content = memoryview(self._buffer)[: place.size]
        return _checksum(content[: source.read_at(place.offset, content)], place.filters_left_out)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_buffer": bytearray()}


def read_checksums(file: Hdf5, attributes: dict[str, Any]) -> dict[str, Checksums] | None:
    """The checksums of an open file by array name; None if it has none.

    Args:
        attributes: the file's attributes, as h5py reads them.

    Raises:
        ValueError: the file's metadata or checksums are damaged.
    """
    if GROUP not in file:
        return None
    arrays = _arrays(file)
    names = [name for name in arrays if name.startswith(f"{GROUP}/")]
    tables = {name.removeprefix(f"{GROUP}/"): _content(arrays.pop(name)) for name in names}
    described = _described(arrays)
    if file[GROUP].attrs.get(_DIGEST) != _digest(attributes, described, tables):
        raise ValueError(
            f"its attributes, shapes or types do not match their checksum; if it was changed on purpose, "
            f"delete its group '{GROUP}'"
        )
    return {
        name: Checksums(table, described[name][2][0], plain=_is_plain(arrays[name])) for name, table in tables.items()
    }


class ChunkSums:
    """Computes the checksums of a file while it is written."""

    def __init__(self) -> None:
        self._sums: dict[str, list[int]] = {}

    def update(self, array: Hdf5, *, last: bool = False) -> None:
        """Add the chunks that are complete, and with ``last`` the remainder."""
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
        file[GROUP].attrs[_DIGEST] = _digest(dict(file.attrs), _described(arrays), tables)


def make_groups(file: Hdf5, name: str) -> None:
    """Create the parent groups of an array, without timestamps, so that equal files have equal bytes."""
    if group := name.rpartition("/")[0]:
        file.require_group(group)


def _first_element(array: Hdf5, chunk: int) -> tuple[int, ...]:
    """The first element of a chunk. Arrays are chunked along steps only."""
    return (chunk * array.chunks[0],) + (0,) * (array.ndim - 1)


def _places(array: Hdf5) -> dict[int, _Place]:
    """The location of every chunk; querying them one by one takes longer than comparing."""
    found, size = {}, array.chunks[0]

    def note(place: Any) -> None:
        found[place.chunk_offset[0] // size] = _Place(place.byte_offset, place.size, place.filter_mask)

    array.id.chunk_iter(note)
    return found


def _checksum(content: bytes | memoryview, filters_left_out: int) -> int:
    """The checksum of a chunk's bytes and of HDF5's record of its filters."""
    return xxhash.xxh3_64_intdigest(content, seed=filters_left_out)


def _arrays(file: Hdf5) -> dict[str, Hdf5]:
    """All arrays of a file, sorted by name, as low-level h5py objects, because high-level ones are slow to create."""
    names: list[bytes] = []

    def note(name: bytes, info: Any) -> None:
        if info.type == _low.h5o.TYPE_DATASET:
            names.append(name)

    _low.h5o.visit(file.id, note, info=True)
    return {name.decode(errors="surrogateescape"): _low.h5d.open(file.id, name) for name in sorted(names)}


def _content(array: Hdf5) -> np.ndarray:
    content = np.empty(array.shape, array.dtype)
    array.read(_low.h5s.ALL, _low.h5s.ALL, content)
    return content


def _chunk_shape(array: Hdf5) -> Any:
    """None if the array is not chunked."""
    layout = array.get_create_plist()
    return layout.get_chunk() if layout.get_layout() == _low.h5d.CHUNKED else None


def _is_plain(array: Hdf5) -> bool:
    return array.get_create_plist().get_nfilters() == 0


def _noted(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: getattr(value, "tolist", lambda value=value: value)() for name, value in attributes.items()}


def _described(arrays: dict[str, Hdf5]) -> dict[str, list[Any]]:
    """Shape, type, shape of a chunk and attributes of each array."""
    return {
        name: [
            array.shape,
            array.dtype.str,
            _chunk_shape(array),
            _noted(h5py.Dataset(array).attrs if _low.h5a.get_num_attrs(array) else {}),
        ]
        for name, array in arrays.items()
    }


def _digest(attributes: dict[str, Any], described: dict[str, list[Any]], tables: dict[str, np.ndarray]) -> str:
    """The digest of the tables of checksums and of everything else outside the chunks."""
    digest = hashlib.blake2b(
        json.dumps([_noted(attributes), described], sort_keys=True, default=repr).encode(), digest_size=16
    )
    for name, table in sorted(tables.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(table, dtype="<u8").data)
    return digest.hexdigest()
