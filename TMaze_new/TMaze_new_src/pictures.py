"""Pictures of what a model does in the T-Maze: attention and memory of an episode, and success without its memory."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import memory_conditions
from RATE_model.acting.rollout import evaluating
from RATE_model.agent import Agent
from RATE_model.environments.contract import Evaluation
from RATE_model.errors import UserError
from RATE_model.plots import plot_attention, plot_gates, plot_memory, plot_success_by_length
from TMaze_new.TMaze_new_src.env import TMazeVectorEnv
from TMaze_new.TMaze_new_src.evaluate import figures, success_by_length

UP_AND_DOWN = (1, -1)
_BY_LENGTH = "Success_rate_T_"

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
) -> tuple[Tensor, Tensor, Tensor]:
    """Act greedily in one maze, once per goal: episodes that differ in the hint alone.

    Args:
        model: any mode.
        length: episode length T, at least 3: a corridor of T - 2 cells.
        seed: of the noise.
        goals: +1 (up) or -1 (down) for each row of the batch B.
        target_return: the return asked for.
        hint_steps: observations that show the hint.

    Returns:
        What `Agent.inspect` takes, on the model's device: observations `(B, t, 4)` float32, actions `(B, t)`
        int64 and returns-to-go `(B, t)` float32. t is the length of the shorter episode: nothing is padding.

    Raises:
        UserError: an episode too short for a corridor.
    """
    if length < 3:
        raise UserError(f"a T-Maze episode of {length} steps; it takes at least 3")
    rows = len(goals)
    mazes = TMazeVectorEnv(rows, length - 2, hint_steps=hint_steps, max_steps=length)
    observation, _ = mazes.reset(seed=[seed] * rows, options={"goal": np.asarray(goals)})
    reward, rtg, done = np.zeros(rows), np.full(rows, target_return), np.zeros(rows, dtype=bool)
    recorded: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    with evaluating(model):
        actor = Actor(model, rows, target_return)
        while not done.any():
            rtg = rtg - reward
            action = actor.act(observation, reward)
            recorded.append((observation, action, rtg))
            observation, reward, terminated, truncated, _ = mazes.step(action)
            done = terminated | truncated
    observations, actions, returns = (
        torch.as_tensor(np.stack(columns, axis=1)).to(model.device) for columns in zip(*recorded, strict=True)
    )
    return observations, actions, returns.float()


def draw_maps(
    model: Agent,
    directory: Path,
    length: int = 90,
    *,
    memory_length: int | None = None,
    seed: int = 0,
    hint_steps: int = 1,
) -> list[Path]:
    """Attention and gates of one episode, and how its memory tokens move beside those of the other hint.

    Writes, as far as the memory has these to show, attention_map.png (mean over layers and heads), attention_layers.png
    (mean over heads), gates_map.png and memory_map.png.

    Args:
        model: any mode. One that slides a window (DT, DTXL) shows its window.
        directory: where the PNGs go.
        length: steps of the episode whose attention is drawn.
        memory_length: steps of the episodes whose memory is drawn; None: ten segments, and at least `length`.
        seed: of the noise.
        hint_steps: observations that show the hint.

    Returns:
        The PNGs' paths.
    """
    context = model.memory.segment
    if model.memory.slides:
        length = min(length, context)
    episode = record_episode(model, length, seed, hint_steps=hint_steps)
    with evaluating(model):
        seen = model.inspect(*episode)
    segments, gates = seen.get("attention"), seen.get("gates")
    paths = []
    if segments is not None:
        title = f"attention in a T-Maze episode of {episode[2].shape[1]} steps, hint up"
        both, heads = f"{title} (mean over layers and heads)", f"{title} (mean over heads)"
        paths.append(plot_attention(segments, directory / "attention_map.png", title=both))
        paths.append(plot_attention(segments, directory / "attention_layers.png", layer="each", title=heads))
    if gates:
        title = f"what the memory decides in a T-Maze episode of {episode[2].shape[1]} steps"
        paths.append(plot_gates(gates, directory / "gates_map.png", rows={"hint up": 0, "hint down": 1}, title=title))
    if model.memory.initial(1).slots is not None:
        steps = max(length, 10 * context) if memory_length is None else memory_length
        with evaluating(model):
            states = model.inspect(*record_episode(model, steps, seed, hint_steps=hint_steps))["states"]
        paths.append(
            plot_memory(
                states,
                directory / "memory_map.png",
                other=states,
                other_row=1,
                labels=("hint up", "hint down"),
                title=f"memory in two T-Maze episodes of {steps} steps that differ in the hint",
            )
        )
    return paths


def knock_out(
    model: Agent,
    lengths: Sequence[int],
    episodes: int = 100,
    *,
    intact: dict[int, float] | None = None,
    **acting: Any,
) -> dict[str, dict[int, float]]:
    """Success rates by length with the memory as it is, and with the initial memory at the beginning of every segment.

    See `memory_conditions`. `intact` are the rates with the memory as it is where they are known already; `acting` goes
    to `success_by_length` (`hint_steps`, `target_return`, `slide`, `precision`).
    """
    with evaluating(model):
        return {
            label: intact
            if transform is None and intact is not None
            else {
                length: result["success_rate"]
                for length, result in success_by_length(
                    model, lengths, episodes=episodes, transform_memory=transform, **acting
                ).items()
            }
            for label, transform in memory_conditions(model).items()
        }


def success_of_run(directory: Path) -> dict[int, float]:
    """Success rates by episode length from the last evaluation of a run; empty if it had none.

    Raises:
        UserError: the run has no eval/final.json (training is not over), or it is damaged.
    """
    path = directory / "eval" / "final.json"
    try:
        result = json.loads(path.read_text())
        return {
            int(name.removeprefix(_BY_LENGTH)): rate for name, rate in result.items() if name.startswith(_BY_LENGTH)
        }
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read; has the run's training come to its end?") from error


def draw_run(
    directory: Path, model: Agent, *, length: int = 90, trained: int | None = None, hint_steps: int = 1
) -> list[Path]:
    """Pictures of a run that is over, into its plots/: success by length, and `draw_maps`.

    Args:
        directory: of the run.
        model: of the run.
        length: steps of the episode whose attention is drawn.
        trained: longest episode length that was trained on.
        hint_steps: observations that show the hint.

    Returns:
        The PNGs' paths.

    Raises:
        UserError: the run's last evaluation cannot be read.
    """
    plots, paths = directory / "plots", []
    if success := success_of_run(directory):
        lines = {model.config.memory: success}
        paths.append(plot_success_by_length(lines, plots / "success_by_length.png", trained=trained))
    return paths + draw_maps(model, plots, length, hint_steps=hint_steps)


def draw_evaluation(folder: Path, evaluation: Evaluation) -> list[Path]:
    """`draw_maps`, and success by length with and without memory (beyond one segment, chance); the PNGs' paths."""
    rates = {
        label: {length: figures(length, episodes)["success_rate"] for length, episodes in by_length.items()}
        for label, by_length in evaluation.conditions().items()
    }
    title = f"success with and without memory ({evaluation.episodes} episodes per length)"
    curve = plot_success_by_length(rates, folder / "knock_out.png", title=title)
    return [*draw_maps(evaluation.agent, folder, hint_steps=evaluation.options.hint_steps), curve]
