"""ViZDoom-Two-Colors as training, inference and reports see it: flags, data, games, evaluation and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from RATE_model.acting.controls import exchange_twins
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.evaluation import flags_of
from RATE_model.cli.limits import Count, Return
from RATE_model.cli.options import Boolean, changeable
from RATE_model.cli.settings import ImageExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.data.mirror import Mirror
from RATE_model.environments.contract import Case, Environment, Evaluation, TrainingData
from RATE_model.errors import UserError
from RATE_model.training.curriculum import parse_stages
from VizDoom.VizDoom_src import evaluate as protocol
from VizDoom.VizDoom_src import pictures
from VizDoom.VizDoom_src.baselines import play_baselines
from VizDoom.VizDoom_src.dataset import DATA, DataOptions
from VizDoom.VizDoom_src.engine import describe_graphics, vizdoom
from VizDoom.VizDoom_src.env import (
    MIRRORED,
    PUBLISHED_CAP,
    SEED_LIMIT,
    SPEC,
    VizDoomTwoColorsEnv,
    VizDoomTwoColorsVectorEnv,
)
from VizDoom.VizDoom_src.expert import PERTURBATION_STEPS
from VizDoom.VizDoom_src.graphics import ensure_graphics
from VizDoom.VizDoom_src.privileged import SAME_IN_THE_MIRROR, SIGNS_IN_THE_MIRROR
from VizDoom.VizDoom_src.scenario import BEFORE, GRAPHICS, Scenario
from VizDoom.VizDoom_src.seeds import FIRST_DATA_SEED


@dataclass(frozen=True)
class Rules(PlayOptions):
    """Rules that training and inference share."""

    # Step limit of evaluated episodes
    episode_timeout: Count = PUBLISHED_CAP


@dataclass(frozen=True)
class Games(Scenario, Rules):
    """The games to play. A --variant other than the run's has its own graphics."""

    # Also play the same episodes with players without a model. Takes minutes; the result is cached
    baselines: Boolean = True

    @property
    def scenario(self) -> Scenario:
        """The scenario to play."""
        return Scenario(**{field.name: getattr(self, field.name) for field in fields(Scenario)})


@dataclass(frozen=True)
class Task(Rules, SegmentOptions):
    """Segments and evaluation."""

    # Training stages before the one on whole episodes, as SEGMENTS:EPOCHS: each trains on the first segments of every
    # episode, from which the model learns much sooner that the pillar shows which items are good
    stages: tuple[str, ...] = ()
    # Show every episode as it is or mirrored left to right, with equal probability; doubles the data
    mirror: Boolean = False
    # Target return
    target_return: Return = protocol.TARGET_RETURN
    # Episodes per evaluation, half of them red: 50 (published), at most 200
    eval_episodes: int = changeable(protocol.EPISODES)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        parse_stages(self.stages, self.segments, flag="stages")


@dataclass(frozen=True)
class Config(ImageExperimentConfig):
    """All flags of the train script."""

    whole_episodes = True

    data: DataOptions = field(default_factory=DataOptions)
    task: Task = field(default_factory=Task)

    def validate(self) -> None:
        """Raise a UserError for invalid sizes, or data to be made that could not be trained on."""
        super().validate()
        steps = self.segments * self.context_length
        if self.data.data_path is None and self.data.steps != steps:
            raise UserError(
                f"--steps {self.data.steps}: training uses whole episodes; must equal "
                f"--segments {self.segments} times --context_length {self.context_length}: --steps {steps}"
            )


