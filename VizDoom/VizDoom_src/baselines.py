"""Players without a model in the evaluation's episodes: baselines for a model's returns.

- ``random``: any action with equal probability.
- ``colour-blind``: the expert, which takes every item to be of the right colour.
- ``always red``: the expert, which collects red items whatever the pillar shows; right in half of the episodes.
- ``expert, limited view``: as in the data; ``expert, full view``: it knows where everything is. Both know the colour.

Playing takes minutes and always gives the same episodes, so they are cached.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from RATE_model.acting.rollout import Episodes
from RATE_model.system import cache
from RATE_model.system.processes import available_cores, in_order
from RATE_model.system.progress import progress_bar
from VizDoom.VizDoom_src.engine import Surroundings, vizdoom
from VizDoom.VizDoom_src.env import NUM_ACTIONS, PUBLISHED_CAP, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.evaluate import EPISODES, Played, colour_options, evaluation_seeds
from VizDoom.VizDoom_src.expert import Expert, View
from VizDoom.VizDoom_src.generate import EXPERT_STREAM, EXPERT_VERSION
from VizDoom.VizDoom_src.scenario import BUILDER_VERSION, Scenario, cache_directory, ensure_scenario

_PART = 5  # episodes per process and game
_VERSION = 1  # increment when a player below changes its play


def _as_it_is(around: Surroundings, is_red: bool) -> Surroundings:
    return around


def _all_right(around: Surroundings, is_red: bool) -> Surroundings:
    everything = np.concatenate([around.right, around.wrong])
    return replace(around, right=everything, wrong=np.empty((0, 2)))


def _red_is_right(around: Surroundings, is_red: bool) -> Surroundings:
    return around if is_red else replace(around, right=around.wrong, wrong=around.right)


@dataclass(frozen=True)
class Baseline:
    """What the expert sees and which items it takes for right; without a view the player acts at random."""

    view: View | None
    told: Callable[[Surroundings, bool], Surroundings] = _as_it_is


PLAYERS = {
    "random": Baseline(None),
    "colour-blind": Baseline("full", _all_right),
    "always red": Baseline("full", _red_is_right),
    "expert, limited view": Baseline("limited"),
    "expert, full view": Baseline("full"),
}


def play_baselines(
    episodes: int = EPISODES,
    *,
    labels: Sequence[str] = tuple(PLAYERS),
    scenario: Scenario | None = None,
    max_steps: int = PUBLISHED_CAP,
    workers: int | None = None,
) -> dict[str, Played]:
    """The episodes of `evaluation_seeds`, played by these players. The result does not depend on the number of workers.

    Args:
        episodes: even.
        labels: keys of `PLAYERS`.
        scenario: the scenario; None: the published one.
        max_steps: step limit per episode.
        workers: number of processes; None: one per core this process may use.

    Raises:
        UserError: the package vizdoom is missing, an engine died twice in an episode, or a process was killed.
    """
    scenario = replace(scenario or Scenario(), graphics="installed")  # no player uses pictures
    version = vizdoom().__version__  # fails here, not in a worker, if the package is missing
    ensure_scenario(scenario)
    seeds, is_red = evaluation_seeds(episodes)
    made = (_VERSION, EXPERT_VERSION, BUILDER_VERSION, version, sorted(scenario.rules.items()), max_steps)
    places = {label: _place(label, episodes, made) for label in labels}
    found = {label: _read(place, episodes) for label, place in places.items()}
    missing = [label for label in labels if found[label] is None]
    parts = [slice(start, min(start + _PART, episodes)) for start in range(0, episodes, _PART)]
    tasks = [(label, seeds[part].tolist(), is_red[part].tolist()) for label in missing for part in parts]
    played = in_order(partial(_play_part, scenario, max_steps), tasks, min(workers or available_cores(), len(tasks)))
    with closing(played), progress_bar(total=len(tasks), desc="baselines", unit="part") as bar:
        for label in missing:
            rows = []
            for _ in parts:
                rows += next(played)
                bar.update()
            found[label] = _episodes(rows)
            cache.write(places[label], json.dumps(rows).encode())
    return {label: Played(episodes, is_red) for label, episodes in found.items() if episodes is not None}


def _play_part(
    scenario: Scenario, max_steps: int, task: tuple[str, list[int], list[bool]]
) -> list[tuple[float, int, float]]:
    """Return, steps and last reward of a player's episodes, given as (label, seeds, colours)."""
    label, seeds, colours = task
    player, rows = PLAYERS[label], []
    with closing(VizDoomTwoColorsEnv(scenario, max_steps=max_steps, privileged=player.view is not None)) as game:
        for seed, is_red in zip(seeds, colours, strict=True):
            game.reset(seed=seed, options=colour_options(scenario, is_red))
            rows.append(_play(game, player, seed, is_red))
    return rows


def _play(game: VizDoomTwoColorsEnv, player: Baseline, seed: int, is_red: bool) -> tuple[float, int, float]:
    """Play one episode: return, steps, last reward."""
    generator = np.random.default_rng([seed, EXPERT_STREAM])
    expert = Expert(player.view) if player.view else None
    total, steps, reward, over = 0.0, 0, 0.0, False
    while not over:
        if expert is None:
            action = int(generator.integers(NUM_ACTIONS))
        else:
            action = expert.act(player.told(game.surroundings(), is_red))
        _, reward, terminated, truncated, _ = game.step(action)
        total, steps, over = total + reward, steps + 1, terminated or truncated
    return total, steps, reward


def _place(label: str, episodes: int, made: tuple) -> Path:
    """The cache file of a player's episodes; its name encodes everything they depend on."""
    digest = hashlib.sha256(repr((label, episodes, made)).encode()).hexdigest()[:12]
    return cache_directory() / f"baseline_{digest}.json"


def _read(place: Path, episodes: int) -> Episodes | None:
    """The episodes in a cache file; None if it is missing or unreadable."""
    try:
        rows = json.loads(place.read_bytes())
        return _episodes(rows) if len(rows) == episodes else None
    except (OSError, ValueError, TypeError):
        return None


def _episodes(rows: Sequence[tuple[float, int, float]]) -> Episodes:
    returns, lengths, last_rewards = (np.array(column) for column in zip(*rows, strict=True))
    return Episodes(returns, lengths, last_rewards)
