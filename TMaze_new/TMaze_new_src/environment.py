"""T-Maze as training, inference and reports see it: flags, data, mazes, evaluation and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.nn import functional as F

from RATE_model.acting.rollout import BatchActor, Episodes
from RATE_model.agent import Agent
from RATE_model.cli.limits import MAX_EPISODE_STEPS, Count, EpisodeSteps, Range
from RATE_model.cli.options import Boolean, changeable
from RATE_model.cli.settings import CurriculumOptions, ExperimentConfig, PlayOptions, TaskOptions
from RATE_model.data.batch import Batch, Share
from RATE_model.data.dataset import WindowDataset
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from TMaze_new.TMaze_new_src import evaluate as protocol
from TMaze_new.TMaze_new_src import pictures
from TMaze_new.TMaze_new_src.dataset import FIRST_SEED, DataOptions, ensure_datasets, load_windows
from TMaze_new.TMaze_new_src.env import RIGHT, TMazeEnv, TMazeVectorEnv
from TMaze_new.TMaze_new_src.render import render_rgb
from TMaze_new.TMaze_new_src.task_choice import RECALL, TaskChoice
from TMaze_new.TMaze_new_src.tasks import ChainEnv, ChainVectorEnv

Lengths = Annotated[tuple[int, ...], Range(3, MAX_EPISODE_STEPS)]


@dataclass(frozen=True)
class Maze(TaskChoice, PlayOptions):
    """The mazes to play."""

    # Take the most probable action (published); false: sample from the predicted distribution
    use_argmax: Boolean = changeable(True)
    # Observations that show the hint
    hint_steps: EpisodeSteps = 1
    # Episode lengths T: corridors of T - 2 cells, at most T steps
    lengths: Lengths = protocol.LENGTHS

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        if not self.lengths:
            raise UserError("--lengths is empty: give at least one episode length")
        if self.lengths != protocol.LENGTHS:
            self.check_lengths("lengths", self.lengths)


@dataclass(frozen=True)
class Task(TaskOptions):
    """When and how training evaluates the agent."""

    # Has no effect here: trajectories have --min_n_final to --max_n_final segments
    segments: Count = 3
    # Take the most probable action (published); false: sample from the predicted distribution
    use_argmax: Boolean = changeable(True)
    # Episode lengths of the final evaluation; empty: those of the papers
    eval_lengths: Lengths = changeable(())


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """All flags of the train script."""

    whole_episodes = True

    task: Task = field(default_factory=Task)
    data: DataOptions = field(default_factory=DataOptions)
    curriculum: CurriculumOptions = field(default_factory=CurriculumOptions)

    def validate(self) -> None:
        """Raise a UserError for flags that do not go together."""
        super().validate()
        self.data.check_lengths("eval_lengths", self.task.eval_lengths)

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
        """Steps of the longest training episodes."""
        return self.segments * self.context_length


class TMaze(Environment):
    """One hint, a corridor of any length, one turn."""

    name = "T-Maze"
    train_script = "TMaze_new/TMaze_new_src/train_tmaze.py"
    inference_script = "TMaze_new/TMaze_new_src/inference_tmaze.py"
    config = Config
    play_options = Maze
    before = asdict(TaskChoice())
    solved_metric = "train_last_acc"
    axis = "length"
    axis_label = "episode length (steps)"
    episode_counts = range(2, protocol.MAX_EPISODES + 1)
    data_seeds = range(FIRST_SEED, 2**31)
    twins = ("goal", (1, -1))
    outcome = "success"
    chance_rate = 0.5  # up or down
    grid_cases = (9, 30, 90, 150)
    action_names = ("right", "up", "left", "down")
    curves = ("train_loss", "train_accuracy", "train_last_loss", "train_last_acc")

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """A small vector, whose size depends on the task, and four actions."""
        names = {field.name for field in fields(TaskChoice)}
        return TaskChoice(**{name: value for name, value in flags.items() if name in names}).spec

    def name_parts(self, config: Config) -> tuple[Sequence[object], Sequence[str]]:
        """The run's name includes the numbers of segments."""
        data = config.data
        parts = (*config.model.name_parts, *data.name_parts, "min", data.min_n_final, "max", data.max_n_final)
        return parts, ("min_n_final", "max_n_final")

    def files(self, config: Config) -> Sequence[Path]:
        """One file per number of segments."""
        return ensure_datasets(config.data)

    def load(self, config: Config) -> TrainingData:
        """Windows for a stage of s segments: whole episodes of min_n_final to s segments, padded to s."""
        paths, spec = self.files(config), config.data.spec

        def windows(segments: int) -> tuple[WindowDataset, WindowDataset]:
            files = paths[: segments - config.data.min_n_final + 1]
            return load_windows(files, size=segments * config.context_length, spec=spec)

        return TrainingData(windows, config.data.segment_counts, spec)

    def batch_metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor | Share]:
        """Accuracy over all steps; accuracy and loss of the turns that a hint decides.

        Those are the last step of every episode and, in chains of junctions, every turn except one at the first step.
        """
        from RATE_model.training.trainer import accuracy  # only training needs it

        valid, ends = (mark.to(logits.device, non_blocking=True) for mark in (batch.valid, batch.lengths - 1))
        steps = torch.arange(valid.shape[1], device=logits.device)
        decisive = (steps == ends[:, None]) | (valid & (batch.targets != RIGHT) & (steps > 0))
        # All steps are evaluated: choosing some would wait for a GPU.
        targets = torch.where(decisive, batch.targets, 0)
        right = logits.argmax(-1) == targets
        losses = F.cross_entropy(logits.float().transpose(1, 2), targets, reduction="none")
        return accuracy(logits, batch) | {
            "train_last_acc": (right & decisive).sum() / decisive.sum(),
            "train_last_loss": torch.where(decisive, losses, 0).sum() / decisive.sum(),
        }

    def grid_flags(self, case: int, parts: int) -> Sequence[str]:
        """Episodes of one length, rounded up to whole segments."""
        segments = str(parts)
        length = str(-(-case // parts))
        return ["--context_length", length, "--min_n_final", segments, "--max_n_final", segments, "--curr", "false"]

    def make(self, case: int, options: Maze, *, render_mode: str | None = None) -> TMazeEnv | ChainEnv:
        """One maze of a given episode length."""
        if options.is_chain:
            return ChainEnv(chains=options.chains([case]), render_mode=render_mode)
        return TMazeEnv(int(case) - 2, hint_steps=options.hint_steps, max_steps=int(case), render_mode=render_mode)

    def check(self, config: Config) -> None:
        """As in every environment; notes a flag of the published script that has no effect."""
        super().check(config)
        if config.task.segments not in (Task.segments, config.segments):
            print(
                f"note: --segments {config.task.segments} has no effect; --max_n_final is {config.segments}", flush=True
            )

    def vector(self, cases: np.ndarray, options: Maze) -> TMazeVectorEnv | ChainVectorEnv:
        """Mazes of many lengths, computed together."""
        if options.is_chain:
            return options.chains(cases)
        return TMazeVectorEnv(len(cases), cases - 2, hint_steps=options.hint_steps, max_steps=cases)

    def player(self, evaluation: Evaluation, actor: BatchActor) -> BatchActor:
        """In the recall task, the evaluation makes the first turn for the agent."""
        return protocol.ForcedFirstTurn(actor) if evaluation.options.task == RECALL else actor

    def reset_options(self, seeds: np.ndarray, options: Maze) -> dict[str, np.ndarray]:
        """In chains of junctions, every second episode is the twin of the one before it."""
        return {"flip": np.arange(len(seeds)) % 2 == 1} if options.is_chain else {}

    def episodes(self, evaluation: Evaluation, *, twins: bool) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """As in every environment. Chains consist of twins already; with `twins` there are twice as many episodes."""
        if not evaluation.options.is_chain:
            return super().episodes(evaluation, twins=twins)
        seeds = np.arange(evaluation.episodes * (2 if twins else 1)) // 2  # 0, 0, 1, 1, ...
        return seeds, self.reset_options(seeds, evaluation.options)

    def picture(self, environments: VectorEnv, row: int) -> np.ndarray:
        """The corridor, and where the agent is."""
        assert isinstance(environments, TMazeVectorEnv | ChainVectorEnv)
        return render_rgb(**environments.scene(row))

    def horizons(self, case: int, options: Maze) -> tuple[int, ...]:
        """From the hint to the turn."""
        return self.make(case, options).horizons

    def outcomes(self, case: int, episodes: Episodes, evaluation: Evaluation) -> np.ndarray:
        """Success, or the share of right turns."""
        options = evaluation.options
        if options.is_chain:
            return options.outcomes(case, episodes.returns, episodes.lengths)
        return (episodes.last_rewards == protocol.GOAL_REWARD).astype(float)

    def seeds(self, episodes: int) -> np.ndarray:
        """Seeds of half up and half down episodes."""
        return protocol.evaluation_seeds(episodes)

    def training_cases(self, config: Config, *, final: bool) -> Sequence[int]:
        """The longest training length during training, many lengths at the end."""
        lengths = {config.trained}
        if final:
            by_segments = (protocol.SEGMENT_STEPS * count for count in protocol.SEGMENT_COUNTS)
            usual = [length for length in (*protocol.LENGTHS, *by_segments) if length >= config.data.shortest]
            lengths |= set(config.task.eval_lengths or usual)
        return sorted(lengths)

    def cases(self, options: Maze) -> Sequence[int]:
        """The requested lengths, or the default ones that the task allows."""
        return [length for length in options.lengths if length >= options.shortest]

    def figures(self, case: int, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """Success and excess steps; in chains of junctions also the share of right turns."""
        if not evaluation.options.is_chain:
            return protocol.figures(case, episodes)
        right = self.outcomes(case, episodes, evaluation)
        needed = evaluation.options.chains([case]).steps_needed[0]
        return {
            "success_rate": float((right == 1).mean()),
            "mean_delay": float((episodes.lengths - needed).mean()),
            "recalled": float(right.mean()),
        }

    def metrics(
        self, played: Mapping[int, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Results at the longest training length, and by length at the end."""
        results = {length: self.figures(length, episodes, evaluation) for length, episodes in played.items()}
        trained = results[config.trained]
        metrics = {"Success_rate": trained["success_rate"], "Mean_D[time]": trained["mean_delay"]}
        metrics |= {"Recalled": trained["recalled"]} if config.data.is_chain else {}
        return metrics | (protocol.published_keys(results) if final else {})

    def headlines(self, config: Config) -> Mapping[str, str]:
        """Success at the longest evaluated length and at the longest training length."""
        longest = self.training_cases(config, final=True)[-1]
        names = {f"Success_rate_T_{config.trained}": "the longest trained length"}
        return {f"Success_rate_T_{longest}": ""} | names

    def success_lines(self, config: Config) -> Mapping[str, str]:
        """Success by length; nothing in chains of junctions."""
        return {} if config.data.is_chain else {config.model.memory: "Success_rate_T_{}"}

    def trained_case(self, config: Config) -> int:
        """The longest training length."""
        return config.trained

    def draw_run(self, directory: Path, agent: Agent, config: Config, result: Mapping[str, Any]) -> None:
        """Curves, success by length, attention and memory."""
        super().draw_run(directory, agent, config, result)
        if not config.data.is_chain:
            pictures.draw_maps(agent, directory / "plots", config.trained, hint_steps=config.data.hint_steps)

    def draw(self, folder: Path, evaluation: Evaluation) -> Sequence[Path]:
        """Attention and memory in one episode, and success by length with and without memory; of chains, returns."""
        if evaluation.options.is_chain:
            return [self.draw_returns(folder, evaluation)]
        maps = pictures.draw_maps(evaluation.agent, folder, hint_steps=evaluation.options.hint_steps)
        return [*maps, *super().draw(folder, evaluation)]


ENVIRONMENT = TMaze()
