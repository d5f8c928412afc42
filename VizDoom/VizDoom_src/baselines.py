"""Players without a model in the evaluation's episodes: what a model's returns are to be read beside.

- ``random``: any action with equal probability.
- ``colour-blind``: the expert, told that every item is of the right colour.
- ``always red``: the expert, told that red ones are, whatever the pillar shows: half of its episodes go well.
- ``expert, limited view``: as in the data; ``expert, full view``: it knows where everything lies. Both know the colour.

A player's episodes take minutes, and are the same every time: they are kept in the cache.
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

_PART = 5  # episodes that a process plays in one game
_VERSION = 1  # raise it when a player below plays in another way


def _as_it_is(around: Surroundings, is_red: bool) -> Surroundings:
    return around


def _all_right(around: Surroundings, is_red: bool) -> Surroundings:
    everything = np.concatenate([around.right, around.wrong])
    return replace(around, right=everything, wrong=np.empty((0, 2)))


def _red_is_right(around: Surroundings, is_red: bool) -> Surroundings:
    return around if is_red else replace(around, right=around.wrong, wrong=around.right)


@dataclass(frozen=True)
class Baseline:
    """What the expert sees and what it is told of it; without a view the player acts at random."""

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
    """What these players do in the episodes of `evaluation_seeds`. The result is the same for any number of workers.

    Args:
        episodes: even.
        labels: of `PLAYERS`.
        scenario: what is played; None: the published scenario.
        max_steps: of an episode.
        workers: processes that play; None: one per core this process may use.

    Raises:
        UserError: the package vizdoom is missing, an engine died twice in an episode, or a process was killed.
    """
    scenario = replace(scenario or Scenario(), graphics="installed")  # no player looks at pictures
    version = vizdoom().__version__  # a missing package shows here, not in a process
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
    """One episode of a game that was reset: return, steps, last reward."""
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
    """Where a player's episodes are kept; the name holds all that they depend on."""
    digest = hashlib.sha256(repr((label, episodes, made)).encode()).hexdigest()[:12]
    return cache_directory() / f"baseline_{digest}.json"


def _read(place: Path, episodes: int) -> Episodes | None:
    """The episodes in a file of the cache; None if there is none, or none that can be read."""
    try:
        rows = json.loads(place.read_bytes())
        return _episodes(rows) if len(rows) == episodes else None
    except (OSError, ValueError, TypeError):
        return None


def _episodes(rows: Sequence[tuple[float, int, float]]) -> Episodes:
    returns, lengths, last_rewards = (np.array(column) for column in zip(*rows, strict=True))
    return Episodes(returns, lengths, last_rewards)
