"""Pictures of what a model does in the T-Maze: attention and memory of an episode."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.report import maps
from TMaze_new.TMaze_new_src.env import TMazeVectorEnv

UP_AND_DOWN = (1, -1)

# Published success rates by episode length T. RATE: its paper, Table 5, trained on episodes of at most 90 or 150 steps.
# DT: Cherepanov et al. 2024 (arXiv 2412.06531), figure 6, trained on 90 steps.
PUBLISHED = {
    "RATE, published": {90: 1.00, 480: 0.90, 900: 0.90},
    "DT, published": {
        9: 1.00, 30: 1.00, 90: 1.00, 150: 0.51, 300: 0.50, 600: 0.48, 900: 0.49, 1200: 0.49, 2400: 0.49, 4800: 0.49,
        9600: 0.49,
    },
}  # fmt: skip


def record_episode(
    model: Agent,
    length: int,
    seed: int = 0,
    *,
    goals: Sequence[int] = UP_AND_DOWN,
    target_return: float = 1.0,
    hint_steps: int = 1,
) -> maps.Recorded:
    """Act greedily in one maze, once per goal: episodes that differ only in the hint; see `maps.record_rows`.

    Args:
        model: any mode.
        length: episode length T, at least 3: a corridor of T - 2 cells.
        seed: seed of the noise.
        goals: +1 (up) or -1 (down) for each row of the batch B.
        target_return: the target return.
        hint_steps: observations that show the hint.

    Raises:
        UserError: the episode is too short for a corridor.
    """
    if length < 3:
        raise UserError(f"a T-Maze episode of {length} steps: must have at least 3")
    mazes = TMazeVectorEnv(len(goals), length - 2, hint_steps=hint_steps, max_steps=length)
    options = {"goal": np.asarray(goals)}
    return maps.record_rows(model, mazes, seed=seed, target_return=target_return, options=options)


def draw_maps(model: Agent, directory: Path, length: int = 90, *, hint_steps: int = 1) -> list[Path]:
    """Draw attention, gates and memory of two episodes, one per hint; see `maps.draw_maps`."""
    record = partial(record_episode, model, hint_steps=hint_steps)
    hints = ("hint up", "hint down")
    return maps.draw_maps(model, directory, record, length, labels=hints, name="T-Maze")
