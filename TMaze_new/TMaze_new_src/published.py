"""The authors' T-Maze data: pickles made by their scripts, converted once to our own layout.

    new_tmaze_data_segment_{S}_..._segment_length_{K}.pickle    branch rate-old: S segments of K steps
    data_T_{S * K}.pickle                                       branch main: corridors of any length up to that

Each holds a dict of episodes with `obs` (T + 1, 4), `action` (T,), `rtg` (T + 1,) and `done` (T,). The last
observation, which has no action, is dropped; rewards are the differences of the returns-to-go.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from RATE_model.data.episodes import converted_once
from RATE_model.data.npz import conversion_path
from RATE_model.data.pickles import load_pickle
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from TMaze_new.TMaze_new_src.env import ENV_ID, NUM_ACTIONS, OBSERVATION_SIZE

_KEYS = ("obs", "action", "rtg")


def published_file(folder: Path, segments: int, context_length: int) -> Path:
    """The pickle with this many segments in a folder. Raises UserError unless there is exactly one."""
    patterns = (
        f"new_tmaze_data_segment_{segments}_*_segment_length_{context_length}.pickle",
        f"data_T_{segments * context_length}.pickle",
    )
    found = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if len(found) != 1:
        what = "has no" if not found else f"has {len(found)} files of"
        raise UserError(
            f"--data_path {folder}: {what} published data of {segments} segments of {context_length} steps; looked for "
            f"{' and '.join(patterns)}"
        )
    return found[0]


def converted(source: Path, directory: Path) -> Path:
    """The conversion of a published pickle, in a directory; made unless an up-to-date one exists.

    Raises:
        UserError: the pickle is damaged or does not hold T-Maze episodes.
    """
    return converted_once(source, [conversion_path(source, directory, "tmaze")], partial(_convert, source))


def _convert(source: Path, target: Path, identity: Mapping[str, int]) -> None:
    """See `converted`."""
    episodes = load_pickle(source)
    if not isinstance(episodes, Mapping) or not episodes:
        raise UserError(f"'{source}' does not contain a dict of episodes")
    attributes = {"environment": ENV_ID, "generator": "published", "source": source.name, **identity}
    with TrajectoryWriter(
        target, observation_shape=(OBSERVATION_SIZE,), observation_dtype="float32", attributes=attributes
    ) as writer:
        for number, episode in episodes.items():
            observations, actions, rtg = _arrays(f"episode {number} of '{source}'", episode)
            writer.add_episode(observations, actions, rtg[:-1] - rtg[1:], terminal=True)


def _arrays(place: str, episode: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations (T, 4) float32, actions (T,) uint8 and returns-to-go (T + 1,) float32 of an episode."""
    if not isinstance(episode, Mapping) or (missing := [key for key in _KEYS if key not in episode]):
        raise UserError(f"{place} has no {', '.join(missing) if isinstance(episode, Mapping) else ', '.join(_KEYS)}")
    observations, actions, rtg = (np.asarray(episode[key]) for key in _KEYS)
    steps = len(actions) if actions.ndim == 1 else 0
    if not steps or observations.shape != (steps + 1, OBSERVATION_SIZE) or rtg.shape != (steps + 1,):
        shapes = ", ".join(f"{key} {np.shape(episode[key])}" for key in _KEYS)
        raise UserError(f"{place} has arrays whose shapes do not match ({shapes})")
    if not np.isin(actions, range(NUM_ACTIONS)).all():
        raise UserError(f"{place} has actions outside 0 to {NUM_ACTIONS - 1}")
    return observations[:-1].astype(np.float32), actions.astype(np.uint8), rtg.astype(np.float32)
