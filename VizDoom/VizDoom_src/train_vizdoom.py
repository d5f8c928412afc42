"""Train RATE or a relative on ViZDoom-Two-Colors.

    python3 VizDoom/VizDoom_src/train_vizdoom.py --nmt 5 --mem_len 300 --skip_dec_ffn

Data that is missing is made first. Every seed is a run of its own in VizDoom/VizDoom_checkpoints/.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

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
from RATE_model.errors import UserError
from RATE_model.training.curriculum import parse_stages
from RATE_model.training.runs import Run
from RATE_model.training.trainer import accuracy
from VizDoom.VizDoom_src import evaluate as protocol
from VizDoom.VizDoom_src.dataset import DataOptions, ensure_dataset, load_windows
from VizDoom.VizDoom_src.engine import vizdoom
from VizDoom.VizDoom_src.env import MIRRORED, PUBLISHED_CAP
from VizDoom.VizDoom_src.graphics import ensure_graphics
from VizDoom.VizDoom_src.pictures import draw_run
from VizDoom.VizDoom_src.scenario import BEFORE
from VizDoom.VizDoom_src.spec import SPEC

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE.parent / "VizDoom_checkpoints"
# What --published true sets; see docs/deviations.md.
PUBLISHED = PUBLISHED_TRAINING | {
    "lr_schedule": "rising_cosine",
    "warmup_tokens": 10_000,
    "final_tokens": 10_000_000,
    "variant": "published",
    "graphics": "published",
    "learn": "recorded",
    "mirror": False,
    "stages": (),
    "reset_target": False,
    "use_argmax": False,
    "slide": 1,
}


@dataclass(frozen=True)
class TaskOptions:
    """Segments and evaluation."""

    # Steps of a segment (K)
    context_length: int = 30
    # Segments of a trajectory (N); data has episodes of N K steps
    segments: int = 3
    # Stages of training before the one on whole episodes, on their first segments, as SEGMENTS:EPOCHS of each. That the
    # pillar tells which items are good is learned from the first steps many times sooner
    stages: tuple[str, ...] = ()
    # Show every episode as it is or in the mirror, left for right, with equal probability: twice the data
    mirror: Boolean = False
    # Return that the agent is asked for
    target_return: float = protocol.TARGET_RETURN
    # Ask for the return again whenever K steps have passed, as if nothing had been earned
    reset_target: Boolean = False
    # Take the most probable action; false: draw from the predicted distribution (published)
    use_argmax: Boolean = changeable(False)
    # Steps after which an evaluated episode is over, if the player is still alive
    episode_timeout: int = PUBLISHED_CAP
    # Play the game at checkpoints
    online_inference: Boolean = True
    # Play the game at the end
    last_inference: Boolean = changeable(True)
    # Episodes of an evaluation, half of them red: 50 (published) or up to 200
    eval_episodes: int = changeable(protocol.EPISODES)
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, context_length=self.context_length, segments=self.segments, slide=self.slide)
        at_least(1, episode_timeout=self.episode_timeout)
        at_most(MAX_STEPS, context_length=self.context_length, segments=self.segments)
        protocol.check_episodes(eval_episodes=self.eval_episodes)
        parse_stages(self.stages, self.segments, flag="stages")


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
        """Raise a UserError if these sizes make no model, or data would be made that cannot be trained on."""
        check_window_starts(self.train, self.agent_config(), steps=None)
        task = self.task
        steps = task.segments * task.context_length
        if self.data.data_path is None and self.data.steps != steps:
            raise UserError(
                f"--steps {self.data.steps}: episodes are trained on as a whole; there must be as many steps as "
                f"--segments {task.segments} times --context_length {task.context_length}: --steps {steps}"
            )

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


def evaluate(model: Agent, config: Config, seed: int, final: bool) -> dict[str, float]:
    """Returns and lifetimes in the game by colour; names are the published ones."""
    task = config.task
    if not (task.last_inference if final else task.online_inference):
        return {}
    played = protocol.play(
        model,
        episodes=task.eval_episodes,
        target_return=task.target_return,
        reset_target=task.reset_target,
        greedy=task.use_argmax,
        seed=seed,
        slide=task.slide,
        scenario=config.data.scenario,
        max_steps=task.episode_timeout,
        precision=config.train.precision,
    )
    return protocol.metrics(played, target_return=task.target_return)


def check(config: Config, seed: int) -> Run:
    """The run of a seed, new or to be continued; nothing is created. Raises UserError if it cannot be."""
    if config.task.online_inference or config.task.last_inference:
        vizdoom()  # fail fast, on a missing package and on missing graphics
        ensure_graphics(config.data.scenario)
    return experiment.check(config, run_directory(config, seed), seed, before=BEFORE)


def train(config: Config, run: Run) -> dict[str, float]:
    """One checked run, from its data to its last evaluation; returns what its eval/final.json holds."""
    task = config.task
    size = task.segments * task.context_length
    sides = load_windows(ensure_dataset(config.data), size=size, learn=config.data.learn)

    @lru_cache
    def data(segments: int) -> tuple[WindowDataset, WindowDataset]:
        training, validation = (side.beginnings(segments * task.context_length) for side in sides)
        return training, validation

    def finish(model: Agent, result: dict[str, float]) -> None:
        draw_run(run.directory, result, target_return=task.target_return)
        said = ""
        if task.last_inference:
            names = (f"ReturnsMean{part}_{task.target_return:g}" for part in ("_red", "_green", ""))
            red, green, both = (result[name] for name in names)
            said = f"return {red:.1f} red, {green:.1f} green, {both:.1f} in the mean, "
        print(
            f"{run.directory}: {said}validation loss {result['validation_loss']:.3g}, trained in "
            f"{result['train_seconds']:.0f} s; all results in eval/final.json, pictures in plots/"
        )

    curriculum, schedule = experiment.plan(
        config.train,
        CurriculumOptions(),
        config.agent_config(),
        data,
        [task.segments],
        task.context_length,
        before=parse_stages(task.stages, task.segments, flag="stages"),
    )
    return experiment.train_run(
        config,
        run,
        model=config.agent_config(),
        spec=replace(SPEC, conv_channels=config.image.conv_channels),
        data=data,
        curriculum=curriculum,
        schedule=schedule,
        metrics=accuracy,
        evaluate=lambda model, final: evaluate(model, config, run.seed, final),
        finish=finish,
        transform=Mirror(MIRRORED) if task.mirror else None,
    )


def read_config(argv: Sequence[str] | None = None) -> Config:
    """The configuration that the flags (None: of the command line) ask for. Raises UserError.

    It says which graphics, so that a run's record does.
    """
    config = parse_options(
        Config,
        argv=argv,
        config_file=HERE / "config.yaml",
        published=PUBLISHED,
        prog="python3 VizDoom/VizDoom_src/train_vizdoom.py",
        description="Train RATE or a relative on ViZDoom-Two-Colors.",
    )
    return replace(config, data=replace(config.data, scenario=config.data.scenario.settled()))


def main(argv: Sequence[str] | None = None) -> int:
    """Train every seed that the flags ask for; the exit code says whether all finished."""
    with exit_on_user_error():
        return experiment.train_seeds(read_config(argv), check, train)


if __name__ == "__main__":
    sys.exit(main())
