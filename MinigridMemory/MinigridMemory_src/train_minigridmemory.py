"""Train RATE or a relative on Minigrid-Memory.

    python3 MinigridMemory/MinigridMemory_src/train_minigridmemory.py --nmt 15 --mem_len 180 --skip_dec_ffn

Data that is missing is collected first. Every seed is a run of its own in MinigridMemory/MinigridMemory_checkpoints/.
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

import numpy as np
from torch import Tensor

from MinigridMemory.MinigridMemory_src import evaluate as protocol
from MinigridMemory.MinigridMemory_src.dataset import DataOptions, ensure_dataset, load_windows
from MinigridMemory.MinigridMemory_src.env import PUBLISHED_CAP, check_size
from MinigridMemory.MinigridMemory_src.layouts import Layouts
from MinigridMemory.MinigridMemory_src.pictures import draw_run
from MinigridMemory.MinigridMemory_src.spec import SPEC
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli import experiment
from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, changeable, exit_on_user_error, parse_options
from RATE_model.cli.settings import PUBLISHED_TRAINING, CurriculumOptions, ModelOptions, RunOptions, TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.training.loop import StageData
from RATE_model.training.runs import Run
from RATE_model.training.trainer import accuracy, last_steps_right

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parent / "MinigridMemory_checkpoints"
# What --published true sets; see docs/deviations.md.
PUBLISHED = PUBLISHED_TRAINING | {
    "lr_schedule": "rising_cosine",
    "warmup_tokens": 10_000,
    "final_tokens": 1_000_000,
    "curr": "false",
    "layouts": "published",
    "episode_timeout": 96,
    "use_argmax": False,
    "slide": 1,
}
# What the expert does behind its look into the northern arm: step into it, or turn round and step into the other.
FORK_STEPS = 3


@dataclass(frozen=True)
class TaskOptions:
    """Segments and evaluation."""

    # Steps of a segment (K)
    context_length: int = 10
    # Segments of a trajectory (N); longer episodes are left out
    segments: int = 3
    # Return that the agent is asked for
    target_return: float = protocol.TARGET_RETURN
    # Take the most probable action; false: draw from the predicted distribution (published)
    use_argmax: Boolean = changeable(False)
    # Evaluate in the mazes at checkpoints
    online_inference: Boolean = True
    # Evaluate at many sizes at the end
    last_inference: Boolean = changeable(True)
    # Sizes evaluated at checkpoints; odd
    eval_sizes: tuple[int, ...] = changeable(protocol.TRAINING_SIZES)
    # Sizes evaluated at the end; odd
    final_sizes: tuple[int, ...] = changeable(protocol.SIZES)
    # Episodes per size
    eval_episodes: int = changeable(100)
    # Mazes of an evaluation: own, those of the installed Minigrid for the seeds 0, 1, ...; published, those of the
    # published evaluation for these seeds. Data is always collected in own ones
    layouts: Layouts = "own"
    # Steps after which the published metrics count an episode as failed: 96 in the paper's code; in the authors' newer
    # code 500 for RATE and LSDT, 100 for other models
    episode_timeout: int = PUBLISHED_CAP
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, context_length=self.context_length, segments=self.segments, slide=self.slide)
        at_most(MAX_STEPS, context_length=self.context_length, segments=self.segments)
        at_least(1, episode_timeout=self.episode_timeout)
        at_most(MAX_STEPS, episode_timeout=self.episode_timeout)
        protocol.check_episodes(eval_episodes=self.eval_episodes)
        for size in self.eval_sizes:
            check_size(size, flag="eval_sizes")
        for size in self.final_sizes:
            check_size(size, flag="final_sizes")


@dataclass(frozen=True)
class Config:
    """All flags of this script."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    curriculum: CurriculumOptions = field(default_factory=CurriculumOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def validate(self) -> None:
        """Raise a UserError if these sizes make no model."""
        experiment.check_window_starts(self.train, self.agent_config(), steps=None)

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
        before=protocol.BEFORE,
    )


