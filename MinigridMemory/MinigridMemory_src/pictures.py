"""Pictures of what a model does in Minigrid-Memory: success by size, with and without its memory, and videos."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MinigridMemory.MinigridMemory_src.env import PUBLISHED_CAP, MinigridMemoryEnv
from MinigridMemory.MinigridMemory_src.evaluate import SizeResult, expert_play, play, widest_cap
from MinigridMemory.MinigridMemory_src.layouts import Layouts
from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import memory_conditions
from RATE_model.acting.rollout import Episodes, evaluating
from RATE_model.acting.video import with_caption, write_video
from RATE_model.agent import Agent
from RATE_model.memories.contract import MemoryTransform
from RATE_model.plots import plot_curves, plot_success_by_length

SIZE = "size of the maze"
_BY_SIZE, _EXPERT_CAP = "FINAL_Success_rate_l_", "_expert_cap"


def draw_run(directory: Path, result: Mapping[str, float], *, cap: int = PUBLISHED_CAP) -> list[Path]:
    """The pictures of a run that is over, into its plots/: training curves, and success by size if it was evaluated.

    Args:
        directory: of the run.
        result: of its last evaluation.
        cap: of its published names, in steps.

    Returns:
        The PNGs' paths.
    """
    plots = directory / "plots"
    curves = {directory.name: directory / "metrics.jsonl"}
    paths = [plot_curves(curves, plots / "curves.png", ("train_loss", "train_accuracy"))]
    lines: dict[str, dict[int, float]] = {"success, expert's cap": {}, f"success, {cap} steps": {}}
    for name, rate in result.items():
        if name.startswith(_BY_SIZE):
            number = name.removeprefix(_BY_SIZE)
            wide = number.endswith(_EXPERT_CAP)
            lines[list(lines)[not wide]][int(number.removesuffix(_EXPERT_CAP))] = rate
    if any(lines.values()):
        paths.append(plot_success_by_length(lines, plots / "success_by_size.png", xlabel=SIZE, title=directory.name))
    return paths


def knock_out(
    model: Agent, sizes: Sequence[int], *, intact: Mapping[int, Episodes] | None = None, **acting: Any
) -> dict[str, dict[int, float]]:
    """Success rates by size with the memory as it is and without (see `memory_conditions`), under either cap.

    `intact` are the episodes with the memory as it is where they were played already; `acting` goes to `play`.
    """
    rates, cap = {}, acting.get("cap", PUBLISHED_CAP)
    with evaluating(model):
        for label, transform in memory_conditions(model).items():
            known = transform is None and intact is not None
            played = intact if known else play(model, sizes, transform_memory=transform, **acting)
            for name, cap_of in (("expert's cap", widest_cap), (f"{cap} steps", lambda size: cap)):
                found = {size: SizeResult.of(played[size], cap_of(size)).success_rate for size in sizes}
                rates[f"{label}, {name}"] = found
    return rates


def success_curve(
    rates: Mapping[str, Mapping[int, float]],
    path: Path,
    *,
    episodes: int,
    random_length: bool = True,
    layouts: Layouts = "own",
    cap: int = PUBLISHED_CAP,
) -> Path:
    """Draw success rates against size, and the expert's under `cap`, the ceiling of every method there."""
    sizes = sorted({size for line in rates.values() for size in line})
    expert = {
        size: SizeResult.of(expert_play(size, episodes, random_length, layouts), cap).success_rate for size in sizes
    }
    return plot_success_by_length(
        rates,
        path,
        xlabel=SIZE,
        title=f"success by size, {episodes} episodes each, by the cap on steps",
        published={f"expert, {cap} steps": expert},
    )


def record_videos(
    model: Agent,
    size: int,
    seeds: Sequence[int],
    directory: Path,
    *,
    target_return: float,
    greedy: bool = True,
    random_length: bool = True,
    slide: int = 1,
    transform_memory: MemoryTransform | None = None,
    precision: str = "32",
    layouts: Layouts = "own",
    cap: int = PUBLISHED_CAP,
) -> list[Path]:
    """One MP4 per seed: the maze, what the agent sees of it, the object it has to remember, its segment.

    Args:
        model: in eval mode.
        size: of the maze.
        seeds: one episode each.
        directory: where size_{size}_seed_{seed}.mp4 go.
        target_return, greedy, random_length, slide, transform_memory, precision, layouts, cap: as in `play`.
    """
    options = {"greedy": greedy, "transform_memory": transform_memory, "precision": precision}
    options["slide"] = slide
    steps = max(cap, widest_cap(size))
    maze = MinigridMemoryEnv(
        size, random_length=random_length, max_steps=steps, layouts=layouts, render_mode="rgb_array"
    )
    paths = []
    for seed in seeds:
        frames = _frames(maze, Actor(model, 1, target_return, seed=seed, **options), seed)
        path = directory / f"size_{size}_seed_{seed}.mp4"
        paths.append(write_video(frames, path, fps=maze.metadata["render_fps"]))
    return paths


def _frames(maze: MinigridMemoryEnv, actor: Actor, seed: int) -> Iterator[np.ndarray]:
    """The pictures of one episode as it is played, and a second of its last one to read the outcome."""
    observation, _ = maze.reset(seed=seed)
    reward, over, steps = 0.0, False, 0
    yield _frame(maze, observation, steps, actor.agent)
    while not over:
        action = actor.act(observation[None], np.array([reward]))[0]
        observation, reward, terminated, truncated, _ = maze.step(int(action))
        over, steps = terminated or truncated, steps + 1
        last = _frame(maze, observation, steps, actor.agent, outcome=maze.success if over else None)
        yield last
    for _ in range(maze.metadata["render_fps"]):
        yield last


def _frame(
    maze: MinigridMemoryEnv, observation: np.ndarray, steps: int, model: Agent, outcome: bool | None = None
) -> np.ndarray:
    """One picture of a video, (H, W, 3) uint8: the maze above the agent's view, and what there is to say."""
    above, view = maze.render(), observation.transpose(1, 2, 0)
    width = max(above.shape[1], 320)
    above, view = (np.pad(part, ((0, 8), (0, width - part.shape[1]), (0, 0))) for part in (above, view))
    said = "" if outcome is None else ": success" if outcome else ": failure"
    segment = steps // model.memory.segment + 1
    return with_caption(
        np.concatenate([above, view]), f"remember the {maze.cue}", f"step {steps}, segment {segment}{said}"
    )
