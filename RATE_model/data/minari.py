"""Minari datasets (Farama Foundation, format version 0.5), read and losslessly written without the package.

    {dataset}/data/metadata.json     spaces, the environment's specification, counts, authors, ... as JSON
    {dataset}/data/main_data.hdf5    one group `episode_{i}` each: observations (T + 1, ...), actions, rewards,
                                     terminations, truncations (T, ...); dicts are groups, tuples groups of `_index_{i}`

A dataset is a folder, or a name below $MINARI_DATASETS_PATH, by default ~/.minari/datasets.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium import spaces
from PIL import Image

from RATE_model.data.hdf5 import Hdf5, open_hdf5, raise_if_machine_error
from RATE_model.errors import UserError, error_reason
from RATE_model.system.atomic import atomic_write_json
from RATE_model.system.locks import temporary

VERSION = "0.5.4"  # of the format written here
DATA, METADATA = Path("data") / "main_data.hdf5", Path("data") / "metadata.json"
# Metadata that is written again for datasets made by this project.
_OWN = {
    *("total_episodes", "total_steps", "dataset_size", "data_format", "jpeg_encoding", "minari_version"),
    *("observation_space", "action_space", "env_spec", "environment"),
}


def minari_folder(dataset: str | Path) -> Path:
    """The folder of a dataset, given its path or name; it need not exist."""
    path = Path(dataset).expanduser()
    if path.is_absolute() or path.exists() or str(dataset).startswith("."):
        return path
    root = os.environ.get("MINARI_DATASETS_PATH") or "~/.minari/datasets"
    return Path(root).expanduser() / path


def is_minari(folder: Path) -> bool:
    """Whether a folder is a Minari dataset."""
    return (folder / DATA).is_file()


def read_minari(folder: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The episodes of a dataset in numerical order, and its metadata.

    Returns:
        Dicts of observations (T + 1, ...) or dicts of such, actions, rewards, terminations, truncations (T, ...). The
        metadata is the file's, plus `spaces` of observations and actions (None if missing or unsupported) and
        `environment`, the registered id, if the file names one.

    Raises:
        UserError: there is no such dataset, or it is damaged.
    """
    if not is_minari(folder):
        raise UserError(f"'{folder}' is not a Minari dataset: it has no file {DATA}")
    try:
        metadata = json.loads((folder / METADATA).read_text()) if (folder / METADATA).is_file() else {}
        observation_space = _space(metadata.get("observation_space"))
        encoded = bool(metadata.get("jpeg_encoding", True))
        with open_hdf5(folder / DATA) as file:
            episodes = [
                {
                    "observations": _read(episode["observations"], observation_space, encoded),
                    **{key: episode[key][()] for key in ("actions", "rewards", "terminations", "truncations")},
                }
                for _, episode in stored_episodes(file, folder, metadata)
            ]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise_if_machine_error(folder / DATA, error)
        raise UserError(f"'{folder}' cannot be read; it is truncated or damaged ({error_reason(error)})") from error
    metadata["spaces"] = observation_space, _space(metadata.get("action_space"))
    if "env_spec" in metadata:
        metadata["environment"] = json.loads(metadata["env_spec"]).get("id")
    return episodes, metadata


def stored_episodes(file: Hdf5, place: Path, metadata: Mapping[str, Any] | None = None) -> Iterator[tuple[str, Hdf5]]:
    """The names and groups of the episodes of an open main_data.hdf5, in the order of their numbers.

    Raises:
        UserError: the number or length of episodes differs from the file's metadata; the message names `place`.
    """
    names = sorted(filter(episode_number, file), key=lambda name: episode_number(name) or 0)
    for said in (file.attrs, metadata or {}):
        if (stated := said.get("total_episodes", len(names))) != len(names):
            raise UserError(f"'{place}' states {stated} episodes but contains {len(names)}; copy it again")
    for name in names:
        steps = len(file[name]["rewards"]) if "rewards" in file[name] else None  # missing: reported by the reader
        if steps is not None and (stated := file[name].attrs.get("total_steps", steps)) != steps:
            raise UserError(f"'{name}' of '{place}' states {stated} steps but contains {steps}")
        yield name, file[name]


def episode_number(name: str) -> int | None:
    """1 for "episode_0", 2 for "episode_1", ...; None for another name."""
    match = re.fullmatch(r"episode_(\d+)", name)
    return int(match[1]) + 1 if match else None


