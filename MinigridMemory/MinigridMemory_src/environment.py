"""Minigrid-Memory as training, inference and reports see it: flags, data, mazes, evaluation and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium
import numpy as np
from torch import Tensor

from MinigridMemory.MinigridMemory_src import evaluate as protocol
from MinigridMemory.MinigridMemory_src.dataset import DATA, DataOptions
from MinigridMemory.MinigridMemory_src.env import (
    CUES,
    PUBLISHED_CAP,
    SPEC,
    Layouts,
    MinigridMemoryEnv,
    MinigridMemoryVectorEnv,
    Sizes,
    minigrid_package,
)
from MinigridMemory.MinigridMemory_src.generate import FIRST_SEED
from RATE_model.acting.rollout import Episodes
from RATE_model.acting.video import with_caption
from RATE_model.cli.limits import Return, Steps
from RATE_model.cli.options import Boolean, changeable
from RATE_model.cli.settings import CurriculumOptions, ExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.data.batch import Batch, Share
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.errors import UserError

# The expert, after looking into the northern arm, steps into it or turns round and steps into the other.
FORK_STEPS = 3


@dataclass(frozen=True)
class Rules(PlayOptions):
    """Rules that training and inference share."""

    # Mazes of an evaluation. own: those of the installed Minigrid for seeds 0, 1, ...; published: those of the
    # published evaluation for the same seeds. Data is always collected in own mazes
    layouts: Layouts = "published"
    # Step limit of the published metrics; longer episodes count as failed. 96 in the paper's code; in the authors'
    # newer code 500 for RATE and LSDT, 100 for other models
    episode_timeout: Steps = PUBLISHED_CAP


@dataclass(frozen=True)
class Mazes(Rules):
    """The mazes to play."""

    # Maze sizes; odd, at least 7
    sizes: Sizes = protocol.SIZES + protocol.LARGE_SIZES
    # Corridors of random length; false: as long as possible
    random_length: Boolean = True

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        if not self.sizes:
            raise UserError("--sizes is empty: give at least one size")


@dataclass(frozen=True)
class Task(Rules, SegmentOptions):
    """Segments and evaluation."""

    # Steps per segment (K)
    context_length: Steps = 10
    # Segments per trajectory (N); longer episodes are left out
    segments: Steps = 3
    # Target return
    target_return: Return = protocol.TARGET_RETURN
    # Maze sizes to evaluate at checkpoints; odd
    eval_sizes: Sizes = changeable(protocol.TRAINING_SIZES)
    # Maze sizes to evaluate at the end; odd
    final_sizes: Sizes = changeable(protocol.SIZES)


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """All flags of the train script."""

    whole_episodes = True

    task: Task = field(default_factory=Task)
    data: DataOptions = field(default_factory=DataOptions)
    curriculum: CurriculumOptions = field(default_factory=CurriculumOptions)


class MinigridMemory(Environment):
    """An object in the first room, a corridor, a fork with two objects."""

    name = "Minigrid-Memory"
    train_script = "MinigridMemory/MinigridMemory_src/train_minigridmemory.py"
    inference_script = "MinigridMemory/MinigridMemory_src/inference_minigridmemory.py"
    config = Config
    maker = DATA
    play_options = Mazes
    before = {"learn": "recorded", "layouts": "own", "episode_timeout": PUBLISHED_CAP}
    solved_metric = "train_last_acc"
    axis = "size"
    axis_label = "size of the maze"
    data_seeds = range(FIRST_SEED, 2**31)
    twins = ("cue", CUES)
    outcome = "success"
    chance_rate = 0.5  # one of the two arms is right
    check_packages = staticmethod(minigrid_package)

    def load(self, config: Config) -> TrainingData:
        """Windows for a stage of s segments: the episodes that fit, padded; at least ten batches per stage."""
        context, most = config.context_length, config.segments
        training, validation = DATA.whole_windows(self.files(config), size=most * context, learn=config.data.learn)
        lengths, held_out = (side.windows[:, 2] for side in (training, validation))
        enough = np.sort(lengths)[min(10 * config.train.batch_size, len(lengths)) - 1]
        shortest = max(enough, held_out.min())
        stages = range(max(1, -(-int(shortest) // context)), most + 1)
        return TrainingData(
            lambda segments: (training.up_to(segments * context), validation.up_to(segments * context)), stages, SPEC
        )

    def batch_metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor | Share]:
        """Accuracy over all steps, and the share of episodes with all steps at the fork right, which need memory."""
        from RATE_model.training.trainer import accuracy, last_steps_right  # only training needs it

        return accuracy(logits, batch) | {"train_last_acc": last_steps_right(logits, batch, FORK_STEPS)}

    def make(self, case: int, options: Mazes, *, render_mode: str | None = None) -> MinigridMemoryEnv:
        """One maze of a size."""
        return MinigridMemoryEnv(
            int(case),
            random_length=options.random_length,
            max_steps=max(options.episode_timeout, protocol.widest_cap(case)),
            layouts=options.layouts,
            render_mode=render_mode,
        )

    def vector(self, cases: np.ndarray, options: Mazes) -> MinigridMemoryVectorEnv:
        """Mazes of many sizes."""
        caps = [max(options.episode_timeout, protocol.widest_cap(size)) for size in cases.tolist()]
        drawn, layouts = options.random_length, options.layouts
        return MinigridMemoryVectorEnv(len(cases), cases, random_length=drawn, max_steps=caps, layouts=layouts)

    def horizons(self, case: int, options: Mazes) -> tuple[int, ...]:
        """From the last sight of the cue to the turn at the fork, for every possible end of the corridor."""
        return self.make(case, options).horizons

    def outcomes(self, case: int, episodes: Episodes, evaluation: Evaluation) -> np.ndarray:
        """Success within the expert's cap, as walking speed says nothing about memory."""
        return (protocol.capped(episodes, protocol.widest_cap(case)).last_rewards > 0).astype(float)

    def training_cases(self, config: Config, *, final: bool) -> Sequence[int]:
        """A few sizes during training, many at the end."""
        task = config.task
        return sorted({*task.eval_sizes, *task.final_sizes}) if final else task.eval_sizes

    def cases(self, options: Mazes) -> Sequence[int]:
        """The requested sizes."""
        return options.sizes

    def description(self, evaluation: Evaluation) -> str:
        """The mazes."""
        return f"{evaluation.options.layouts} layouts, at most {evaluation.options.episode_timeout} steps"

    def figures(self, case: int, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """Success under the requested and the expert's cap, and the expert's own success under the requested one."""
        options: Mazes = evaluation.options
        asked, wide = (protocol.capped(episodes, cap) for cap in (options.episode_timeout, protocol.widest_cap(case)))
        expert = protocol.expert_play(case, evaluation.episodes, options.random_length, options.layouts)
        return {
            "success_rate": protocol.success_rate(asked),
            "mean_steps": float(asked.lengths.mean()),
            "mean_return": float(asked.returns.mean()),
            "success_rate_expert_cap": protocol.success_rate(wide),
            "mean_steps_expert_cap": float(wide.lengths.mean()),
            "expert_success_rate": protocol.success_rate(protocol.capped(expert, options.episode_timeout)),
        }

    def metrics(
        self, played: Mapping[int, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """The `figures` by size under the published names; at the end also of the final sizes, with the prefix FINAL_.

        The published names and `Success_rate_l_{L}` hold the results under the requested cap, as does the expert's.
        """
        task, asked, found = config.task, f"r_{evaluation.targets[0]:g}", {}
        sizes = {"": task.eval_sizes} | ({"FINAL_": task.final_sizes} if final else {})
        for prefix, size in ((prefix, size) for prefix, some in sizes.items() for size in some):
            values = self.figures(size, played[size], evaluation)
            capped = protocol.capped(played[size], evaluation.options.episode_timeout)
            found |= {
                f"{prefix}LifeTimeMean_{asked}_l_{size}": values["mean_steps"],
                f"{prefix}ReturnsMax_{asked}_l_{size}": float(capped.returns.max()),
                f"{prefix}ReturnsMean_{asked}_l_{size}": values["mean_return"],
                f"{prefix}Success_rate_l_{size}": values["success_rate"],
                f"{prefix}Success_rate_l_{size}_expert_cap": values["success_rate_expert_cap"],
                f"{prefix}Expert_success_rate_l_{size}": values["expert_success_rate"],
            }
        return found

    def headlines(self, config: Config) -> Mapping[str, str]:
        """Success at the largest final size and at the checkpoint sizes, under both caps."""
        task = config.task
        names = [f"FINAL_Success_rate_l_{size}" for size in task.final_sizes[-1:]]
        names += [f"Success_rate_l_{size}" for size in task.eval_sizes if size not in task.final_sizes[-1:]]
        caps = {"": f"within {task.episode_timeout} steps", "_expert_cap": ""}
        return {f"{name}{cap}": said for name in names for cap, said in caps.items()}

    def success_lines(self, config: Config) -> Mapping[str, str]:
        """Success by size under both caps."""
        name, cap = "FINAL_Success_rate_l_{}", config.task.episode_timeout
        return {"success, expert's cap": f"{name}_expert_cap", f"success, {cap} steps": name}

    def draw(self, folder: Path, evaluation: Evaluation) -> Sequence[Path]:
        """Success by size with and without memory, under both caps, and the expert's, the ceiling of every method under
        the shorter one."""
        from RATE_model.plots import plot_success_by_length

        found = {
            label: {size: self.figures(size, episodes, evaluation) for size, episodes in by_size.items()}
            for label, by_size in evaluation.conditions().items()
        }
        capped = f"{evaluation.options.episode_timeout} steps"
        columns = {"expert's cap": "success_rate_expert_cap", capped: "success_rate"}
        rates = {
            f"{label}, {cap}": {size: values[column] for size, values in by_size.items()}
            for label, by_size in found.items()
            for cap, column in columns.items()
        }
        experts = {size: values["expert_success_rate"] for size, values in next(iter(found.values())).items()}
        picture = plot_success_by_length(
            rates,
            folder / "success_by_size.png",
            xlabel=self.axis_label,
            title=f"success by size, {evaluation.episodes} episodes each, by the cap on steps",
            published={f"expert, {capped}": experts},
        )
        return [picture]

    def frame(self, environment: gymnasium.Env, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
        """The maze above the agent's view, the object to remember, and a caption."""
        assert isinstance(environment, MinigridMemoryEnv)
        above, view = np.asarray(environment.render()), observation.transpose(1, 2, 0)
        width = max(above.shape[1], 320)
        above, view = (np.pad(part, ((0, 8), (0, width - part.shape[1]), (0, 0))) for part in (above, view))
        return with_caption(np.concatenate([above, view]), f"remember the {environment.cue}", *caption)


ENVIRONMENT = MinigridMemory()
