"""Evaluate a checkpoint on Memory Maze.

    python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py --checkpoint RUN_DIR --episodes 10
    python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py --checkpoint RUN_DIR --episodes 100 --knock_out true
    python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py --checkpoint RUN_DIR --video 2 --pictures pictures

Prints the balls found per episode; with --players true, also by players without a model in the same mazes. Mazes, the
return asked for and how actions are chosen are the run's, unless flags say otherwise.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import numpy as np

from MemoryMaze.MemoryMaze_src import evaluate as protocol
from MemoryMaze.MemoryMaze_src.env import DEFAULT_SIZE, check_size
from MemoryMaze.MemoryMaze_src.pictures import record_videos, returns_picture
from MemoryMaze.MemoryMaze_src.spec import SPEC
from RATE_model.acting.controls import memory_conditions
from RATE_model.acting.rollout import mean_and_error
from RATE_model.agent import Agent
from RATE_model.cli.inference import InferenceOptions, fill_from_run
from RATE_model.cli.limits import MAX_SEED, MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options

SCRIPT = "python3 MemoryMaze/MemoryMaze_src/inference_mem_maze.py"
# What is asked of a checkpoint that no run of ours made.
PUBLISHED = {
    "size": DEFAULT_SIZE,
    "target_return": protocol.TARGET_RETURN,
    "rtg_floor": None,
    "use_argmax": False,
}


@dataclass(frozen=True)
class Options:
    """Flags of this script; those of `PUBLISHED` are filled from what the run recorded."""

    common: InferenceOptions = field(default_factory=InferenceOptions)
    # Edge of the mazes: 9, 11, 13 or 15 cells; none = the run's (9 for a converted checkpoint)
    size: int | None = None
    # Episodes, of seeds spread over 0 to 99: 5 are the published 0, 20, ..., 80, and 100 are all
    episodes: int = protocol.PUBLISHED_EPISODES
    # Steps of an episode; none = the environment's limit: 1000 in 9x9, 2000, 3000 and 4000 in larger ones
    episode_timeout: int | None = None
    # Return that the agent is asked for; none = the run's (18.1 for a converted checkpoint)
    target_return: float | None = None
    # How far the return-to-go falls when more is earned than was asked for; none = freely (published); run = as in the
    # run (freely for a converted checkpoint)
    rtg_floor: float | Literal["run"] | None = "run"
    # Take the most probable action; false: draw from the predicted distribution (published); none = as in the run
    # (false for a converted checkpoint)
    use_argmax: Boolean | None = None
    # Seed of those draws
    seed: int = 0
    # Also let players without a model play in the same mazes: a random one, and the experts that data is made with
    players: Boolean = False
    # Also play in so many of the mazes once more, one by one, and record it as MP4 files, into --pictures or the
    # working directory; where actions are drawn they are others than before
    video: int = 0
    # Processes that draw the mazes, two at least where there are two mazes, and of other players; none = one per core
    workers: int | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        check_size(DEFAULT_SIZE if self.size is None else self.size)
        protocol.check_episodes(episodes=self.episodes)
        at_least(1, episode_timeout=self.episode_timeout, workers=self.workers)
        at_most(MAX_STEPS, episode_timeout=self.episode_timeout)
        at_least(0, video=self.video, seed=self.seed)
        at_most(self.episodes, video=self.video)
        at_most(MAX_SEED, seed=self.seed)

    @property
    def acting(self) -> dict[str, Any]:
        """What `play` and `record_videos` take, but for the episodes and the memory."""
        return {
            "size": self.size,
            "steps": self.episode_timeout,
            "target_return": self.target_return,
            "rtg_floor": self.rtg_floor,
            "greedy": self.use_argmax,
            "seed": self.seed,
            "slide": self.common.slide,
            "precision": self.common.precision,
        }


def play(model: Agent, options: Options) -> dict[str, np.ndarray]:
    """Returns (E,) by who plays: the model, as told or (with --pictures) with and without memory, and other players."""
    transforms = {"memory knocked out" if options.common.knock_out else "model": options.common.transform_memory}
    if options.common.pictures is not None and not options.common.knock_out:
        transforms = memory_conditions(model)
    returns = {}
    for label, transform in transforms.items():
        played = protocol.play(
            model,
            episodes=options.episodes,
            transform_memory=transform,
            workers=options.workers,
            **options.acting,
        )
        returns[label] = played.returns
    for player in protocol.PLAYERS if options.players else ():
        returns[player] = protocol.player_returns(
            player,
            size=options.acting["size"],
            episodes=options.episodes,
            steps=options.episode_timeout,
            workers=options.workers,
        )
    return returns


def show(returns: dict[str, np.ndarray]) -> dict[str, dict[str, float | list[float]]]:
    """Print one line per player; returns the same figures, and the return of every episode."""
    print(f"{'':20}{'mean return':>12}{'error':>8}{'min':>8}{'max':>8}")
    results = {}
    for label, values in returns.items():
        mean, error = mean_and_error(values)
        print(f"{label:20}{mean:12.2f}{error:8.2f}{values.min():8g}{values.max():8g}")
        results[label] = {"mean_return": mean, "returns": values.tolist()}
        if len(values) > 1:
            results[label]["standard_error"] = error
    return results


def draw(model: Agent, returns: dict[str, np.ndarray], options: Options) -> None:
    """Bars and videos, where asked for."""
    folder = options.common.pictures or Path()
    if options.common.pictures is not None:
        title = f"{options.size}x{options.size}, {options.episodes} episodes"
        print(f"pictures: {returns_picture(returns, folder / 'returns.png', title=title)}")
    if options.video:
        seeds = protocol.evaluation_seeds(options.episodes)[: options.video].tolist()
        transform = options.common.transform_memory
        paths = record_videos(model, seeds, folder, transform_memory=transform, **options.acting)
        print("videos: " + " ".join(map(str, paths)))


def evaluate(options: Options) -> dict[str, dict[str, float | list[float]]]:
    """Returns by player; prints a table."""
    path, model = options.common.load(SPEC)
    options = fill_from_run(options, PUBLISHED)
    actions = "the most probable actions" if options.use_argmax else "drawn actions"
    print(
        f"{path}: {options.episodes} episodes in mazes of {options.size}x{options.size} cells, asked for "
        f"{options.target_return:g}, {actions}"
    )
    started = time.perf_counter()
    returns = play(model, options)
    results = show(returns)
    print(f"{time.perf_counter() - started:.1f} s")
    draw(model, returns, options)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog=SCRIPT, description="Evaluate a checkpoint on Memory Maze.")
        options.common.write(episodes=options.episodes, results=evaluate(options))


if __name__ == "__main__":
    main()
