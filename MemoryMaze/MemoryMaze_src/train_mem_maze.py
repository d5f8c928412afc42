"""Train RATE or a relative on Memory Maze.

    python3 -W ignore MemoryMaze/MemoryMaze_src/train_mem_maze.py --nmt 5 --mem_len 300 --skip_dec_ffn

Data that is missing is made first, which takes a while. Every seed is a run of its own in
MemoryMaze/MemoryMaze_checkpoints/.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MemoryMaze.MemoryMaze_src import evaluate as protocol
from MemoryMaze.MemoryMaze_src.dataset import DataOptions, check_windows, ensure_dataset, load_windows
from MemoryMaze.MemoryMaze_src.env import MIRRORED
from MemoryMaze.MemoryMaze_src.pictures import draw_run
from MemoryMaze.MemoryMaze_src.spec import spec_of
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli import experiment
from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, changeable, exit_on_user_error, parse_options
from RATE_model.cli.settings import (
    PUBLISHED_TRAINING,
    CurriculumOptions,
    ImageOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
    check_window_starts,
)
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.mirror import Mirror
from RATE_model.training.loop import StageData
from RATE_model.training.runs import Run
from RATE_model.training.trainer import accuracy

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parent / "MemoryMaze_checkpoints"
# What --published true sets; see docs/deviations.md.
PUBLISHED = PUBLISHED_TRAINING | {
    "lr_schedule": "rising_cosine",
    "warmup_tokens": 1_000,
    "final_tokens": 500_000,
    "epoch_batches": None,
    "windows": "published",
    "alignment": "causal",
    "learn": "recorded",
    "perturbation": 0.0,
    "mirror": False,
    "rtg_floor": None,
    "use_argmax": False,
    "slide": 1,
}


@dataclass(frozen=True)
class TaskOptions:
    """Segments and evaluation."""

    # Steps of a segment (K)
    context_length: int = 30
    # Segments of a trajectory (N)
    segments: int = 3
    # Show every window as it is or in the mirror, left for right, with equal probability: twice the data
    mirror: Boolean = False
    # Return that the agent is asked for
    target_return: float = protocol.TARGET_RETURN
    # How far the return-to-go falls when more is earned than was asked for; the smallest in data is 0. none = freely
    # (published)
    rtg_floor: float | None = protocol.RTG_FLOOR
    # Take the most probable action; false: draw from the predicted distribution (published)
    use_argmax: Boolean = changeable(False)
    # Evaluate in mazes at checkpoints
    online_inference: Boolean = True
    # Evaluate in mazes at the end
    last_inference: Boolean = changeable(True)
    # Episodes of an evaluation, of seeds spread over 0 to 99; 5 are the published 0, 20, ..., 80
    eval_episodes: int = changeable(protocol.PUBLISHED_EPISODES)
    # Steps of an evaluation's episodes; none = the environment's limit: 1000 in 9x9, 2000, 3000 and 4000 in larger ones
    episode_timeout: int | None = 1000
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, context_length=self.context_length, segments=self.segments, slide=self.slide)
        at_most(MAX_STEPS, context_length=self.context_length, segments=self.segments)
        at_least(1, episode_timeout=self.episode_timeout)
        at_most(MAX_STEPS, episode_timeout=self.episode_timeout)
        protocol.check_episodes(eval_episodes=self.eval_episodes)


@dataclass(frozen=True)
class Config:
    """All flags of this script."""

    model: ModelOptions = field(default_factory=ModelOptions)
    image: ImageOptions = field(default_factory=ImageOptions)
    data: DataOptions = field(default_factory=DataOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def validate(self) -> None:
        """Raise a UserError if these sizes make no model, or the episodes that would be made have no such window."""
        steps = self.task.segments * self.task.context_length
        check_window_starts(self.train, self.agent_config(), steps=steps)
        check_windows(self.data, steps)

    def agent_config(self) -> AgentConfig:
        """Sizes of the model."""
        return self.model.agent_config(context_length=self.task.context_length, segments=self.task.segments)


@lru_cache
def usual() -> Config:
    """The configuration without any flags."""
    return read_config([])


def run_directory(config: Config, seed: int) -> Path:
    """Where the run of a seed is kept; see `experiment.run_directory`."""
    model = config.model
    return experiment.run_directory(
        config,
        seed,
        usual=usual(),
        checkpoints=CHECKPOINTS,
        name=model.name_parts,
    )


def stage_data(config: Config) -> StageData:
    """Windows of a trajectory's length; there is one stage, that of all segments."""
    sides = load_windows(
        ensure_dataset(config.data),
        size=config.task.segments * config.task.context_length,
        windows=config.data.windows,
        learn=config.data.learn,
    )

    @lru_cache
    def data(segments: int) -> tuple[WindowDataset, WindowDataset]:
        return sides

    return data


def evaluate(model: Agent, config: Config, seed: int, final: bool) -> dict[str, float]:
    """Returns in the mazes; names are the published ones."""
    task = config.task
    if not (task.last_inference if final else task.online_inference):
        return {}
    played = protocol.play(
        model,
        size=config.data.size,
        episodes=task.eval_episodes,
        steps=task.episode_timeout,
        target_return=task.target_return,
        rtg_floor=task.rtg_floor,
        greedy=task.use_argmax,
        seed=seed,
        slide=task.slide,
        precision=config.train.precision,
    )
    return protocol.metrics(played, target_return=task.target_return)


def check(config: Config, seed: int) -> Run:
    """The run of a seed, new or to be continued; nothing is created. Raises UserError if it cannot be."""
    return experiment.check(config, run_directory(config, seed), seed)


def train(config: Config, run: Run) -> dict[str, float]:
    """One checked run, from its data to its last evaluation; returns what its eval/final.json holds."""
    task = config.task

    def finish(model: Agent, result: dict[str, float]) -> None:
        draw_run(run.directory)
        mean = result.get(f"ReturnsMean_{task.target_return:g}")
        returns = "" if mean is None else f"mean return {mean:.2f} of {task.eval_episodes} episodes, "
        print(
            f"{run.directory}: {returns}validation loss {result['validation_loss']:.3g}, trained in "
            f"{result['train_seconds']:.0f} s; all results in eval/final.json, pictures in plots/"
        )

    data = stage_data(config)
    curriculum, schedule = experiment.plan(
        config.train, CurriculumOptions(), config.agent_config(), data, [task.segments], task.context_length
    )
    return experiment.train_run(
        config,
        run,
        model=config.agent_config(),
        spec=spec_of(config.image.conv_channels),
        data=data,
        curriculum=curriculum,
        schedule=schedule,
        metrics=accuracy,
        evaluate=lambda model, final: evaluate(model, config, run.seed, final),
        finish=finish,
        transform=Mirror(MIRRORED) if task.mirror else None,
    )


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the flags (None: of the command line) ask for. Raises UserError."""
    return parse_options(
        Config,
        argv=argv,
        config_file=HERE / "config.yaml",
        published=PUBLISHED,
        prog="python3 MemoryMaze/MemoryMaze_src/train_mem_maze.py",
        description="Train RATE or a relative on Memory Maze.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train every seed that the flags ask for; the exit code says whether all finished."""
    with exit_on_user_error():
        return experiment.train_seeds(read_config(argv), check, train)


if __name__ == "__main__":
    sys.exit(main())
