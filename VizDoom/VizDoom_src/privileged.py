"""What data stores per step besides the picture: for objectives, probes and oracles, not for agents that play."""

from __future__ import annotations

from typing import Any

import numpy as np

from VizDoom.VizDoom_src.engine import Surroundings

# Those that mirroring does not change.
SAME_IN_THE_MIRROR = ("is_red", "seed", "health", "pillar", "items")
# Those that mirroring multiplies: what is to the left is then to the right.
SIGNS_IN_THE_MIRROR = {"right_vec": (1.0, -1.0), "wrong_vec": (1.0, -1.0)}


def notes_of(around: Surroundings) -> dict[str, Any]:
    """What is stored for a step, in map units:

    - ``agent_pos`` (2,), ``agent_dir`` (2,), the unit vector in which the agent faces, ``velocity`` (2,) per tic;
    - ``right_vec``, ``wrong_vec`` (2,): from the agent to the nearest item of the pillar's colour, and of the other:
      ahead, to the left; NaN where there is none;
    - ``pillar``: whether it is there; ``items`` (2,): number of items of each kind.
    """
    angle = np.radians(around.angle)
    ahead = np.array([np.cos(angle), np.sin(angle)])
    return {
        "agent_pos": np.float32(around.position),
        "agent_dir": np.float32(ahead),
        "velocity": np.float32(around.velocity),
        "right_vec": _nearest(around, around.right, ahead),
        "wrong_vec": _nearest(around, around.wrong, ahead),
        "pillar": np.uint8(around.pillar),
        "items": np.array([len(around.right), len(around.wrong)], dtype=np.uint8),
    }


def _nearest(around: Surroundings, places: np.ndarray, ahead: np.ndarray) -> np.ndarray:
    if not len(places):
        return np.full(2, np.nan, dtype=np.float32)
    away = places - around.position
    away = away[np.argmin(np.hypot(*away.T))]
    return np.array([away @ ahead, away @ np.array([-ahead[1], ahead[0]])], dtype=np.float32)
