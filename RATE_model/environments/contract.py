"""The contract of an environment: one object with everything that training, inference and reports need.

An environment's folder has a module `environment` with a subclass of `Environment` and its instance, `ENVIRONMENT`. A
line in pyproject.toml adds it to the table of environments. Only these members are required:

    name, scripts                          its names
    config, play_options                   its flags: for training, and for playing
    spec                                   its observations and actions, if no `maker` says so
    load                                   its data, made if missing
    make                                   one Gymnasium environment
    data_seeds, first_seed                 disjoint seeds of the data and of evaluation episodes
    metrics                                results under their published names

Everything else has a default: vectors of environments, cases such as lengths, table columns, pictures, videos,
controls.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from RATE_model.acting.controls import memory_conditions
from RATE_model.acting.evaluation import Acting, play_cases
from RATE_model.acting.rollout import BatchActor, Episodes, error_entry, rollout
from RATE_model.acting.vector import FrozenVectorEnv
from RATE_model.agent import Agent
from RATE_model.cli.options import load_yaml, parse_options, typed_values
from RATE_model.cli.settings import PUBLISHED_TRAINING, ExperimentConfig, PlayOptions
from RATE_model.data.batch import Batch, Share
from RATE_model.errors import UserError
from RATE_model.loading import load_for
from RATE_model.memories.contract import MemoryTransform
from RATE_model.spec import EnvironmentSpec

if TYPE_CHECKING:
    from RATE_model.data.dataset import WindowDataset
    from RATE_model.data.maker import DataMaker
    from RATE_model.training.trainer import BatchTransform

Case = Any
"""A length, a size, ...; None if the environment has no cases."""
Outcome = Literal["success", "return"]


def no_preparation(directory: Path) -> None:
    """For runs that need nothing besides their checkpoints."""


@dataclass(frozen=True)
class TrainingData:
    """The data of one run.

    Attributes:
        windows: number of segments -> the training and validation windows of that stage; kept.
        stages: numbers of segments of the stages, ascending; without a curriculum only the last one is used.
        before: segments and epochs of stages before these.
        spec: observations and actions; its normalisation may come from the data.
        transform: batch transform, such as mirroring.
        final_tokens: environment steps at which the learning rate's decay ends, unless a flag overrides it.
        prepare: called with the run directory, to write whatever its checkpoints need besides themselves.
    """

    windows: Callable[[int], tuple[WindowDataset, WindowDataset]]
    stages: Sequence[int]
    spec: EnvironmentSpec
    before: Sequence[tuple[int, int]] = ()
    transform: BatchTransform | None = None
    final_tokens: int | None = None
    prepare: Callable[[Path], None] = no_preparation

    def __post_init__(self) -> None:
        object.__setattr__(self, "windows", lru_cache(self.windows))

    @classmethod
    def of_one_stage(
        cls, sides: tuple[WindowDataset, WindowDataset], segments: int, spec: EnvironmentSpec, **more: Any
    ) -> TrainingData:
        """From training and validation windows of ``segments`` segments; `more` are further attributes."""
        return cls(lambda segments: sides, [segments], spec, **more)


@dataclass(frozen=True)
class Evaluation:
    """The settings of an evaluation; `play` runs it, optionally with other memories.

    Attributes:
        environment, agent: the environment and the agent, in eval mode.
        options: an instance of the environment's `play_options`.
        targets: target returns.
        cases: lengths, sizes, ...; `(None,)` if there are none.
        episodes: per case and target.
        seed: for sampled actions.
        precision, cuda_graphs: see `Actor`.
        transform_memory: default memory transform of `play`.
        run: directory of the agent's run; None: it has none.
    """

    environment: Environment
    agent: Agent
    options: Any
    targets: Sequence[float]
    cases: Sequence[Case] = (None,)
    episodes: int = 100
    seed: int = 0
    precision: str = "32"
    cuda_graphs: bool = False
    transform_memory: MemoryTransform | None = None
    run: Path | None = None
    # Of this evaluation alone: `dataclasses.replace` starts with nothing played
    _known: dict[Any, dict[Case, Episodes]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def acting(self, target: float) -> Acting:
        """The actor's settings for this target return."""
        return self.environment.acting(self, target)

    def play(self) -> dict[float, dict[Case, Episodes]]:
        """The episodes of every target and case."""
        return self.play_with(self.transform_memory)

    def play_with(self, transform: MemoryTransform | None, *, twins: bool = False) -> dict[float, dict[Case, Episodes]]:
        """`play` with this memory transform. Results are cached: nothing is played twice.

        With `twins` every episode is played twice, in neighbouring rows: see `Environment.twins`.
        """
        played = {}
        for target in self.targets:
            key = target, transform, twins
            if key not in self._known:
                acting = self.acting(target).with_memory(transform)
                self._known[key] = self.environment.play(self, acting, twins=twins)
            played[target] = self._known[key]
        return played

    def conditions(self) -> dict[str, dict[Case, Episodes]]:
        """The episodes by case, with and without memory (`memory_conditions`), by label.

        With several target returns, the labels include them.
        """
        found = {}
        for label, transform in memory_conditions(self.agent).items():
            for target, by_case in self.play_with(transform).items():
                found[label + (f", target return {target:g}" if len(self.targets) > 1 else "")] = by_case
        return found

    def success_rates(self) -> dict[str, dict[Case, float]]:
        """The mean of `Environment.outcomes` by case, with and without memory (`conditions`), by label."""
        return {
            label: {
                case: float(self.environment.outcomes(case, episodes, self).mean())
                for case, episodes in by_case.items()
            }
            for label, by_case in self.conditions().items()
        }


