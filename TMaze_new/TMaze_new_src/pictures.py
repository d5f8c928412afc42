"""Pictures of what a model does in the T-Maze: attention and memory of an episode, and success without its memory."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.plots import plot_success_by_length
from RATE_model.plots.success import rates_by_case
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


def draw_maps(
    model: Agent,
    directory: Path,
    length: int = 90,
    *,
    memory_length: int | None = None,
    seed: int = 0,
    hint_steps: int = 1,
) -> list[Path]:
    """Draw attention, gates and memory of two episodes, one per hint; see `maps.draw_maps`."""
    record = partial(record_episode, model, seed=seed, hint_steps=hint_steps)
    hints = ("hint up", "hint down")
    return maps.draw_maps(model, directory, record, length, labels=hints, name="T-Maze", memory_steps=memory_length)


def success_rates(evaluation: Evaluation) -> dict[str, dict[int, float]]:
    """Success by length with and without memory (`Evaluation.conditions`), by label."""
    figures = evaluation.environment.figures
    return {
        label: {length: figures(length, episodes, evaluation)["success_rate"] for length, episodes in by_length.items()}
        for label, by_length in evaluation.conditions().items()
    }


def draw_run(
    directory: Path,
    model: Agent,
    result: Mapping[str, float],
    *,
    length: int = 90,
    trained: int | None = None,
    hint_steps: int = 1,
) -> list[Path]:
    """Draw success by length and `draw_maps` of a finished run in its plots/.

    Args:
        directory: the run's directory.
        model: the run's model.
        result: its last evaluation.
        length: steps of the episode for the maps.
        trained: longest episode length in training.
        hint_steps: observations that show the hint.

    Returns:
        Paths of the PNGs.
    """
    plots, paths = directory / "plots", []
    if success := rates_by_case(result, "Success_rate_T_{}"):
        lines = {model.config.memory: success}
        paths.append(plot_success_by_length(lines, plots / "success_by_length.png", trained=trained))
    return paths + draw_maps(model, plots, length, hint_steps=hint_steps)


def draw_evaluation(folder: Path, evaluation: Evaluation) -> list[Path]:
    """Draw `draw_maps` and success by length with and without memory; returns the PNGs' paths."""
    title = f"success with and without memory ({evaluation.episodes} episodes per length)"
    curve = plot_success_by_length(success_rates(evaluation), folder / "knock_out.png", title=title)
    return [*draw_maps(evaluation.agent, folder, hint_steps=evaluation.options.hint_steps), curve]