def write_minari(
    dataset: str | Path,
    episodes: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray, bool]],
    observation_space: spaces.Space,
    action_space: spaces.Space,
    metadata: Mapping[str, Any],
) -> Path:
    """Write a dataset; returns its folder. Images are stored losslessly.

    Args:
        dataset: a new folder, or a name.
        episodes: observations (T, ...), actions, rewards (T,), and whether the last step is terminal. The observation
            after the last action is unknown, so the last one is repeated.
        observation_space, action_space: spaces of the environment.
        metadata: for Minari, such as author, algorithm_name, code_permalink, and `environment`, its registered id.

    Raises:
        UserError: the dataset exists, or it cannot be written.
    """
    folder = minari_folder(dataset)
    if is_minari(folder):
        raise UserError(f"'{folder}' already contains a Minari dataset; give another name")
    count = steps = 0
    try:
        (folder / DATA).parent.mkdir(parents=True, exist_ok=True)
        with temporary(folder / DATA) as partial:
            with h5py.File(partial, "w", track_order=True) as file:
                for count, (observations, actions, rewards, terminal) in enumerate(episodes, start=1):
                    last = np.arange(len(rewards)) == len(rewards) - 1
                    group = file.create_group(f"episode_{count - 1}")
                    group.attrs.update({"id": count - 1, "total_steps": len(rewards)})
                    columns = {
                        "observations": np.concatenate([observations, observations[-1:]]),
                        "actions": actions,
                        "rewards": np.asarray(rewards, dtype=np.float64),
                        "terminations": last & terminal,
                        "truncations": last & (not terminal),
                    }
                    for name, values in columns.items():
                        group.create_dataset(name, data=values, chunks=True, maxshape=(None, *values.shape[1:]))
                    steps += len(rewards)
            document = {
                **{name: value for name, value in metadata.items() if name not in _OWN and _is_plain(value)},
                "total_episodes": count,
                "total_steps": steps,
                "data_format": "hdf5",
                "jpeg_encoding": False,
                "minari_version": VERSION,
                "observation_space": json.dumps(_described(observation_space)),
                "action_space": json.dumps(_described(action_space)),
            }
            document.setdefault("dataset_id", folder.name if "/" not in str(dataset) else str(dataset))
            if (spec := gymnasium.registry.get(str(metadata.get("environment")))) is not None:
                document["env_spec"] = spec.to_json()
            atomic_write_json(folder / METADATA, document)
            os.replace(partial, folder / DATA)  # last: a dataset exists once its data does
    except OSError as error:
        raise UserError(f"the Minari dataset '{folder}' cannot be written: {error_reason(error)}") from error
    return folder


def _read(stored: Any, space: spaces.Space | None, encoded: bool) -> Any:
    """The observations of an episode; dicts and tuples become dicts."""
    if isinstance(stored, h5py.Group):
        parts = {name.removeprefix("_index_"): name for name in map(str, stored)}
        inner = space.spaces if isinstance(space, spaces.Dict) else {}
        return {key: _read(stored[name], inner.get(key), encoded) for key, name in parts.items()}
    values = stored[()]
    if encoded and isinstance(space, spaces.Box) and space.dtype == np.uint8 and values.dtype.kind in "Ou":
        if values.dtype.kind == "O" or values.ndim == 2:  # JPEG-encoded images
            return np.stack([np.asarray(Image.open(io.BytesIO(bytes(picture)))) for picture in values])
    return values


def _described(space: spaces.Space) -> dict[str, Any]:
    """A space in Minari's JSON form."""
    if isinstance(space, spaces.Box):
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"type": "Box", "dtype": str(space.dtype), "shape": list(space.shape), **bounds}
    assert isinstance(space, spaces.Discrete), "models observe boxes and predict boxes or integers"
    return {"type": "Discrete", "dtype": "int64", "start": int(space.start), "n": int(space.n)}


def _space(text: str | None) -> spaces.Space | None:
    """A space from Minari's JSON form; None if there is none or it is not supported."""
    return None if text is None else _space_of(json.loads(text))


def _space_of(described: Mapping[str, Any]) -> spaces.Space | None:
    if described["type"] == "Box":
        low, high = (np.array(described[name], dtype=described["dtype"]) for name in ("low", "high"))
        return spaces.Box(low, high, tuple(described["shape"]), np.dtype(described["dtype"]).type)
    if described["type"] == "Discrete":
        return spaces.Discrete(described["n"], start=described["start"])
    if described["type"] == "MultiDiscrete" and not np.any(described.get("start", 0)):
        return spaces.MultiDiscrete(described["nvec"])
    if described["type"] == "MultiBinary":
        return spaces.MultiBinary(described["n"])
    if described["type"] == "Dict":
        parts = {name: _space_of(part) for name, part in described["subspaces"].items()}
        known = {name: part for name, part in parts.items() if part is not None}
        return spaces.Dict(known) if len(known) == len(parts) else None
    return None


def _is_plain(value: Any) -> bool:
    """Whether a value can be stored as JSON unchanged."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, str | int | float | bool)
