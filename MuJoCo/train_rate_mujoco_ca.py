"""Train RATE or a relative on HalfCheetah, Hopper or Walker2d.

    python3 MuJoCo/train_rate_mujoco_ca.py --env_id 0 --skip_dec_ffn --seed 123

Data has to be there (see MuJoCo/README.md). Every seed is a run of its own in MuJoCo/MuJoCo_checkpoints/.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MuJoCo import evaluate as protocol
from MuJoCo.dataset import DataOptions, load_data
from MuJoCo.spec import spec_of
from MuJoCo.tasks import Task, make_environment, task_of
from RATE_model.acting.rollout import with_error
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli import experiment
from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, changeable, exit_on_user_error, parse_options
from RATE_model.cli.settings import (
    PUBLISHED_TRAINING,
    CurriculumOptions,
    ModelOptions,
    RunOptions,
    TrainOptions,
    check_window_starts,
)
from RATE_model.plots import plot_curves
from RATE_model.training.runs import Run

HERE = Path(__file__).resolve().parent
CHECKPOINTS = HERE / "MuJoCo_checkpoints"
# What --published true sets; see docs/deviations.md.
PUBLISHED = PUBLISHED_TRAINING | {
    "lr_schedule": "constant",
    "windows": "full",
    "condition": "auto",
    "reset_target": False,
    "long_prompt": True,
    "slide": 1,
}
# How the published script spells what other environments' scripts have too.
SPELLINGS = {"num_mem_tokens": "nmt"}


@dataclass(frozen=True)
class TaskOptions:
    """Which robot and data, segments, and evaluation."""

    # Robot and data: 0 halfcheetah-medium ... 11 hopper-medium-expert, see README.md
    env_id: int = 0
    # Segments of a trajectory (N)
    segments: int = 3
    # Steps of a segment (K)
    context_length: int = 20
    # Return that the agent is asked for, in units of reward; none = the task's
    target_return: float | None = None
    # Ask for it again at every segment, as if nothing had been earned: a published trick
    reset_target: Boolean = False
    # Also act on the last K steps at every step (prompt K), not only on those of the segment so far (prompt 1)
    long_prompt: Boolean = True
    # DT and DTXL: steps that leave a full window at once when acting; 1 is the published protocol, more is faster
    slide: int = changeable(1)
    # Version of the Gymnasium environments; D4RL's scores refer to the dynamics of v4
    env_version: protocol.Version = "v4"
    # Act in the environment at checkpoints
    online_inference: Boolean = True
    # Act in the environment at the end
    last_inference: Boolean = changeable(True)
    # Episodes of an evaluation
    eval_episodes: int = changeable(10)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        task_of(self.env_id)
        at_least(1, segments=self.segments, context_length=self.context_length, slide=self.slide)
        at_most(MAX_STEPS, segments=self.segments, context_length=self.context_length)
        protocol.check_episodes(eval_episodes=self.eval_episodes)

    @property
    def task(self) -> Task:
        """What `env_id` means."""
        return task_of(self.env_id)

    @property
    def target(self) -> float:
        """The return to ask for."""
        return self.task.target_return if self.target_return is None else self.target_return


@dataclass(frozen=True)
class Config:
    """All flags of this script."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    task: TaskOptions = field(default_factory=TaskOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    run: RunOptions = field(default_factory=RunOptions)

    def validate(self) -> None:
        """Raise a UserError if these sizes make no model, or windows cannot begin as asked."""
        steps = self.task.segments * self.task.context_length
        check_window_starts(self.train, self.agent_config(), steps=steps, pad=self.data.pad)

    def agent_config(self) -> AgentConfig:
        """Sizes of the model."""
        return self.model.agent_config(context_length=self.task.context_length, segments=self.task.segments)


@lru_cache
def usual() -> Config:
    """The configuration without any flags."""
    return read_config([])


def run_directory(config: Config, seed: int) -> Path:
    """Where the run of a seed is kept; see `experiment.run_directory`."""
    model, task = config.model, config.task
    return experiment.run_directory(
        config,
        seed,
        usual=usual(),
        checkpoints=CHECKPOINTS,
        name=(task.task.name, *model.name_parts),
        named=("env_id",),
    )


def evaluate(model: Agent, config: Config, final: bool) -> dict[str, float]:
    """Returns and scores in the environment; names are the published ones."""
    task = config.task
    if not (task.last_inference if final else task.online_inference):
        return {}
    robot = task.task.robot
    played = protocol.play_prompts(
        model,
        robot,
        long_prompt=task.long_prompt,
        target_return=task.target,
        reset_target=task.reset_target,
        slide=task.slide,
        episodes=task.eval_episodes,
        version=task.env_version,
        precision=config.train.precision,
    )
    asked = {"target_return": task.target} | ({"reset_target": True} if task.reset_target else {})
    return protocol.metrics(played, robot) | asked


def check(config: Config, seed: int) -> Run:
    """The run of a seed, new or to be continued; nothing is created. Raises UserError if it cannot be."""
    experiment.check_calibration(config.train, spec_of(config.task.task.robot))
    if config.task.online_inference or config.task.last_inference:  # MuJoCo may not be installed
        make_environment(config.task.task.robot, config.task.env_version).close()
    return experiment.check(config, run_directory(config, seed), seed, before={"windows": "every"})


def train(config: Config, run: Run) -> dict[str, float]:
    """One checked run, from its data to its last evaluation; returns what its eval/final.json holds."""
    task = config.task
    segments, steps = task.segments, task.context_length
    data = load_data(task.task, config.data, size=segments * steps)
    windows = lru_cache(lambda segments: (data.training, data.validation))

    def finish(model: Agent, result: dict[str, float]) -> None:
        curves = {run.directory.name: run.directory / "metrics.jsonl"}
        plot_curves(curves, run.plots / "curves.png", ("train_loss", "grad_norm", "return_MEAN"))
        scores = ""
        if task.last_inference:
            played = with_error(result["return_MEAN"], result.get("return_SEM"), 0)
            scores = f"return {played} (standard error), normalised score {result['episode_MEAN']:.1f}, "
        print(
            f"{run.directory}: {scores}validation loss {result['validation_loss']:.3g}, trained in "
            f"{result['train_seconds']:.0f} s; all results in eval/final.json, pictures in plots/"
        )

    curriculum, schedule = experiment.plan(
        config.train, CurriculumOptions(), config.agent_config(), windows, [segments], steps
    )
    return experiment.train_run(
        config,
        run,
        model=config.agent_config(),
        spec=spec_of(task.task.robot, data.normalisation),
        data=windows,
        curriculum=curriculum,
        schedule=schedule,
        metrics=None,
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
        prog="python3 MuJoCo/train_rate_mujoco_ca.py",
        description="Train RATE or a relative on HalfCheetah, Hopper or Walker2d.",
        aliases=SPELLINGS,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Train every seed that the flags ask for; the exit code says whether all finished."""
    with exit_on_user_error():
        return experiment.train_seeds(read_config(argv), check, train)


if __name__ == "__main__":
    sys.exit(main())
