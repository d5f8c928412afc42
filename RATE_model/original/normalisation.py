"""Normalisation statistics of a published model's observations, which its checkpoint lacks."""

import json
from pathlib import Path

import numpy as np

from RATE_model.data.hdf5 import open_hdf5
from RATE_model.data.pickles import load_pickle
from RATE_model.errors import UserError

STD_MARGIN = 1e-6


def read_normalisation(path: Path, features: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per feature, including the published margin of 1e-6.

    Args:
        path: a JSON file with `mean` and `std`, used unchanged; or the model's training data: an HDF5 file in D4RL's
            layout, or the published pickle, a list of episodes with `observations`.

    Raises:
        UserError: the file is missing, damaged, or of another kind.
    """
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            mean, std = (np.asarray(content[name], dtype=np.float32) for name in ("mean", "std"))
        else:
            observations = _observations(path).astype(np.float64)
            mean, std = observations.mean(axis=0), observations.std(axis=0) + STD_MARGIN
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"--normalisation {path}: {error.strerror or error}") from None
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"--normalisation {path}: neither a JSON file with mean and std nor trajectories with observations "
            f"({error!r})"
        ) from None
    if mean.shape != (features,) or std.shape != (features,):
        found = f"{mean.shape} and {std.shape}"
        raise UserError(f"--normalisation {path}: mean and std have shapes {found}; the model has {features} features")
    if not np.isfinite([mean, std]).all() or std.min() <= 0:
        raise UserError(f"--normalisation {path}: mean and std must be finite, and std above 0")
    return tuple(mean.astype(np.float32).tolist()), tuple(std.astype(np.float32).tolist())


def _observations(path: Path) -> np.ndarray:
    """Observations (n, features) of all whole episodes of a data file."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        return np.concatenate([np.asarray(episode["observations"]) for episode in load_pickle(path)])
    with open_hdf5(path) as file:
        observations = file["observations"][()]
        ends = np.zeros(len(observations), dtype=bool)
        for name in ("terminals", "timeouts"):
            if name in file:
                ends |= file[name][()].reshape(-1).astype(bool)
    # As published: the unfinished tail of a file is dropped.
    return observations[: np.flatnonzero(ends)[-1] + 1] if ends.any() else observations