class ViZDoomTwoColors(Environment):
    """A pillar shown for a while, and items: those of its colour heal, the others hurt."""

    name = "ViZDoom-Two-Colors"
    train_script = "VizDoom/VizDoom_src/train_vizdoom.py"
    inference_script = "VizDoom/VizDoom_src/inference_vizdoom.py"
    config = Config
    maker = DATA
    play_options = Games
    before = {**BEFORE, "perturbation_steps": PERTURBATION_STEPS}
    # Half red, half green. Fewer than four have no standard error.
    episode_counts = range(4, protocol.MAX_EPISODES + 1, 2)
    data_seeds = range(FIRST_DATA_SEED, SEED_LIMIT)
    # More would not use more cores, and every engine takes about 20 MB.
    max_environments = 50
    twins = ("is_red", (True, False))
    check_packages = staticmethod(vizdoom)

    def read_config(self, argv: Sequence[str] | None = None) -> Config:
        """The run's record includes the graphics."""
        config = super().read_config(argv)
        return replace(config, data=replace(config.data, scenario=config.data.scenario.settled()))

    def inherited_flags(self, recorded: Mapping[str, Any], typed: Mapping[str, Any]) -> dict[str, Any]:
        """A variant other than the run's has its own graphics."""
        trained = recorded.get("variant", Scenario.variant)
        variant = typed.get("variant", trained)
        graphics = recorded.get("graphics") if variant == trained else None
        return {**recorded, "graphics": graphics or GRAPHICS.get(variant)}

    def check(self, config: Config) -> None:
        """As in every environment; also missing graphics, which acting needs."""
        super().check(config)
        if config.task.online_inference or config.task.last_inference:
            ensure_graphics(config.data.scenario)

    def load(self, config: Config) -> TrainingData:
        """Whole episodes; in earlier stages, their first segments.

        As in the published loader, episodes of other lengths are left out: nothing is padded, and the returns-to-go of
        a cut episode would include rewards after the cut.
        """
        task, context = config.task, config.context_length
        whole = config.segments * context
        files, learn = self.files(config), config.data.learn
        training, validation = DATA.whole_windows(files, size=whole, shortest=whole, learn=learn)
        return TrainingData(
            lambda segments: (training.cut_to(segments * context), validation.cut_to(segments * context)),
            [config.segments],
            replace(SPEC, conv_channels=config.image.conv_channels),
            before=parse_stages(task.stages, config.segments, flag="stages"),
            transform=Mirror(MIRRORED, SAME_IN_THE_MIRROR, SIGNS_IN_THE_MIRROR) if task.mirror else None,
        )

    def make(self, case: Case, options: Games, *, render_mode: str | None = None) -> VizDoomTwoColorsEnv:
        """One game."""
        return VizDoomTwoColorsEnv(options.scenario, max_steps=options.episode_timeout, render_mode=render_mode)

    def vector(self, cases: np.ndarray, options: Games) -> VizDoomTwoColorsVectorEnv:
        """Games stepped in threads."""
        return VizDoomTwoColorsVectorEnv(len(cases), options.scenario, max_steps=options.episode_timeout)

    def seeds(self, episodes: int) -> np.ndarray:
        """Taken from the published lists, red ones first."""
        return protocol.evaluation_seeds(episodes + episodes % 2)[0][:episodes]

    def reset_options(self, seeds: np.ndarray, options: Games) -> dict[str, np.ndarray]:
        """The seeds' colours, where the colour can be chosen."""
        return protocol.colour_options(options.scenario, protocol.is_red(seeds)) or {}

    def play(self, evaluation: Evaluation, acting: Acting, *, twins: bool = False) -> dict[Case, Episodes]:
        """As in every environment. Twins differ only in the colour, where it can be chosen."""
        if twins and not self.has_twins(evaluation.options):
            raise UserError("the seed determines the colour in the published scenario; twins need --variant clear")
        return super().play(evaluation, acting, twins=twins)

    def has_twins(self, options: Games) -> bool:
        """Whether the colour can be chosen."""
        return protocol.has_free_colour(options.scenario)

    def horizons(self, case: Case, options: Games) -> tuple[int, ...]:
        """From the last sight of the pillar to any step after it."""
        last = options.episode_timeout - options.pillar_steps + 1
        return (2, last) if options.pillar and last >= 2 else ()

    def chance(self, case: Case, evaluation: Evaluation) -> float:
        """A random player's return; takes seconds the first time."""
        options: Games = evaluation.options
        episodes = evaluation.episodes + evaluation.episodes % 2  # half red, half green
        played = play_baselines(
            episodes, labels=("random",), scenario=options.scenario, max_steps=options.episode_timeout
        )
        return float(played["random"].episodes.returns.mean())

    def metrics(
        self, played: Mapping[Case, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Returns and lifetimes by colour, under the published names."""
        return protocol.metrics(_by_colour(played[None], evaluation), target_return=evaluation.targets[0])

    def headlines(self, config: Config) -> Mapping[str, str]:
        """Returns by colour."""
        asked = f"{config.task.target_return:g}"
        return {f"ReturnsMean{colour}_{asked}": "" for colour in ("_red", "_green", "")}

    def figures(self, case: Case, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """Returns by colour, and lifetimes in tics."""
        return protocol.figures(_by_colour(episodes, evaluation))

    def description(self, evaluation: Evaluation) -> str:
        """The scenario, and the graphics of training if they differ."""
        options: Games = evaluation.options
        trained = None if evaluation.run is None else flags_of(evaluation.run, BEFORE).get("graphics")
        other = trained not in (None, options.scenario.settled().graphics)
        return (
            f"half of them red, of the {options.variant} variant ({describe_graphics(options.scenario)}"
            f"{f'; trained in {trained} graphics' if other else ''})"
            f"{', target reset at every segment' if options.reset_target else ''}"
        )

    def others(self, evaluation: Evaluation) -> dict[str, dict[str, float]]:
        """Players without a model, unless turned off."""
        return {label: protocol.figures(played) for label, played in _baselines(evaluation).items()}

    def curve_metrics(self, config: Config) -> Sequence[str]:
        """Also the returns by colour."""
        return (*self.curves, *(f"ReturnsMean_{colour}_{config.task.target_return:g}" for colour in protocol.COLOURS))

    def draw_run(self, directory: Path, agent: Agent, config: Config, result: Mapping[str, Any]) -> None:
        """Curves, and returns by colour if known."""
        super().draw_run(directory, agent, config, result)
        names = {colour: f"{colour}_{config.task.target_return:g}" for colour in protocol.COLOURS}
        if f"ReturnsMean_{names['red']}" in result:
            bars = {
                colour: (result[f"ReturnsMean_{name}"], result[f"ReturnsSEM_{name}"]) for colour, name in names.items()
            }
            pictures.returns_by_colour({config.model.model_mode: bars}, directory / "plots" / "returns_by_colour.png")

    def draw(self, folder: Path, evaluation: Evaluation) -> Sequence[Path]:
        """Returns by colour: with and without memory, with twins' memories swapped, and of other players."""
        played = {label: by_case[None] for label, by_case in evaluation.conditions().items()}
        if len(played) > len(evaluation.targets) and self.has_twins(evaluation.options):
            for target, by_case in evaluation.play_with(exchange_twins(), twins=True).items():
                asked = f", asked for {target:g}" * (len(evaluation.targets) > 1)
                played[f"memories of twins exchanged{asked}"] = by_case[None]
        groups = {label: _by_colour(episodes, evaluation) for label, episodes in played.items()}
        bars = {label: pictures.bars_of(found) for label, found in (groups | _baselines(evaluation)).items()}
        title = (
            f"{evaluation.episodes} episodes, target return {', '.join(f'{target:g}' for target in evaluation.targets)}"
        )
        return [pictures.returns_by_colour(bars, folder / "returns_by_colour.png", title=title)]

    def frame(self, environment: gymnasium.Env, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
        """The player's view, its health, and the colour to remember."""
        assert isinstance(environment, VizDoomTwoColorsEnv)
        return pictures.frame(environment, caption)


def _by_colour(episodes: Episodes, evaluation: Evaluation) -> protocol.Played:
    """The episodes of an evaluation, or their twins, with their colours."""
    _, is_red = protocol.evaluation_seeds(evaluation.episodes)
    if len(episodes.returns) > len(is_red):
        is_red = np.tile([True, False], len(is_red))
    return protocol.Played(episodes, is_red)


def _baselines(evaluation: Evaluation) -> dict[str, protocol.Played]:
    """Players without a model in the same episodes; the results are cached."""
    options: Games = evaluation.options
    if not options.baselines:
        return {}
    return play_baselines(evaluation.episodes, scenario=options.scenario, max_steps=options.episode_timeout)


ENVIRONMENT = ViZDoomTwoColors()