class Environment(ABC):
    """See the module docstring. Instances are stateless."""

    # Display name
    name: ClassVar[str]
    # The folder with its config.yaml, by default its module's; and the folder of its runs, by default X/X_checkpoints
    # for a module in a package X
    folder: ClassVar[Path]
    checkpoints: ClassVar[Path]
    # As typed after `python3`
    train_script: ClassVar[str]
    inference_script: ClassVar[str]
    # Its flags: those of the train script, and those of playing, shared by training and inference
    config: ClassVar[type[ExperimentConfig]]
    play_options: ClassVar[type[PlayOptions]] = PlayOptions
    # The values set by --published true, in place of those of a published.yaml (see `published_values`); and the
    # behaviour of runs made before these flags existed
    published: ClassVar[Mapping[str, Any]] = {}
    before: ClassVar[Mapping[str, Any]] = {}
    # Aliases of its flags
    aliases: ClassVar[Mapping[str, str]] = {}
    # A batch metric that is 1 when all deciding steps are right; for an adaptive curriculum
    solved_metric: ClassVar[str] = ""
    # What distinguishes the cases of an evaluation, such as "length"; empty: there is one case, None
    axis: ClassVar[str] = ""
    # The same in figures; empty: `axis`
    axis_label: ClassVar[str] = ""
    # Episodes per case, limited by the seeds
    episode_counts: ClassVar[range] = range(1, 10_001)
    # Seeds of the episodes in its data; empty if the data comes from elsewhere
    data_seeds: ClassVar[range] = range(0)
    # Seed of the first episode of an evaluation; the others follow it
    first_seed: ClassVar[int] = 0
    # How many environments to run at a time; None: as many as there are episodes
    max_environments: ClassVar[int | None] = None
    # Cases that the grid of context against horizon trains on, ascending; see `grid_flags`
    grid_cases: ClassVar[Sequence[Case]] = ()
    # A `reset` option and its two values, for twins: episodes that differ only in what has to be remembered
    twins: ClassVar[tuple[str, Sequence[Any]] | None] = None
    # Kind of `outcomes`: "success", from 0 to 1, or "return"
    outcome: ClassVar[Outcome] = "return"
    # The mean of `outcomes` without memory, if it is the same in all cases; see `chance`
    chance_rate: ClassVar[float | None] = None
    # Names of discrete actions; empty: use their numbers
    action_names: ClassVar[Sequence[str]] = ()
    # What makes its data by a configuration's flags `data`; None: see `load`
    maker: ClassVar[DataMaker[Any] | None] = None
    # Arrays of its data, besides seeds and the expert's actions, that say how a step was made and nothing about the
    # world; `RATE_model.diagnose` probes them only if they are named
    bookkeeping: ClassVar[Sequence[str]] = ()
    # Metrics of metrics.jsonl to draw when a run ends; see `curve_metrics`
    curves: ClassVar[Sequence[str]] = ("train_loss", "train_accuracy")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        path, names = Path(inspect.getfile(cls)).resolve(), cls.__module__.split(".")
        if "folder" not in vars(cls):
            cls.folder = path.parent
        if "checkpoints" not in vars(cls):
            cls.checkpoints = path.parents[max(0, len(names) - 2)] / f"{names[0]}_checkpoints"

    @property
    def case_label(self) -> str:
        """What distinguishes the cases of an evaluation, in figures."""
        return self.axis_label or self.axis

    def published_values(self) -> dict[str, Any]:
        """The flags that `--published true` sets: `published`, or those of published.yaml beside config.yaml and
        `PUBLISHED_TRAINING`; empty without either. Raises UserError."""
        file = self.folder / "published.yaml"
        if self.published or not file.is_file():
            return dict(self.published)
        return PUBLISHED_TRAINING | typed_values(self.config, load_yaml(file, texts=True), source=str(file))

    def read_config(self, argv: Sequence[str] | None = None) -> Any:
        """The configuration from the flags (None: the command line). Raises UserError."""
        config = parse_options(
            self.config,
            argv=argv,
            config_file=self.folder / "config.yaml",
            published=self.published_values() or None,
            prog=f"python3 {self.train_script}",
            description=f"Train RATE or a relative on {self.name}.",
            aliases=dict(self.aliases),
        )
        self.check_episodes(eval_episodes=config.task.eval_episodes)
        return config

    def train(self, argv: Sequence[str] | None = None) -> int:
        """The train script; see `RATE_model.cli.training.main`."""
        from RATE_model.cli import training  # late: not needed for inference

        return training.main(self, argv)

    def infer(self, argv: Sequence[str] | None = None) -> None:
        """The inference script; see `RATE_model.cli.evaluation.main`."""
        from RATE_model.cli import evaluation  # late, as it imports this module

        evaluation.main(self, argv)

    def check_episodes(self, **episodes: int) -> None:
        """Raise `UserError` for the first flag that requests more episodes than there are seeds."""
        counts = self.episode_counts
        for name, count in episodes.items():
            if count not in counts:
                steps = f", in steps of {counts.step}" if counts.step > 1 else ""
                raise UserError(f"--{name} {count}: must be at least {counts[0]} and at most {counts[-1]}{steps}")

    # --- required ---

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """Its observations and actions. `flags` are those of a run, flat; empty for a checkpoint without a run.

        By default those of the `maker`, with the flags' image encoder.
        """
        if self.maker is None:
            raise NotImplementedError(f"{self.name} has no maker: define spec")
        channels = flags.get("conv_channels", self.maker.spec.conv_channels)
        return replace(self.maker.spec, conv_channels=tuple(channels))

    @abstractmethod
    def load(self, config: Any) -> TrainingData:
        """The training data of a configuration, made if missing.

        Raises:
            UserError: it is missing and cannot be made, is damaged, or does not match the flags.
        """

    def files(self, config: Any) -> Sequence[Path]:
        """The files of that data, made if missing; empty if it is not in files. Raises UserError."""
        if self.maker is not None:
            return self.maker.files(config.data)
        self.load(config)
        return ()

    @abstractmethod
    def make(self, case: Case, options: Any, *, render_mode: str | None = None) -> gymnasium.Env:
        """One environment, with a step limit (`acting.vector.step_limit`). Raises UserError if it cannot be made."""

    @abstractmethod
    def metrics(
        self, played: Mapping[Case, Episodes], evaluation: Evaluation, config: Any, *, final: bool
    ) -> dict[str, float]:
        """Results of an evaluation during training, for one target return, under the names of `eval/*.json`.

        Args:
            played: episodes by case.
            evaluation: its settings.
            config: the run's configuration.
            final: whether training is over.
        """

    def seeds(self, episodes: int) -> np.ndarray:
        """Seeds of the episodes of an evaluation, (E,) int64; never used for data."""
        return np.arange(self.first_seed, self.first_seed + episodes)

    # --- training ---

    def name_parts(self, config: Any) -> tuple[Sequence[object], Sequence[str]]:
        """Parts of a run's name between --text and the seed, and the flags that they show besides the model's."""
        return config.model.name_parts, ()

    def check(self, config: Any) -> None:
        """Raise a UserError for what would fail later, before any data is made.

        By default: data that does not exist, a folder that it cannot be written to, or a missing package.
        """
        makes = self.maker is not None and self.maker.check(config.data)
        if makes or config.task.online_inference or config.task.last_inference:
            self.check_packages()

    @staticmethod  # noqa: B027  there may be nothing to check
    def check_packages() -> object:
        """Raise a UserError if a package that playing needs is missing; what it returns does not matter."""

    def batch_metrics(self, logits: Tensor, batch: Batch) -> dict[str, Tensor | Share]:
        """Metrics of a training batch with discrete actions: accuracy over all steps."""
        from RATE_model.training.trainer import accuracy

        return accuracy(logits, batch)

    def training_cases(self, config: Any, *, final: bool) -> Sequence[Case]:
        """The cases to evaluate at checkpoints, or at the end of training."""
        return (None,)

    def target_returns(self, flags: Mapping[str, Any]) -> tuple[float, ...]:
        """The target returns: the run's own, or the default. Flags are flat.

        Raises:
            UserError: none is known.
        """
        value = flags.get("target_return")
        value = getattr(self.config().task, "target_return") if value is None else value  # noqa: B009
        return (float(value),)

    def headlines(self, config: Any) -> Mapping[str, str]:
        """Metrics for the last line of a run, the most important first, each with a note (such as its step limit).

        A note is empty if the name is self-explanatory.
        """
        return {}

    def curve_metrics(self, config: Any) -> Sequence[str]:
        """Metrics of metrics.jsonl to draw when a run ends: by default `curves`."""
        return self.curves

    def success_lines(self, config: Any) -> Mapping[str, str]:
        """Results of a run to draw by case: the label of a line -> the name in `metrics`, with {} for the case."""
        return {}

    def trained_case(self, config: Any) -> int | None:
        """The longest case in training, to mark in that figure; None: nothing is marked."""
        return None

    def draw_run(self, directory: Path, agent: Agent, config: Any, result: Mapping[str, Any]) -> None:
        """Draw the figures of a finished run into its plots/: `curve_metrics`, and `success_lines`, if any."""
        from RATE_model.plots import plot_curves, plot_success_by_length
        from RATE_model.plots.success import rates_by_case

        plots, label = directory / "plots", config.model.model_mode
        plot_curves({label: directory / "metrics.jsonl"}, plots / "curves.png", self.curve_metrics(config))
        lines = {line: rates_by_case(result, name) for line, name in self.success_lines(config).items()}
        if any(lines.values()):
            plot_success_by_length(
                lines,
                plots / f"success_by_{self.axis}.png",
                trained=self.trained_case(config),
                chance=self.chance_rate,
                title=directory.name if len(lines) > 1 else None,  # a single line has the model's name
                xlabel=self.case_label,
            )

    def grid_flags(self, case: Case, parts: int) -> Sequence[str]:
        """Flags of the train script for episodes of a single case, split into this many segments.

        Raises:
            UserError: the environment has no grid.
        """
        raise UserError(f"{self.name} has no grid of contexts and horizons")

    # --- playing ---

    def recorded(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """A run's flags under today's names; converted checkpoints may use others."""
        return dict(flags)

    def load_agent(
        self, checkpoint: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any], *, device: torch.device | str
    ) -> Agent:
        """The agent of a checkpoint, in eval mode.

        Args:
            checkpoint: its path.
            recorded: the flags of its run, flat.
            asked: flags of what is to be played, flat.
            device: its device.

        Raises:
            UserError: the checkpoint is damaged, or its agent cannot play that.
        """
        return load_for(checkpoint, self.spec({**recorded, **asked}), device=device, flags=recorded)

    def inherited_flags(self, recorded: Mapping[str, Any], typed: Mapping[str, Any]) -> Mapping[str, Any]:
        """Flags of a checkpoint's run, adjusted to the flags typed; both are flat.

        Typed flags always win; this is for recorded values that make no sense with a typed one.
        """
        return recorded

    def cases(self, options: Any) -> Sequence[Case]:
        """The cases that the inference script evaluates."""
        return (None,)

    def vector(self, cases: np.ndarray, options: Any) -> VectorEnv:
        """One environment per case, (B,); finished ones stay frozen (`AutoresetMode.DISABLED`).

        The attribute `max_steps`, () or (B,), limits episodes.
        """
        return FrozenVectorEnv([partial(self.make, case, options) for case in cases], name=self.name)

    def acting(self, evaluation: Evaluation, target: float) -> Acting:
        """The actor's settings for this target return."""
        options = evaluation.options
        return Acting(
            target_return=target,
            greedy=options.use_argmax,
            reset_target=options.reset_target,
            slide=options.slide,
            seed=evaluation.seed,
            precision=evaluation.precision,
            cuda_graphs=evaluation.cuda_graphs,
        )

    def player(self, evaluation: Evaluation, actor: BatchActor) -> BatchActor:
        """The player: the actor, or a wrapper around it that changes the rewards it sees."""
        return actor

    def reset_options(self, seeds: np.ndarray, options: Any) -> dict[str, np.ndarray]:
        """Options for the environments' reset, for episodes of these seeds, (E,) each."""
        return {}

    def episodes(self, evaluation: Evaluation, *, twins: bool) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """Seeds (E,) of the episodes of a case, and options (E,) of the environments' reset.

        With `twins`, every seed is played with both values of the twins' option.
        """
        seeds = self.seeds(evaluation.episodes)
        options = self.reset_options(seeds, evaluation.options)
        if not twins:
            return seeds, options
        if self.twins is None:
            raise UserError(f"{self.name} has no twins: no two episodes differ only in what has to be remembered")
        name, values = self.twins
        options = {other: np.repeat(given, 2) for other, given in options.items()}
        return np.repeat(seeds, 2), options | {name: np.tile(np.array(values), len(seeds))}

    def play(self, evaluation: Evaluation, acting: Acting, *, twins: bool = False) -> dict[Case, Episodes]:
        """Play the episodes of all cases; see `episodes`."""
        seeds, options = self.episodes(evaluation, twins=twins)
        return play_cases(
            evaluation.agent,
            evaluation.cases,
            partial(self.vector, options=evaluation.options),
            seeds=seeds,
            acting=acting,
            options=options,
            max_environments=self.max_environments,
            compact=not twins,
            player=partial(self.player, evaluation),
            description=self.name,
        )

    def play_as(self, player: BatchActor, options: Any, *, episodes: int, case: Case = None) -> Episodes:
        """Play the episodes of an evaluation with any player, such as a random one; see `play`."""
        environments = self.vector(np.full(episodes, case), options)
        try:
            return rollout(
                player,
                environments,
                seeds=self.seeds(episodes),
                max_steps=int(np.max(getattr(environments, "max_steps"))),  # noqa: B009  no VectorEnv has it
                description=self.name,
            )
        finally:
            environments.close()

    def horizons(self, case: Case, options: Any) -> tuple[int, ...]:
        """Correlation horizons of an episode (Cherepanov et al. 2024, arXiv 2412.06531), in steps.

        From an event to the step at which it has to be recalled, inclusive; empty if none is defined.
        """
        return ()

    def chance(self, case: Case, evaluation: Evaluation) -> float | None:
        """The mean of `outcomes` without memory; if they are returns, that of a random player.

        None if unknown. By default `chance_rate`, or else the reference called "random".
        """
        return self.references(evaluation).get("random") if self.chance_rate is None else self.chance_rate

    def outcomes(self, case: Case, episodes: Episodes, evaluation: Evaluation) -> np.ndarray:
        """(E,): how well each episode recalled what it had to remember, from 0 to 1; or, by default, its return."""
        return episodes.returns

    def has_twins(self, options: Any) -> bool:
        """Whether what is played has `twins`."""
        return self.twins is not None

    def played_cases(self, evaluation: Evaluation) -> Sequence[Case]:
        """The keys of what `play` returns."""
        return evaluation.cases

    # --- results ---

    def figures(self, case: Case, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """The columns that the inference script prints and writes for a case, by name."""
        figures = {"mean_return": float(episodes.returns.mean()), "mean_steps": float(episodes.lengths.mean())}
        return figures | error_entry("standard_error", episodes.returns)

    def description(self, evaluation: Evaluation) -> str:
        """A description of what is played, for the first line of an evaluation."""
        return ""

    def others(self, evaluation: Evaluation) -> dict[str, dict[str, float]]:
        """`figures` of players without a model, such as a random one, in the same episodes; by label."""
        return {}

    def references(self, evaluation: Evaluation) -> dict[str, float]:
        """Reference returns, such as a random player's, the data's and an expert's, for figures and tables."""
        return {}

    def draw(self, folder: Path, evaluation: Evaluation) -> Sequence[Path]:
        """Draw an evaluation, with and without memory: success by case (numbers) if there are any, else returns."""
        if self.outcome == "success" and all(isinstance(case, int | float) for case in evaluation.cases):
            return [self.draw_success(folder, evaluation)]
        return [self.draw_returns(folder, evaluation)]

    def draw_success(self, folder: Path, evaluation: Evaluation) -> Path:
        """Draw the mean of `outcomes` by case, with and without memory."""
        from RATE_model.plots import plot_success_by_length

        return plot_success_by_length(
            evaluation.success_rates(),
            folder / "knock_out.png",
            chance=self.chance_rate,
            title=f"success with and without memory ({evaluation.episodes} episodes per {self.axis})",
            xlabel=self.case_label,
        )

    def draw_returns(self, folder: Path, evaluation: Evaluation) -> Path:
        """Draw returns by target, with and without memory, for every case."""
        from RATE_model.plots import plot_returns

        lines: dict[str, dict[float, Episodes]] = {}
        for label, transform in memory_conditions(evaluation.agent).items():
            for target, by_case in evaluation.play_with(transform).items():
                for case, episodes in by_case.items():
                    line = f"{label}, {self.axis} {case}" if self.axis else label
                    lines.setdefault(line, {})[target] = episodes
        title = f"{self.description(evaluation) or self.name}, {evaluation.episodes} episodes"
        return plot_returns(lines, folder / "returns.png", title=title, references=self.references(evaluation))

    def picture(self, environments: VectorEnv, row: int) -> np.ndarray | None:
        """An image of one row of `vector`'s environments, (H, W, 3) uint8; None if it cannot be rendered.

        Reports use it where observations are not images.
        """
        return None

    def frame(self, environment: gymnasium.Env, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
        """One frame of a video, (H, W, 3) uint8: the environment's image with lines of text below it."""
        from RATE_model.acting.video import with_caption

        picture = environment.render()
        if picture is None:
            raise UserError(f"--video: {self.name} draws no pictures; its render() returned None")
        return with_caption(np.asarray(picture), *caption)
