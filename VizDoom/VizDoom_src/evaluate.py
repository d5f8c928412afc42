"""The evaluation protocol of ViZDoom-Two-Colors: equally many red and green episodes, from the published seeds.

The mean over both colours says little: a player that always collects red lives long in every red episode, dies at once
in every green one, and has a good mean. So results come by colour, with the smaller of the two and their difference.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from RATE_model.acting.rollout import Episodes, mean_and_error
from VizDoom.VizDoom_src.scenario import TICS_PER_STEP, Scenario
from VizDoom.VizDoom_src.seeds import EVERY, GREEN_SEEDS, RED_SEEDS

TARGET_RETURN = 56.5
MAX_EPISODES = len(RED_SEEDS) + len(GREEN_SEEDS)
EPISODES = MAX_EPISODES // EVERY
COLOURS = ("red", "green")
# Table column -> name in `metrics`, without the target return.
COLUMNS = {
    "red": "ReturnsMean_red",
    "green": "ReturnsMean_green",
    "mean": "ReturnsMean",
    "weaker": "ReturnsMin",
    "difference": "ReturnsDifference",
}
# Standard errors over episodes.
ERRORS = {"red": "ReturnsSEM_red", "green": "ReturnsSEM_green", "mean": "ReturnsSEM"}
_LIFETIMES = {f"{colour}_tics": f"LifeTimeMean_{colour}" for colour in COLOURS}


@dataclass(frozen=True)
class Played:
    """E episodes and their colours."""

    episodes: Episodes
    is_red: np.ndarray  # (E,) bool

    def of(self, colour: str) -> np.ndarray:
        """Which episodes have a colour, "red" or "green": (E,) bool."""
        return self.is_red == (colour == "red")

    def returns(self, colour: str) -> np.ndarray:
        """Returns of the episodes of a colour, float64."""
        return self.episodes.returns[self.of(colour)]

    @property
    def lifetimes(self) -> np.ndarray:
        """(E,) game tics, as published: from the index of the last step, counted from 0."""
        return (self.episodes.lengths - 1) * TICS_PER_STEP


def evaluation_seeds(episodes: int = EPISODES) -> tuple[np.ndarray, np.ndarray]:
    """Seeds, (E,) int64, and whether they are red, (E,) bool: every N of the published lists, red ones first.

    50 gives the published 25 + 25, and 200 gives all.
    """
    each = episodes // 2
    chosen = [seeds[:: len(seeds) // each][:each] for seeds in (RED_SEEDS, GREEN_SEEDS)]
    return np.concatenate(chosen).astype(np.int64), np.repeat([True, False], each)


def is_red(seeds: np.ndarray) -> np.ndarray:
    """Which of these evaluation seeds are red: (E,) bool."""
    return np.isin(seeds, RED_SEEDS)


def has_free_colour(scenario: Scenario) -> bool:
    """Whether an episode's colour can be chosen; in the published scenario its seed decides."""
    return scenario.variant == "clear"


def colour_options(scenario: Scenario, is_red: bool | np.ndarray) -> dict[str, Any] | None:
    """Options of `reset` that give episodes of `evaluation_seeds` their colours."""
    return {"is_red": is_red} if has_free_colour(scenario) else None


def metrics(played: Played, *, target_return: float) -> dict[str, float]:
    """Results by name: the published ones, and those that put them in context.

    `ReturnsSEM_*` are standard errors over episodes, `ReturnsMin_*` the mean return of the weaker colour, and
    `ReturnsDifference_*` the stronger colour's mean minus the weaker one's.
    """
    asked = f"{target_return:g}"
    result: dict[str, float] = {}
    groups = {f"_{colour}": played.of(colour) for colour in COLOURS} | {"": np.ones_like(played.is_red)}
    for suffix, rows in groups.items():
        mean, error = mean_and_error(played.episodes.returns[rows])
        result |= {
            f"LifeTimeMean{suffix}_{asked}": float(played.lifetimes[rows].mean()),
            f"ReturnsMean{suffix}_{asked}": mean,
            f"ReturnsSEM{suffix}_{asked}": error,
        }
    means = [result[f"ReturnsMean_{colour}_{asked}"] for colour in COLOURS]
    return result | {f"ReturnsMin_{asked}": min(means), f"ReturnsDifference_{asked}": max(means) - min(means)}


def figures(played: Played) -> dict[str, float]:
    """Mean returns by colour with their standard errors, as in `metrics`, and lifetimes in game tics, by column."""
    found = metrics(played, target_return=0)
    columns = {}
    for column, name in (COLUMNS | _LIFETIMES).items():
        columns[column] = found[f"{name}_0"]
        if column in ERRORS:
            columns[f"{column}_error"] = found[f"{ERRORS[column]}_0"]
    return columns
