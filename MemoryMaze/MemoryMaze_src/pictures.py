"""Pictures of what a model does in Memory Maze: training curves, returns beside those of other players, and videos."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from MemoryMaze.MemoryMaze_src.env import DEFAULT_SIZE, VIEWS, MemoryMazeEnv
from MemoryMaze.MemoryMaze_src.evaluate import RTG_FLOOR
from RATE_model.acting.actor import Actor
from RATE_model.acting.rollout import mean_and_error
from RATE_model.acting.video import with_caption, write_video
from RATE_model.agent import Agent
from RATE_model.memories.contract import MemoryTransform
from RATE_model.plots import plot_bars, plot_curves

FRAMES_PER_SECOND = 16  # four times as fast as the agent lives


def draw_run(directory: Path) -> list[Path]:
    """The pictures of a run that is over, into its plots/: training curves. Returns the PNGs' paths."""
    curves = {directory.name: directory / "metrics.jsonl"}
    return [plot_curves(curves, directory / "plots" / "curves.png", ("train_loss", "train_accuracy"))]


def returns_picture(returns: Mapping[str, np.ndarray | tuple[float, float]], path: Path, *, title: str) -> Path:
    """Draw mean returns with standard errors, one bar for each player; the PNG's path.

    Args:
        returns: ``{player: (E,) returns}``, or their mean and standard error as a tuple.
        path: of the PNG.
        title: above the figure.
    """
    bars = {
        player: {"return": values if isinstance(values, tuple) else mean_and_error(values)}
        for player, values in returns.items()
    }
    return plot_bars(bars, path, ylabel="balls found", title=title)


def record_videos(
    model: Agent,
    seeds: Sequence[int],
    directory: Path,
    *,
    size: int = DEFAULT_SIZE,
    steps: int | None = None,
    target_return: float,
    rtg_floor: float | None = RTG_FLOOR,
    greedy: bool = False,
    seed: int = 0,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
) -> list[Path]:
    """One MP4 per seed: what the agent sees, the maze from above, the colour asked for around both, balls found.

    Args:
        model: in eval mode.
        seeds: of the mazes, one episode each.
        directory: where seed_{number}.mp4 go.
        size, steps, target_return, rtg_floor, greedy, seed, slide, transform_memory, precision: as in `play`. An
            episode is played by itself, so actions are not drawn as there, where the draws of all mazes are mixed.
    """
    options = {"greedy": greedy, "seed": seed, "rtg_floor": rtg_floor, "precision": precision}
    options |= {"slide": slide, "transform_memory": transform_memory}
    maze = MemoryMazeEnv(size, max_steps=steps, render_mode="rgb_array")
    paths = []
    try:
        for number in seeds:
            frames = _frames(maze, Actor(model, 1, target_return, **options), number)
            paths.append(write_video(frames, directory / f"seed_{number}.mp4", fps=FRAMES_PER_SECOND, quality=6))
    finally:
        maze.close()
    return paths


def _frames(maze: MemoryMazeEnv, actor: Actor, seed: int) -> Iterator[np.ndarray]:
    """The pictures of one episode as it is played, and a second of its last one."""
    observation, _ = maze.reset(seed=seed)
    reward, found, steps, over = 0.0, 0.0, 0, False
    last = _frame(maze, steps, found, actor.agent)
    yield last
    while not over:
        action = actor.act(observation[None], np.array([reward]))[0]
        observation, reward, terminated, truncated, _ = maze.step(int(action))
        over, steps, found = terminated or truncated, steps + 1, found + reward
        last = _frame(maze, steps, found, actor.agent)
        yield last
    for _ in range(FRAMES_PER_SECOND):
        yield last


def _frame(maze: MemoryMazeEnv, steps: int, found: float, model: Agent) -> np.ndarray:
    """One picture of a video, (H, W, 3) uint8. Around the two views is the colour of the ball asked for."""
    views = np.concatenate([picture for view in VIEWS if (picture := maze.render(view)) is not None], axis=1)
    segment = steps // model.memory.segment + 1
    return with_caption(views, f"balls found: {found:g}", f"step {steps}, segment {segment}")
