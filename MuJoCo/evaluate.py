"""Figures of an evaluation in MuJoCo; scores are D4RL's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from MuJoCo.tasks import Robot
from RATE_model.acting.rollout import Episodes, error_entry


def metrics(played: Mapping[str, Episodes], robot: Robot) -> dict[str, float]:
    """Results by name: mean, standard deviation and standard error of normalised scores, returns and lengths.

    `episode_MEAN` and `episode_STD`, the published names, hold normalised scores, as there; the prefix "{K}_" marks
    prompt K. Returns are `return_...`.
    """
    result = {}
    for prefix, episodes in played.items():
        for name, values in (
            ("episode", robot.normalised_score(episodes.returns)),
            ("return", episodes.returns),
            ("length", episodes.lengths),
        ):
            figures = {"MEAN": float(values.mean()), "STD": float(np.std(values)), **error_entry("SEM", values)}
            result |= {f"{prefix}{name}_{kind}": value for kind, value in figures.items()}
    return result
