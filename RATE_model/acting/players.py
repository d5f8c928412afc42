"""Players without a model, such as a random one or an expert, in the episodes of an evaluation.

Playing takes minutes and always gives the same episodes, so they are cached.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from RATE_model.acting.rollout import Episodes
from RATE_model.system import cache
from RATE_model.system.processes import available_cores, in_order
from RATE_model.system.progress import progress_bar

Row = tuple[float, int, float]
"""Return, steps and last reward of an episode."""


def play_episode(environment: gymnasium.Env, act: Callable[[], Any]) -> Row:
    """Play an episode, already reset, to its end; `act` chooses every action, by what it knows of the game."""
    total, steps, reward, over = 0.0, 0, 0.0, False
    while not over:
        _, reward, terminated, truncated, _ = environment.step(act())
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps, float(reward)


def play_players(
    players: Sequence[str],
    seeds: np.ndarray,
    play: Callable[[str, Sequence[int]], Sequence[Row]],
    *,
    made: object,
    folder: Path,
    workers: int | None = None,
    part: int = 1,
) -> dict[str, Episodes]:
    """The episodes of these seeds, by player. They do not depend on the number of workers.

    Args:
        players: their names.
        seeds: (E,), one per episode.
        play: plays episodes, given a player and some seeds: a module-level function, or a `functools.partial` of one.
        made: everything else that the episodes depend on, such as versions; its `repr` names them.
        folder: of the cache.
        workers: number of processes; None: one per core this process may use.
        part: episodes that a process plays at a time.

    Raises:
        UserError: a process was killed, or the cache cannot be written.
    """
    places = {player: _place(folder, (player, seeds.tolist(), made)) for player in players}
    found = {player: _read(place, len(seeds)) for player, place in places.items()}
    missing = [player for player in players if found[player] is None]
    parts = [seeds[start : start + part].tolist() for start in range(0, len(seeds), part)]
    tasks = [(player, some) for player in missing for some in parts]
    played = in_order(partial(_play, play), tasks, min(workers or available_cores(), len(tasks)))
    with closing(played), progress_bar(total=len(tasks), desc="players without a model", unit="part") as bar:
        for player in missing:
            rows: list[Row] = []
            for _ in parts:
                rows += next(played)
                bar.update()
            found[player] = _episodes(rows)
            cache.write(places[player], json.dumps(rows).encode())
    return {player: episodes for player, episodes in found.items() if episodes is not None}


def _play(play: Callable[[str, Sequence[int]], Sequence[Row]], task: tuple[str, Sequence[int]]) -> Sequence[Row]:
    return play(*task)


def _place(folder: Path, made: object) -> Path:
    """The cache file of a player's episodes; its name encodes everything they depend on."""
    return folder / f"player_{hashlib.sha256(repr(made).encode()).hexdigest()[:12]}.json"


def _read(place: Path, episodes: int) -> Episodes | None:
    """The episodes in a cache file; None if it is missing or unreadable."""
    try:
        rows = json.loads(place.read_bytes())
        return _episodes(rows) if len(rows) == episodes else None
    except (OSError, ValueError, TypeError):
        return None


def _episodes(rows: Sequence[Row]) -> Episodes:
    returns, lengths, last_rewards = (np.array(column) for column in zip(*rows, strict=True))
    return Episodes(returns, lengths, last_rewards)
