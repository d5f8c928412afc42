"""Players without a model in the evaluation's episodes: baselines for a model's returns.

- ``random``: any action with equal probability.
- ``colour-blind``: the expert, which takes every item to be of the right colour.
- ``always red``: the expert, which collects red items whatever the pillar shows; right in half of the episodes.
- ``expert, limited view``: as in the data; ``expert, full view``: it knows where everything is. Both know the colour.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from RATE_model.acting.players import Row, play_episode, play_players
from VizDoom.VizDoom_src.engine import Surroundings, vizdoom
from VizDoom.VizDoom_src.env import NUM_ACTIONS, PUBLISHED_CAP, VizDoomTwoColorsEnv
from VizDoom.VizDoom_src.evaluate import EPISODES, Played, colour_options, evaluation_seeds, is_red
from VizDoom.VizDoom_src.expert import Expert, View
from VizDoom.VizDoom_src.generate import EXPERT_STREAM, EXPERT_VERSION
from VizDoom.VizDoom_src.scenario import BUILDER_VERSION, Scenario, cache_directory, ensure_scenario

_PART = 5  # episodes per process and game
_VERSION = 1  # increment when a player below changes its play


def _all_right(around: Surroundings, is_red: bool) -> Surroundings:
    everything = np.concatenate([around.right, around.wrong])
    return replace(around, right=everything, wrong=np.empty((0, 2)))


def _red_is_right(around: Surroundings, is_red: bool) -> Surroundings:
    return around if is_red else replace(around, right=around.wrong, wrong=around.right)


@dataclass(frozen=True)
class Baseline:
    """What the expert sees and which items it takes for right; without a view the player acts at random."""

    view: View | None
    told: Callable[[Surroundings, bool], Surroundings] = lambda around, is_red: around


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
    seeds, red = evaluation_seeds(episodes)
    played = play_players(
        labels,
        seeds,
        partial(_play_part, scenario, max_steps),
        made=(_VERSION, EXPERT_VERSION, BUILDER_VERSION, version, sorted(scenario.rules.items()), max_steps),
        folder=cache_directory(),
        workers=workers,
        part=_PART,
    )
    return {label: Played(episodes, red) for label, episodes in played.items()}


def _play_part(scenario: Scenario, max_steps: int, label: str, seeds: Sequence[int]) -> list[Row]:
    """Return, steps and last reward of a player's episodes."""
    player = PLAYERS[label]
    with closing(VizDoomTwoColorsEnv(scenario, max_steps=max_steps, privileged=player.view is not None)) as game:
        return [_play(game, player, seed, bool(is_red(np.array(seed)))) for seed in seeds]


def _play(game: VizDoomTwoColorsEnv, player: Baseline, seed: int, is_red: bool) -> Row:
    """Play one episode: return, steps, last reward."""
    game.reset(seed=seed, options=colour_options(game.scenario, is_red))
    generator = np.random.default_rng([seed, EXPERT_STREAM])
    expert = Expert(player.view) if player.view else None

    def act() -> int:
        if expert is None:
            return int(generator.integers(NUM_ACTIONS))
        return expert.act(player.told(game.surroundings(), is_red))

    return play_episode(game, act)
