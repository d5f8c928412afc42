"""The evaluation protocol of ViZDoom-Two-Colors: as many red as green episodes of the published seeds.

The mean over both colours alone says little: who always collects red lives long in every red episode, dies at once in
every green one, and has a good mean. So results come by colour, with the smaller of the two and their difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import Episodes, mean_and_error, rollout
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.contract import MemoryTransform
from VizDoom.VizDoom_src.env import PUBLISHED_CAP
from VizDoom.VizDoom_src.scenario import TICS_PER_STEP, Scenario
from VizDoom.VizDoom_src.seeds import EVERY, GREEN_SEEDS, RED_SEEDS
from VizDoom.VizDoom_src.vector import VizDoomTwoColorsVectorEnv

TARGET_RETURN = 56.5
MAX_EPISODES = len(RED_SEEDS) + len(GREEN_SEEDS)
EPISODES = MAX_EPISODES // EVERY
# Games at once: more would not make use of more cores, and every engine takes some 20 MB.
_AT_ONCE = 50
COLOURS = ("red", "green")


@dataclass(frozen=True)
class Played:
    """E episodes and their colours."""

    episodes: Episodes
    is_red: np.ndarray  # (E,) bool

    def of(self, colour: str) -> np.ndarray:
        """Which episodes are of a colour, "red" or "green": (E,) bool."""
        return self.is_red == (colour == "red")

    def returns(self, colour: str) -> np.ndarray:
        """Returns of the episodes of a colour, float64."""
        return self.episodes.returns[self.of(colour)]

    @property
    def lifetimes(self) -> np.ndarray:
        """(E,) game tics, as published: of the last step's number, counted from 0."""
        return (self.episodes.lengths - 1) * TICS_PER_STEP


def check_episodes(least: int = 4, **episodes: int) -> None:
    """Raise `UserError` if a flag does not ask for as many red as green episodes of those that there are seeds for.

    Fewer than four have no standard errors.
    """
    for name, count in episodes.items():
        if not least <= count <= MAX_EPISODES or count % 2:
            raise UserError(
                f"--{name} {count}: must be even, as both colours have as many, at least {least} and at most "
                f"{MAX_EPISODES}"
            )


def evaluation_seeds(episodes: int = EPISODES) -> tuple[np.ndarray, np.ndarray]:
    """Seeds, (E,) int64, and whether they are red, (E,) bool: every so many of the published lists, red ones first.

    50 are the published 25 + 25, and 200 are all.
    """
    each = episodes // 2
    chosen = [seeds[:: len(seeds) // each][:each] for seeds in (RED_SEEDS, GREEN_SEEDS)]
    return np.concatenate(chosen).astype(np.int64), np.repeat([True, False], each)


def has_free_colour(scenario: Scenario) -> bool:
    """Whether an episode's colour can be chosen; in the published scenario its seed decides."""
    return scenario.variant == "clear"


def colour_options(scenario: Scenario, is_red: bool | np.ndarray) -> dict[str, Any] | None:
    """What `reset` has to be told so that episodes of `evaluation_seeds` have their colours."""
    return {"is_red": is_red} if has_free_colour(scenario) else None


def described(target_return: float, renewed: bool) -> str:
    """The return that is asked for, in words."""
    return f"{target_return:g} at every segment" if renewed else f"{target_return:g}"


def play(
    model: Agent,
    *,
    episodes: int = EPISODES,
    target_return: float = TARGET_RETURN,
    reset_target: bool = False,
    greedy: bool = True,
    seed: int = 0,
    slide: int = 1,
    scenario: Scenario | None = None,
    max_steps: int = PUBLISHED_CAP,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
    twins: bool = False,
) -> Played:
    """Act until the player dies, or for `max_steps` steps.

    Args:
        model: in eval mode.
        episodes: even; their seeds are those of `evaluation_seeds`.
        target_return: the return asked for.
        reset_target, greedy, seed, slide, transform_memory, precision: see `Actor`.
        scenario: what is played; None: the published scenario.
        max_steps: of an episode.
        twins: play every seed twice, with a red and with a green pillar, in neighbouring rows (see `exchange_twins`):
            2 `episodes` episodes; of a scenario whose colour can be chosen.

    Raises:
        UserError: the package vizdoom is missing, or an engine died twice in one episode.
        ValueError: twins in a scenario whose colour is its seed's.
    """
    scenario = scenario or Scenario()
    seeds, is_red = evaluation_seeds(episodes)
    if twins:
        if not has_free_colour(scenario):
            raise ValueError("the colour of the published scenario is its seed's; twins need the variant 'clear'")
        seeds, is_red = np.repeat(seeds, 2), np.tile([True, False], episodes)
    parts = []
    for rows in _groups(len(seeds)):
        with torch.no_grad():
            actor = Actor(
                model,
                len(rows),
                target_return,
                reset_target=reset_target,
                greedy=greedy,
                seed=seed + rows.start,
                slide=slide,
                transform_memory=transform_memory,
                precision=precision,
            )
        part = slice(rows.start, rows.stop)
        games = VizDoomTwoColorsVectorEnv(len(rows), scenario, max_steps=max_steps)
        try:
            parts.append(
                rollout(
                    actor,
                    games,
                    seeds=seeds[part],
                    max_steps=max_steps,
                    options=colour_options(scenario, is_red[part]),
                    compact=not twins,
                    description="ViZDoom",
                )
            )
        finally:
            games.close()
    return Played(Episodes.joined(parts), is_red)


def _groups(episodes: int) -> Iterator[range]:
    return (range(start, min(start + _AT_ONCE, episodes)) for start in range(0, episodes, _AT_ONCE))


def metrics(played: Played, *, target_return: float) -> dict[str, float]:
    """Results by name: the published ones, and what makes them readable.

    `ReturnsSEM_*` are standard errors over episodes, `ReturnsMin_*` the mean return of the weaker colour, and
    `ReturnsDifference_*` by how much the stronger one is above it.
    """
    asked = f"{target_return:g}"
    result = {}
    for colour in COLOURS:
        mean, error = mean_and_error(played.returns(colour))
        result |= {
            f"LifeTimeMean_{colour}_{asked}": float(played.lifetimes[played.of(colour)].mean()),
            f"ReturnsMean_{colour}_{asked}": mean,
            f"ReturnsSEM_{colour}_{asked}": error,
        }
    mean, error = mean_and_error(played.episodes.returns)
    means = [result[f"ReturnsMean_{colour}_{asked}"] for colour in COLOURS]
    return result | {
        f"LifeTimeMean_{asked}": float(played.lifetimes.mean()),
        f"ReturnsMean_{asked}": mean,
        f"ReturnsSEM_{asked}": error,
        f"ReturnsMin_{asked}": min(means),
        f"ReturnsDifference_{asked}": max(means) - min(means),
    }