def stage_data(config: Config) -> tuple[StageData, list[int]]:
    """Windows of a stage of s segments, the episodes that fit into them, padded; and which stages fill ten batches."""
    context, most = config.task.context_length, config.task.segments
    sides = load_windows(ensure_dataset(config.data), size=most * context)
    lengths, held_out = (side.windows[:, 2] for side in sides)
    enough = np.sort(lengths)[min(10 * config.train.batch_size, len(lengths)) - 1]
    shortest = max(enough, held_out.min())
    stages = range(max(1, -(-int(shortest) // context)), most + 1)

    @lru_cache
    def data(segments: int) -> tuple[WindowDataset, WindowDataset]:
        training, validation = (side.up_to(segments * context) for side in sides)
        return training, validation

    return data, list(stages)


def batch_metrics(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Accuracy over all steps, and share of episodes whose steps at the fork are all right: those take the memory."""
    return accuracy(logits, batch) | {"train_last_acc": last_steps_right(logits, batch, FORK_STEPS)}


def evaluate(model: Agent, config: Config, seed: int, final: bool) -> dict[str, float]:
    """Success in the mazes: at few sizes during training, at many at the end; names are the published ones."""
    task = config.task
    if not (task.last_inference if final else task.online_inference):
        return {}
    sizes = sorted({*task.eval_sizes, *task.final_sizes}) if final else task.eval_sizes
    played = protocol.play(
        model,
        sizes,
        episodes=task.eval_episodes,
        target_return=task.target_return,
        greedy=task.use_argmax,
        seed=seed,
        slide=task.slide,
        precision=config.train.precision,
        layouts=task.layouts,
        cap=task.episode_timeout,
    )
    shared = {"target_return": task.target_return, "cap": task.episode_timeout, "layouts": task.layouts}
    results = protocol.metrics({size: played[size] for size in task.eval_sizes}, **shared)
    if final:
        results |= protocol.metrics({size: played[size] for size in task.final_sizes}, prefix="FINAL_", **shared)
    return results


def check(config: Config, seed: int) -> Run:
    """The run of a seed, new or to be continued; nothing is created. Raises UserError if it cannot be."""
    return experiment.check(config, run_directory(config, seed), seed, before=protocol.BEFORE)


def train(config: Config, run: Run) -> dict[str, float]:
    """One checked run, from its data to its last evaluation; returns what its eval/final.json holds."""
    task = config.task

    def finish(model: Agent, result: dict[str, float]) -> None:
        draw_run(run.directory, result, cap=task.episode_timeout)
        sizes = task.eval_sizes if task.last_inference else ()
        success = "".join(
            f"success {result[f'Success_rate_l_{s}']:.2f} at size {s} within {task.episode_timeout} steps "
            f"({result[f'Success_rate_l_{s}_expert_cap']:.2f} under the expert's cap), "
            for s in sizes
        )
        print(
            f"{run.directory}: {success}validation loss {result['validation_loss']:.2g}, trained in "
            f"{result['train_seconds']:.0f} s; all results in eval/final.json, pictures in plots/"
        )

    data, stages = stage_data(config)
    curriculum, schedule = experiment.plan(
        config.train,
        config.curriculum,
        config.agent_config(),
        data,
        stages,
        task.context_length,
        metric="train_last_acc",
    )
    return experiment.train_run(
        config,
        run,
        model=config.agent_config(),
        spec=SPEC,
        data=data,
        curriculum=curriculum,
        schedule=schedule,
        metrics=batch_metrics,
        evaluate=lambda model, final: evaluate(model, config, run.seed, final),
        finish=finish,
    )


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the flags (None: of the command line) ask for. Raises UserError."""
    return parse_options(
        Config,
        argv=argv,
        config_file=HERE / "config.yaml",
        published=PUBLISHED,
        prog="python3 MinigridMemory/MinigridMemory_src/train_minigridmemory.py",
        description="Train RATE or a relative on Minigrid-Memory.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train every seed that the flags ask for; the exit code says whether all finished."""
    with exit_on_user_error():
        return experiment.train_seeds(read_config(argv), check, train)


if __name__ == "__main__":
    sys.exit(main())
