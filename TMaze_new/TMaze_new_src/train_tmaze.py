"""Train RATE or a relative on T-Maze.

    python3 TMaze_new/TMaze_new_src/train_tmaze.py --model_mode RATE --curr adaptive --max_n_final 3 --skip_dec_ffn

Data that is missing is generated first. Every seed is a run of its own in TMaze_new/TMaze_new_checkpoints/.
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

import torch
from torch import Tensor
from torch.nn import functional as F

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli import experiment
from RATE_model.cli.limits import MAX_EPISODE_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, changeable, exit_on_user_error, parse_options
from RATE_model.cli.settings import PUBLISHED_TRAINING, CurriculumOptions, ModelOptions, RunOptions, TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.training.loop import StageData
from RATE_model.training.runs import Run
from RATE_model.training.trainer import accuracy
from TMaze_new.TMaze_new_src import evaluate as protocol
from TMaze_new.TMaze_new_src.dataset import DataOptions, ensure_datasets, load_windows
from TMaze_new.TMaze_new_src.pictures import draw_run
from TMaze_new.TMaze_new_src.spec import SPEC

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parent / "TMaze_new_checkpoints"
# What --published true sets; see docs/deviations.md.
PUBLISHED = PUBLISHED_TRAINING | {
    "lr_schedule": "late_linear",
    "curr": "false",
    "corridors": "full",
    "win_only": True,
    "slide": 1,
}


@dataclass(frozen=True)
class TaskOptions:
    """Evaluation."""

    # Segments N of a trajectory; replaced by --max_n_final, as it has always been
    segments: int = 3
    # Return that the agent is asked for
    target_return: float = 1.0
    # Evaluate in the mazes at checkpoints
    online_inference: Boolean = True
    # Evaluate at many lengths at the end
    last_inference: Boolean = changeable(True)
    # Episode lengths of that evaluation; empty: those of the papers
    eval_lengths: tuple[int, ...] = changeable(())
    # Episodes per length
    eval_episodes: int = changeable(100)
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, segments=self.segments, slide=self.slide)
        protocol.check_episodes(eval_episodes=self.eval_episodes)
        for length in self.eval_lengths:
            at_least(3, eval_lengths=length)
            at_most(MAX_EPISODE_STEPS, eval_lengths=length)


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
        return self.model.agent_config(context_length=self.data.context_length, segments=self.data.max_n_final)


@lru_cache
def usual() -> Config:
    """The configuration without any flags."""
    return read_config([])


def run_directory(config: Config, seed: int) -> Path:
    """Where the run of a seed is kept; see `experiment.run_directory`."""
    model, data = config.model, config.data
    return experiment.run_directory(
        config,
        seed,
        usual=usual(),
        checkpoints=CHECKPOINTS,
        name=(
            *model.name_parts,
            *("min", data.min_n_final, "max", data.max_n_final),
        ),
        named=("min_n_final", "max_n_final"),
    )


def stage_data(config: Config) -> StageData:
    """Training and validation windows of a stage of s segments: episodes of min_n_final to s segments, padded to s."""
    paths = ensure_datasets(config.data)

    @lru_cache
    def data(segments: int) -> tuple[WindowDataset, WindowDataset]:
        files = paths[: segments - config.data.min_n_final + 1]
        return load_windows(files, size=segments * config.data.context_length)

    return data


def junction_metrics(logits: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Accuracy over all steps, and accuracy and loss of the last one: the decision at the junction."""
    last = (batch.lengths - 1).to(logits.device)
    rows = torch.arange(len(last), device=logits.device)
    decisions, targets = logits[rows, last].float(), batch.targets[rows, last]
    return accuracy(logits, batch) | {
        "train_last_acc": (decisions.argmax(-1) == targets).float().mean(),
        "train_last_loss": F.cross_entropy(decisions, targets),
    }


def evaluate(model: Agent, config: Config, final: bool) -> dict[str, float]:
    """Success in the mazes: at the longest trained length during training, at many lengths at the end."""
    task = config.task
    trained = config.data.max_n_final * config.data.context_length
    if not (task.last_inference if final else task.online_inference):
        return {}
    lengths = {trained}
    if final:
        by_segments = (protocol.SEGMENT_STEPS * count for count in protocol.SEGMENT_COUNTS)
        lengths |= set(task.eval_lengths or (*protocol.LENGTHS, *by_segments))
    results = protocol.success_by_length(
        model,
        sorted(lengths),
        episodes=task.eval_episodes,
        target_return=task.target_return,
        hint_steps=config.data.hint_steps,
        slide=task.slide,
        precision=config.train.precision,
    )
    metrics = {"Success_rate": results[trained]["success_rate"], "Mean_D[time]": results[trained]["mean_delay"]}
    return metrics | (protocol.published_keys(results) if final else {})


def check(config: Config, seed: int) -> Run:
    """The run of a seed, new or to be continued; nothing is created. Raises UserError if it cannot be."""
    experiment.check_calibration(config.train, SPEC)
    return experiment.check(config, run_directory(config, seed), seed)


def train(config: Config, run: Run) -> dict[str, float]:
    """One checked run, from its data to its last evaluation; returns what its eval/final.json holds."""
    trained = config.data.max_n_final * config.data.context_length

    def finish(model: Agent, result: dict[str, float]) -> None:
        draw_run(run.directory, model, length=trained, trained=trained, hint_steps=config.data.hint_steps)
        success = f"success {result['Success_rate']:.2f} at {trained} steps, " if "Success_rate" in result else ""
        print(
            f"{run.directory}: {success}validation loss {result['validation_loss']:.2g}, trained in "
            f"{result['train_seconds']:.0f} s; all results in eval/final.json, pictures in plots/"
        )

    data = stage_data(config)
    curriculum, schedule = experiment.plan(
        config.train,
        config.curriculum,
        config.agent_config(),
        data,
        config.data.segment_counts,
        config.data.context_length,
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
        metrics=junction_metrics,
        evaluate=lambda model, final: evaluate(model, config, final),
        finish=finish,
    )


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the flags (None: of the command line) ask for. Raises UserError."""
    return parse_options(
        Config,
        argv=argv,
        config_file=HERE / "config.yaml",
        published=PUBLISHED,
        prog="python3 TMaze_new/TMaze_new_src/train_tmaze.py",
        description="Train RATE or a relative on T-Maze.",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train every seed that the flags ask for; the exit code says whether all finished."""
    with exit_on_user_error():
        return experiment.train_seeds(read_config(argv), check, train)


if __name__ == "__main__":
    sys.exit(main())
