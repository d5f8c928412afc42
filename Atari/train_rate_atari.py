"""Train RATE or a relative on an Atari game.

    python3 Atari/train_rate_atari.py --game Breakout --num_mem_tokens 15 --mem_len 360 --n_head_ca 1 --skip_dec_ffn

Data is made where there is none (see Atari/README.md). Every seed is a run of its own in Atari/Atari_checkpoints/.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from Atari import evaluate as protocol
from Atari.dataset import DataOptions, load_data
from Atari.env import PUBLISHED_CAP, Opening
from Atari.games import Game, ale_py
from Atari.games import game as game_of
from Atari.replay import Selection
from Atari.spec import spec_of
from RATE_model.acting.rollout import with_error
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
from RATE_model.errors import UserError
from RATE_model.plots import plot_curves
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.runs import Run
from RATE_model.training.trainer import accuracy

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE / "Atari_checkpoints"
# What --published true sets; see docs/deviations.md.
PUBLISHED = PUBLISHED_TRAINING | {
    "lr_schedule": "rising_cosine",
    "warmup_tokens": 10_240,
    "final_tokens": None,
    "decay_epochs": 2.0,
    "weight_decay": 0.01,
    "condition": "auto",
    "return_scale": 1.0,
    "opening": "published",
    "sticky": 0.0,
    "use_argmax": False,
    "slide": 1,
}
# How the published script spells what other environments' scripts have too.
SPELLINGS = {"num_mem_tokens": "nmt", "save_path": "output_dir"}


@dataclass(frozen=True)
class TaskOptions:
    """Segments, returns, and evaluation."""

    # Segments of a trajectory (N)
    segments: int = 3
    # Steps of a segment (K)
    context_length: int = 30
    # The model sees returns divided by this; 1 is published, and a tanh behind it that can hardly tell 20 points from
    # 200; none = half of the return asked for
    return_scale: float | None = 1.0
    # Passes over the data after which the learning rate's decay is over (published: 2 of 3 epochs); none = when
    # training is, or after --final_tokens
    decay_epochs: float | None = 2.0
    # Return that the agent is asked for, in points as the data counts them; none = the game's
    target_return: float | None = None
    # Take the most probable action when acting; false: draw it
    use_argmax: Boolean = changeable(False)
    # Probability, at every frame, that the action before goes on
    sticky: float = 0.0
    # Decisions of an episode at most
    max_steps: int = PUBLISHED_CAP
    # What is seen where an episode or a ball begins: black before the first picture, as in the data, or as the
    # published evaluation shows it, the first picture repeated
    opening: Opening = changeable("black")
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)
    # Play at checkpoints
    online_inference: Boolean = True
    # Play at the end
    last_inference: Boolean = changeable(True)
    # Episodes of an evaluation
    eval_episodes: int = changeable(10)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        sizes = {"segments": self.segments, "context_length": self.context_length, "max_steps": self.max_steps}
        at_least(1, **sizes, slide=self.slide)
        at_most(MAX_STEPS, **sizes)
        for name in ("return_scale", "decay_epochs"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"--{name} {value}: must be above 0, or none")
        if not 0 <= self.sticky < 1:
            raise UserError(f"--sticky {self.sticky}: must be at least 0 and below 1")
        protocol.check_episodes(eval_episodes=self.eval_episodes)


@dataclass(frozen=True)
class Config:
    """All flags of this script."""

    model: ModelOptions = field(default_factory=ModelOptions)
    image: ImageOptions = field(default_factory=ImageOptions)
    data: DataOptions = field(default_factory=DataOptions)
    replay: Selection = field(default_factory=Selection)
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def validate(self) -> None:
        """Raise a UserError for sizes of no model, a burn-in that leaves nothing, or no known return to ask for."""
        steps = self.task.segments * self.task.context_length
        check_window_starts(self.train, self.agent_config(), steps=steps)
        if self.task.online_inference or self.task.last_inference:
            _ = self.target
        _ = self.spec

    def agent_config(self) -> AgentConfig:
        """Sizes of the model."""
        return self.model.agent_config(context_length=self.task.context_length, segments=self.task.segments)

    @property
    def game(self) -> Game:
        """The game."""
        return game_of(self.data.game)

    @property
    def target(self) -> float:
        """The return to ask for. Raises UserError for a game that has none, without --target_return."""
        return protocol.target_of(self.game, self.task.target_return)

    @property
    def spec(self) -> EnvironmentSpec:
        """How the model sees the game.

        Raises:
            UserError: returns are to be parts of a return asked for that is not known, or 0.
        """
        scale = self.task.return_scale if self.agent_config().sizes.conditioned else 1.0
        if scale is None:
            scale = abs(self.target) / 2
        if scale == 0:
            raise UserError("--return_scale none: half of --target_return 0 is no scale; give a number above 0")
        return spec_of(self.game, return_scale=1 / scale, conv_channels=self.image.conv_channels)


@lru_cache
def usual() -> Config:
    """The configuration without any flags."""
    return read_config([])


def run_directory(config: Config, seed: int) -> Path:
    """Where the run of a seed is kept; see `experiment.run_directory`."""
    return experiment.run_directory(
        config,
        seed,
        usual=usual(),
        checkpoints=CHECKPOINTS,
        name=(config.game.name, *config.model.name_parts),
        named=("game",),
    )


def evaluate(model: Agent, config: Config, final: bool, clip_rewards: bool = False) -> dict[str, float]:
    """Returns and scores in the game; names are the published ones. `clip_rewards`: see `protocol.play`."""
    task = config.task
    if not (task.last_inference if final else task.online_inference):
        return {}
    played = protocol.play(
        model,
        config.game,
        target_return=config.target,
        episodes=task.eval_episodes,
        greedy=task.use_argmax,
        sticky=task.sticky,
        max_steps=task.max_steps,
        opening=task.opening,
        clip_rewards=clip_rewards,
        slide=task.slide,
        precision=config.train.precision,
    )
    return protocol.metrics(played, config.game) | {"target_return": config.target}


def check(config: Config, seed: int) -> Run:
    """The run of a seed, new or to be continued; nothing is created. Raises UserError if it cannot be."""
    if config.task.online_inference or config.task.last_inference:
        ale_py()  # it may not be installed
    return experiment.check(config, run_directory(config, seed), seed)


def train(config: Config, run: Run) -> dict[str, float]:
    """One checked run, from its data to its last evaluation; returns what its eval/final.json holds."""
    task = config.task
    data = load_data(config.data, config.replay, size=task.segments * task.context_length)
    windows = lru_cache(lambda segments: (data.training, data.validation))

    def finish(model: Agent, result: dict[str, float]) -> None:
        curves = {run.directory.name: run.directory / "metrics.jsonl"}
        plot_curves(curves, run.plots / "curves.png", ("train_loss", "train_accuracy", "eval_return"))
        played = with_error(result["eval_return"], result.get("eval_sem"), 1) if task.last_inference else ""
        played = played and f"return {played} (standard error), "
        print(
            f"{run.directory}: {played}validation accuracy {result['validation_accuracy']:.3f}, trained in "
            f"{result['train_seconds']:.0f} s; all results in eval/final.json, pictures in plots/"
        )

    options = config.train
    if task.decay_epochs is not None and options.final_tokens is None:
        shown = float(data.training.windows[:, 2].sum()) * task.decay_epochs
        options = replace(options, final_tokens=round(shown))
    curriculum, schedule = experiment.plan(
        options, CurriculumOptions(), config.agent_config(), windows, [task.segments], task.context_length
    )
    return experiment.train_run(
        config,
        run,
        model=config.agent_config(),
        spec=config.spec,
        data=windows,
        curriculum=curriculum,
        schedule=schedule,
        metrics=accuracy,
        evaluate=lambda model, final: evaluate(model, config, final, data.clipped),
        finish=finish,
        prepare=data.write,  # with it a checkpoint can act without the data
    )


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the flags (None: of the command line) ask for. Raises UserError."""
    return parse_options(
        Config,
        argv=argv,
        config_file=HERE / "config.yaml",
        published=PUBLISHED,
        prog="python3 Atari/train_rate_atari.py",
        description="Train RATE or a relative on an Atari game.",
        aliases=SPELLINGS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train every seed that the flags ask for; the exit code says whether all finished."""
    with exit_on_user_error():
        return experiment.train_seeds(read_config(argv), check, train)


if __name__ == "__main__":
    sys.exit(main())
