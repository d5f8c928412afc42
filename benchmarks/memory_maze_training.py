"""Memory Maze: time of a training batch of the published setting, of reading it from disk, and of acting.

    python benchmarks/memory_maze_training.py
    python benchmarks/memory_maze_training.py --data_path FILE.h5 --rounds 3 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, ClassVar
from unittest import mock

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch

from benchmarks import common, shares
from MemoryMaze.MemoryMaze_src import environment
from MemoryMaze.MemoryMaze_src.dataset import DATA
from MemoryMaze.MemoryMaze_src.env import SPEC, MemoryMazeVectorEnv
from MemoryMaze.MemoryMaze_src.environment import ENVIRONMENT, Mazes
from MemoryMaze.MemoryMaze_src.evaluate import TARGET_RETURN, evaluation_seeds
from MemoryMaze.MemoryMaze_src.generate import Recipe, generate
from RATE_model.agent import Agent
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.selection import strided_windows
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.environments.contract import Evaluation
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer

PUBLISHED = ("--nmt", "5", "--mem_len", "300", "--skip_dec_ffn")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # A trajectory file to read; none = make a small one
    data_path: Path | None = None
    # Windows of a training batch
    batch_size: int = 64
    # Parallel mazes
    episodes: int = 10
    # Steps in each maze per round
    steps: int = 120
    # Timed rounds; in each, everything runs once
    rounds: int = 3
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, episodes=self.episodes, steps=self.steps, rounds=self.rounds)
        at_least(0, threads=self.threads)
        common.check_output(self.output)


def open_data(options: Options, folder: Path) -> TrajectoryFile:
    """The given file, or a new one with a few short episodes."""
    if options.data_path is not None:
        return DATA.open(options.data_path)
    return DATA.open(generate(Recipe(steps=200, mix=("explorer:0.1:1",)), 10, folder / "data.h5"))


class Timed(MemoryMazeVectorEnv):
    """Mazes that record when their first step begins and their last one ends, which excludes start-up and resets."""

    made: ClassVar[list[Timed]] = []

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.begun = self.ended = 0.0
        self.made.append(self)

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        self.begun = self.begun or time.perf_counter()
        result = super().step(actions)
        self.ended = time.perf_counter()
        return result

    @classmethod
    def seconds(cls) -> float:
        """Seconds from the first to the last step of all mazes made since the previous call."""
        made, cls.made[:] = cls.made.copy(), []
        return max(mazes.ended for mazes in made) - min(mazes.begun for mazes in made)


def play_at_random(options: Options) -> float:
    """Seconds of all steps with random actions."""
    generator = np.random.default_rng(0)
    with closing(Timed(options.episodes, max_steps=options.steps)) as mazes:
        mazes.reset(seed=evaluation_seeds(options.episodes))
        for _ in range(options.steps):
            mazes.step(generator.integers(SPEC.num_actions, size=options.episodes))
    return Timed.seconds()


def play_with(model: Agent, options: Options) -> float:
    """Seconds of all steps of an evaluation."""
    mazes = Mazes(episode_timeout=options.steps, rtg_floor=0.0)
    with mock.patch.object(environment, "MemoryMazeVectorEnv", Timed):
        Evaluation(ENVIRONMENT, model, mazes, (TARGET_RETURN,), episodes=options.episodes).play()
    return Timed.seconds()


def measure(options: Options, file: TrajectoryFile) -> dict[str, Any]:
    """All timings in seconds, and two ratios."""
    config = ENVIRONMENT.read_config(PUBLISHED)
    agent_config, segments = config.agent_config(), config.task.segments
    size = segments * config.task.context_length
    dataset = WindowDataset([file], strided_windows(0, file, size, 1), size=size, in_memory=False)
    generator = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return generator.integers(len(dataset), size=options.batch_size)

    def read() -> None:
        dataset.__getitems__(draw())

    torch.manual_seed(0)
    trainer = Trainer(Agent(agent_config, SPEC), config.train, Schedule(1, None, 0, 1.0))
    batch = dataset.__getitems__(draw())

    def train() -> None:
        trainer.train_batch(batch)
        trainer.model.eval()

    trainer.model.eval()
    seconds = common.interleave(
        {
            "batch": train,
            "reading its windows": read,
            "mazes alone": lambda: play_at_random(options),
            "mazes with the model": lambda: play_with(trainer.model, options),
        },
        rounds=options.rounds,
    )
    return {
        "window_steps": size,
        "cases": {name: common.summary(values) for name, values in seconds.items()},
        "reading_share": common.ratio(seconds["reading its windows"], seconds["batch"]),
        "profile": profile(train, seconds),
        "acting_ratio": common.ratio(seconds["mazes with the model"], seconds["mazes alone"]),
    }


def profile(train: Callable[[], None], seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Shares of reading a batch and training on it, one after the other; and an evaluation, in such batches."""
    batch, data = median(seconds["batch"]), median(seconds["reading its windows"])
    phases = {name: share * batch for name, share in shares.shares(train)["phases"].items()}
    parts = {name: taken / (batch + data) for name, taken in {"data": data, **phases}.items()}
    return {**parts, "evaluation": median(seconds["mazes with the model"]) / (batch + data)}


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options = result["options"]
    phases = {name: share for name, share in result["profile"].items() if name != "evaluation"}
    rows = [[name, f"{case['median_s']:.3g}", f"{case['min_s']:.3g}"] for name, case in result["cases"].items()]
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"{options['batch_size']} windows of {result['window_steps']} steps a batch; "
            f"{options['episodes']} mazes, {options['steps']} steps in each. Reading takes "
            f"{result['reading_share']:.1%} of a batch's time; with the model, steps take "
            f"{result['acting_ratio']:.2f} times as long as without.",
            f"Where the time of a batch goes: {shares.words(phases)}. Playing the mazes takes as long as "
            f"{result['profile']['evaluation']:.1f} batches.",
            common.table(["", "median s", "min s"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/memory_maze_training.py", description="Speed on Memory Maze."
        )
        common.set_threads(options.threads)
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(options, open_data(options, Path(folder)))
        result = {
            "benchmark": "memory_maze_training",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **figures,
        }
        common.publish(
            "memory_maze_training",
            format_table(result),
            result,
            output=options.output,
            update_readme=options.update_readme,
        )


if __name__ == "__main__":
    main()
