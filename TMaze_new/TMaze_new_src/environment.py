"""T-Maze as training, inference and reports see it: its flags, data, mazes, evaluation and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.limits import MAX_EPISODE_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, changeable
from RATE_model.cli.settings import (
    PUBLISHED_TRAINING,
    CurriculumOptions,
    ExperimentConfig,
    PlayOptions,
    TaskOptions,
)
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.trainer import accuracy
from TMaze_new.TMaze_new_src import evaluate as protocol
from TMaze_new.TMaze_new_src.dataset import DataOptions, ensure_datasets, load_windows
from TMaze_new.TMaze_new_src.env import TMazeEnv, TMazeVectorEnv
from TMaze_new.TMaze_new_src.pictures import draw_evaluation, draw_run
from TMaze_new.TMaze_new_src.spec import SPEC

HERE = Path(__file__).resolve().parent


def check_lengths(flag: str, lengths: Sequence[int]) -> None:
    """Raise a UserError for an episode length out of range."""
    for length in lengths:
        at_least(3, **{flag: length})
        at_most(MAX_EPISODE_STEPS, **{flag: length})


@dataclass(frozen=True)
class Maze(PlayOptions):
    """Mazes that the agent is evaluated in."""

    # Take the most probable action, as published; false: draw from the predicted distribution
    use_argmax: Boolean = changeable(True)
    # Observations that show the hint
    hint_steps: int = 1
    # Episode lengths T: corridors of T - 2 cells, at most T steps
    lengths: tuple[int, ...] = protocol.LENGTHS

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        if not self.lengths:
            raise UserError("--lengths is empty: give at least one episode length")
        check_lengths("lengths", self.lengths)
        at_least(1, hint_steps=self.hint_steps)
        at_most(MAX_EPISODE_STEPS, hint_steps=self.hint_steps)


@dataclass(frozen=True)
class Task(TaskOptions):
    """Evaluation."""

    # Segments N of a trajectory; replaced by --max_n_final, as it has always been
    segments: int = 3
    # Take the most probable action, as published; false: draw from the predicted distribution
    use_argmax: Boolean = changeable(True)
    # Episode lengths of the evaluation at the end; empty: those of the papers
    eval_lengths: tuple[int, ...] = changeable(())

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        at_least(1, segments=self.segments)
        check_lengths("eval_lengths", self.eval_lengths)


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """All flags of the train script."""

    whole_episodes = True

    task: Task = field(default_factory=Task)
    data: DataOptions = field(default_factory=DataOptions)
    curriculum: CurriculumOptions = field(default_factory=CurriculumOptions)

    @property
    def context_length(self) -> int:
        """K: steps of a segment."""
        return self.data.context_length

    @property
    def segments(self) -> int:
        """N: segments of the longest episodes."""
        return self.data.max_n_final

    @property
    def trained(self) -> int:
        """Steps of the longest episodes that are trained on."""
        return self.segments * self.context_length


class TMaze(Environment):
    """One hint, a corridor of any length, one turn."""

    name = "T-Maze"
    folder = HERE
    checkpoints = HERE.parent / "TMaze_new_checkpoints"
    train_script = "TMaze_new/TMaze_new_src/train_tmaze.py"
    inference_script = "TMaze_new/TMaze_new_src/inference_tmaze.py"
    config = Config
    play_options = Maze
    # See docs/deviations.md
    published = PUBLISHED_TRAINING | {
        "lr_schedule": "late_linear",
        "curr": "false",
        "corridors": "full",
        "win_only": True,
        "slide": 1,
    }
    solved_metric = "train_last_acc"
    axis = "length"
    episode_counts = range(2, protocol.MAX_EPISODES + 1)
    twins = ("goal", (1, -1))
    curves = ("train_loss", "train_accuracy", "train_last_loss", "train_last_acc")

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """Four numbers, four actions."""
        return SPEC

    def name_parts(self, config: Config) -> tuple[Sequence[object], Sequence[str]]:
        """With the numbers of segments."""
        data = config.data
        parts = (*config.model.name_parts, "min", data.min_n_final, "max", data.max_n_final)
        return parts, ("min_n_final", "max_n_final")

    def load(self, config: Config) -> TrainingData:
        """Windows of a stage of s segments: whole episodes of min_n_final to s segments, padded to s."""
        paths = ensure_datasets(config.data)

        @lru_cache
        def windows(segments: int) -> tuple[WindowDataset, WindowDataset]:
            files = paths[: segments - config.data.min_n_final + 1]
            return load_windows(files, size=segments * config.context_length)

        return TrainingData(windows, config.data.segment_counts, SPEC)

    def batch_metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Accuracy over all steps, and accuracy and loss of the last one: the decision at the junction."""
        last = (batch.lengths - 1).to(logits.device)
        rows = torch.arange(len(last), device=logits.device)
        decisions, targets = logits[rows, last].float(), batch.targets[rows, last]
        return accuracy(logits, batch) | {
            "train_last_acc": (decisions.argmax(-1) == targets).float().mean(),
            "train_last_loss": F.cross_entropy(decisions, targets),
        }

    def make(self, case: int, options: Maze, *, render_mode: str | None = None) -> TMazeEnv:
        """One maze of an episode length."""
        return TMazeEnv(int(case) - 2, hint_steps=options.hint_steps, max_steps=int(case), render_mode=render_mode)

    def vector(self, cases: np.ndarray, options: Maze) -> TMazeVectorEnv:
        """Mazes of many lengths, computed at once."""
        return TMazeVectorEnv(len(cases), cases - 2, hint_steps=options.hint_steps, max_steps=cases)

    def horizons(self, case: int, options: Maze) -> tuple[int, ...]:
        """From the hint to the turn."""
        return self.make(case, options).horizons

    def seeds(self, episodes: int) -> np.ndarray:
        """As many up as down."""
        return protocol.evaluation_seeds(episodes)

    def training_cases(self, config: Config, *, final: bool) -> Sequence[int]:
        """The longest trained length during training, many lengths at the end."""
        lengths = {config.trained}
        if final:
            by_segments = (protocol.SEGMENT_STEPS * count for count in protocol.SEGMENT_COUNTS)
            lengths |= set(config.task.eval_lengths or (*protocol.LENGTHS, *by_segments))
        return sorted(lengths)

    def cases(self, options: Maze) -> Sequence[int]:
        """The lengths asked for."""
        return options.lengths

    def figures(self, case: int, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """Success, and steps beyond those that are needed."""
        return protocol.figures(case, episodes)

    def metrics(
        self, played: Mapping[int, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Results at the longest trained length, and by length at the end."""
        results = {length: protocol.figures(length, episodes) for length, episodes in played.items()}
        trained = results[config.trained]
        metrics = {"Success_rate": trained["success_rate"], "Mean_D[time]": trained["mean_delay"]}
        return metrics | (protocol.published_keys(results) if final else {})

    def headlines(self, config: Config) -> Mapping[str, str]:
        """Success at the longest length evaluated, and at the longest trained."""
        longest = self.training_cases(config, final=True)[-1]
        names = {f"Success_rate_T_{config.trained}": "the longest trained length"}
        return {f"Success_rate_T_{longest}": ""} | names

    def draw_run(self, directory: Path, agent: Agent, config: Config, result: Mapping[str, Any]) -> None:
        """Curves, success by length, attention and memory."""
        super().draw_run(directory, agent, config, result)
        draw_run(directory, agent, length=config.trained, trained=config.trained, hint_steps=config.data.hint_steps)

    def draw(self, folder: Path, evaluation: Evaluation) -> Sequence[Path]:
        """Attention and memory of an episode, and success by length with and without memory."""
        return draw_evaluation(folder, evaluation)


ENVIRONMENT = TMaze()
