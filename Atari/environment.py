"""Atari as training, inference and reports see it: flags, data, games, evaluation and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import gymnasium
import numpy as np
import torch

from Atari import evaluate as protocol
from Atari.dataset import DataOptions, load_data, trained_on_clipped_rewards
from Atari.env import PUBLISHED_CAP, AtariEnv, Opening, spec_of
from Atari.games import Game, GameName, ale_py
from Atari.games import game as game_of
from Atari.generate import FIRST_DATA_SEED
from RATE_model.acting.rollout import BatchActor, Episodes
from RATE_model.acting.video import with_caption
from RATE_model.agent import Agent
from RATE_model.cli.limits import Positive, Range, Return, Share, Steps
from RATE_model.cli.options import changeable
from RATE_model.cli.settings import ImageExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import run_of

ENLARGE = 2  # a console's pixel, in pixels of a video


@dataclass(frozen=True)
class Rules(PlayOptions):
    """Rules that training and inference share."""

    # Probability, at every frame, of repeating the previous action
    sticky: Share = 0.0
    # Step limit per episode, in decisions
    max_steps: Steps = PUBLISHED_CAP
    # What the agent sees at the start of an episode or a ball. black: black frames before the first, as in the data;
    # published: the first frame repeated, as in the published evaluation
    opening: Opening = changeable("published")


@dataclass(frozen=True)
class Play(Rules):
    """The game and its rules."""

    # Game, for converted checkpoints that do not name theirs; none = the run's
    game: GameName | None = None


@dataclass(frozen=True)
class Task(Rules, SegmentOptions):
    """Segments, returns and evaluation."""

    # Divide returns by this before the model sees them. Published: 1, followed by a tanh that hardly separates 20
    # points from 200; none = half of the target return
    return_scale: Annotated[float, Range(1e-6, 1e9)] | None = 1.0
    # Passes over the data at which the learning rate's decay ends (published: 2 of 3 epochs); none = the end of
    # training, or --final_tokens
    decay_epochs: Positive | None = 2.0
    # Target return, in points as counted by the data; none = the game's
    target_return: Return | None = None


@dataclass(frozen=True)
class Config(ImageExperimentConfig):
    """All flags of the train script."""

    data: DataOptions = field(default_factory=DataOptions)
    task: Task = field(default_factory=Task)

    def validate(self) -> None:
        """Raise a UserError for invalid model sizes, a burn-in of whole windows, or an unknown target return."""
        super().validate()
        if self.task.online_inference or self.task.last_inference:
            _ = self.target
        _ = self.spec

    @property
    def game(self) -> Game:
        """The game."""
        return game_of(self.data.game)

    @property
    def target(self) -> float:
        """The target return. Raises UserError for a game that has none, without --target_return."""
        return protocol.target_of(self.game, self.task.target_return)

    @property
    def spec(self) -> EnvironmentSpec:
        """How the model sees the game and its returns.

        Raises:
            UserError: returns are scaled by a target return that is unknown or 0.
        """
        scale = self.task.return_scale if self.agent_config().sizes.conditioned else 1.0
        if scale is None:
            scale = abs(self.target) / 2
        if scale == 0:
            raise UserError("--return_scale none: half of --target_return 0 is 0; give a number above 0")
        return spec_of(self.game, return_scale=1 / scale, conv_channels=self.image.conv_channels)


class Atari(Environment):
    """Breakout, Qbert, Seaquest, Pong, and any other game of the Arcade Learning Environment."""

    name = "Atari"
    train_script = "Atari/train_rate_atari.py"
    inference_script = "Atari/inference_atari.py"
    config = Config
    play_options = Play
    before = {"opening": "black"}
    # The published script's
    aliases = {"num_mem_tokens": "nmt", "save_path": "output_dir"}
    data_seeds = range(FIRST_DATA_SEED, 2**31)
    first_seed = 2**31
    check_packages = staticmethod(ale_py)
    curves = ("train_loss", "train_accuracy", "eval_return")

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """Four pictures and the game's actions."""
        return spec_of(_game(flags))

    def load(self, config: Config) -> TrainingData:
        """Windows that begin at every step. Acting has to know whether their rewards are clipped."""
        size, epochs = config.segments * config.context_length, config.task.decay_epochs
        data = load_data(config.data, size=size)

        decay = None if epochs is None else round(float(data.training.windows[:, 2].sum()) * epochs)
        sides, more = (data.training, data.validation), {"final_tokens": decay, "prepare": data.write}
        return TrainingData.of_one_stage(sides, config.segments, config.spec, **more)

    def name_parts(self, config: Config) -> tuple[Sequence[object], Sequence[str]]:
        """Includes the game."""
        return (config.game.name, *config.model.name_parts), ("game",)

    def make(self, case: object, options: Play, *, render_mode: str | None = None) -> AtariEnv:
        """One game."""
        return AtariEnv(
            _game(vars(options)).name,
            sticky=options.sticky,
            max_steps=options.max_steps,
            opening=options.opening,
            render_mode=render_mode,
        )

    def load_agent(
        self, checkpoint: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any], *, device: torch.device | str
    ) -> Agent:
        """An agent for the chosen game."""
        ale_py()  # it may not be installed
        run, flags = run_of(checkpoint.absolute()), {**recorded, **asked}
        trained, name = recorded.get("game"), flags.get("game")
        if name is None:
            config = run / "config.yaml"
            raise UserError(f"{config} does not name a game; give a run of train_rate_atari.py, or --game")
        if trained is not None and game_of(name) != game_of(trained):
            raise UserError(f"--game {name}: {run} was trained on {trained}")
        return super().load_agent(checkpoint, recorded, asked, device=device)

    def player(self, evaluation: Evaluation, actor: BatchActor) -> BatchActor:
        """A player that sees clipped rewards if its data had them."""
        clipped = evaluation.run is not None and trained_on_clipped_rewards(evaluation.run)
        return protocol.ClippedRewards(actor) if clipped else actor

    def target_returns(self, flags: Mapping[str, Any]) -> tuple[float, ...]:
        """The target return of training, or the game's."""
        return (protocol.target_of(_game(flags), flags.get("target_return")),)

    def metrics(
        self, played: Mapping[None, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Points, scores and the target return."""
        return protocol.metrics(played[None], config.game) | {"target_return": evaluation.targets[0]}

    def headlines(self, config: Config) -> Mapping[str, str]:
        """The points, and how well actions are predicted."""
        return {"eval_return": "points", "eval_sem": "standard error", "validation_accuracy": ""}

    def figures(self, case: None, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """The same as in training."""
        return protocol.metrics(episodes, _game(vars(evaluation.options)))

    def description(self, evaluation: Evaluation) -> str:
        """The game."""
        return _game(vars(evaluation.options)).name + ", most probable actions" * evaluation.options.use_argmax

    def references(self, evaluation: Evaluation) -> dict[str, float]:
        """Points of a random and of a human player, if measured."""
        game = _game(vars(evaluation.options))
        known = {"random": game.random_score, "human": game.human_score}
        return {label: value for label, value in known.items() if value is not None}

    def frame(self, environment: gymnasium.Env, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
        """The screen, enlarged."""
        screen = np.asarray(environment.render())
        return with_caption(screen.repeat(ENLARGE, axis=0).repeat(ENLARGE, axis=1), *caption)


def _game(flags: Mapping[str, Any]) -> Game:
    """The game that flags name, or the usual one."""
    return game_of(flags.get("game") or DataOptions.game)


ENVIRONMENT = Atari()
