"""Lossless compression of trajectory files with zstd, through the package hdf5plugin, imported on use."""

from __future__ import annotations

from typing import Any

import h5py

from RATE_model.system.packages import needed

ZSTD_FILTER = 32015  # id of the zstd filter in the HDF5 registry
ZSTD_LEVEL = 3


def zstd(purpose: str, level: int) -> dict[str, Any]:
    """h5py's arguments for a zstd-compressed dataset, level 1 to 22. Raises as `hdf5plugin`."""
    return dict(hdf5plugin(purpose).Zstd(clevel=level))


def hdf5plugin(purpose: str) -> Any:
    """The package with the zstd filter. If it is missing, raises `UserError` starting with ``purpose``."""
    return needed(f"{purpose} needs the package hdf5plugin", "hdf5plugin", install="pip install hdf5plugin")


def uses_zstd(item: h5py.Dataset | h5py.Group) -> bool:
    """Whether reading an item of a file requires hdf5plugin."""
    if not isinstance(item, h5py.Dataset):
        return False
    filters = item.id.get_create_plist()
    return any(filters.get_filter(number)[0] == ZSTD_FILTER for number in range(filters.get_nfilters()))
