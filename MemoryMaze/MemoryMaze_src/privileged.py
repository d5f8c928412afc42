"""What data stores per step besides the picture: for objectives, probes and oracles, not for agents that play."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from MemoryMaze.MemoryMaze_src.experts import in_sight

# Those that mirroring does not change, and those whose second component points to the left.
SAME_IN_THE_MIRROR = ("target", "target_visible", "random", "seed", "player")
SIGNS_IN_THE_MIRROR = {name: (1.0, -1.0) for name in ("target_vec", "targets_vec", "seen_vec")}


class PrivilegedRecorder:
    """Records one episode step by step; x and y in cells.

    - ``agent_pos``, ``agent_dir`` (2,), ``targets_pos`` (n, 2), ``maze_layout`` (size, size): as in `MemoryMazeEnv`;
    - ``target``: which ball is the target; ``target_visible``: whether it is in view;
    - ``target_vec`` (2,), ``targets_vec`` (n, 2): from the agent to the target ball, and to all: ahead, to the left;
    - ``seen_vec`` (n, 2): the same for the balls that have been in view since the episode began, NaN for the others.
    """

    def __init__(self) -> None:
        self._seen: np.ndarray | None = None

    def note(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What is stored for a step, from `MemoryMazeEnv`'s privileged info."""
        position, direction, balls = info["agent_pos"], info["agent_dir"], info["targets_pos"]
        target = info["target_index"]
        visible = in_sight(info["maze_layout"], position, float(np.arctan2(direction[1], direction[0])), balls)
        self._seen = visible if self._seen is None else self._seen | visible
        away = balls - position
        ahead, left = direction, np.array([-direction[1], direction[0]])
        vectors = np.stack([away @ ahead, away @ left], axis=-1).astype(np.float32)
        return {
            "target": np.uint8(target),
            "agent_pos": np.float32(position),
            "agent_dir": np.float32(direction),
            "targets_pos": np.float32(balls),
            "maze_layout": np.uint8(info["maze_layout"]),
            "target_visible": np.uint8(visible[target]),
            "target_vec": vectors[target],
            "targets_vec": vectors,
            "seen_vec": np.where(self._seen[:, None], vectors, np.float32(np.nan)),
        }
