"""Evaluate a checkpoint on HalfCheetah, Hopper or Walker2d.

    python3 MuJoCo/inference_mujoco.py --checkpoint RUN_DIR --target_return 1800 3600

Prints return, length and D4RL's normalised score for every return asked for, with prompt 1 and with prompt K.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MuJoCo import evaluate as protocol
from MuJoCo.spec import spec_of
from MuJoCo.tasks import TASKS, Task, task_of
from RATE_model.acting.controls import memory_conditions
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.inference import InferenceOptions, fill_from_run
from RATE_model.cli.limits import at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.training.checkpoints import NORMALISATION, resolve_checkpoint

# What is asked where no run tells; no target return: the task's.
PUBLISHED = {"target_return": (), "env_version": "v4", "long_prompt": True, "reset_target": False}


@dataclass(frozen=True)
class Options:
    """Flags of this script; those of `PUBLISHED` are filled from what the run recorded."""

    common: InferenceOptions = field(default_factory=InferenceOptions)
    # Task, if it is not the one that the run was trained on: other data of the same robot; of a converted checkpoint
    # that does not name it
    env_id: int | None = None
    # Returns that the agent is asked for, in units of reward; none = the run's, or the task's
    target_return: tuple[float, ...] = ()
    # Version of the Gymnasium environments; none = the run's (v4 for a converted checkpoint)
    env_version: protocol.Version | None = None
    # Episodes for every return asked for
    episodes: int = 10
    # Also act on the last K steps at every step (prompt K); none = as in the run (true for a converted checkpoint)
    long_prompt: Boolean | None = None
    # Ask for the target return again at every segment, as if nothing had been earned; none = as in the run (false for a
    # converted checkpoint)
    reset_target: Boolean | None = None
    # Also record so many episodes for every return asked for as MP4 files, into --pictures or the working directory
    video: int = 0

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if self.env_id is not None:
            task_of(self.env_id)
        protocol.check_episodes(episodes=self.episodes)
        at_least(0, video=self.video)
        at_most(protocol.MAX_EPISODES, video=self.video)

    @property
    def version(self) -> protocol.Version:
        """The environment's, of filled options."""
        assert self.env_version is not None
        return self.env_version

    @property
    def acting(self) -> dict[str, Any]:
        """What `play` and `Actor` take, of filled options."""
        return {
            "slide": self.common.slide,
            "reset_target": self.reset_target,
            "precision": self.common.precision,
        }


def trained_task(recorded: Mapping[str, Any]) -> Task | None:
    """The task that a run was trained on; that of a converted checkpoint is named in words, if at all."""
    if isinstance(recorded.get("env_id"), int):
        return task_of(recorded["env_id"])
    named = str(recorded.get("task", "")).lower().replace("_", "-").removesuffix("-v2")
    return next((task for task in TASKS if task.name == named), None)


@dataclass(frozen=True)
class Trained:
    """A checkpoint with what its run's directory says of it."""

    path: Path
    model: Agent
    task: Task

    @classmethod
    def load(cls, options: Options) -> "Trained":
        """Raises UserError: there is no such checkpoint, it is damaged, or it is of another robot."""
        run = resolve_checkpoint(options.common.given_checkpoint()).absolute().parent.parent
        recorded = options.common.recorded()
        trained = trained_task(recorded)
        task = trained if options.env_id is None else task_of(options.env_id)
        if task is None:
            raise UserError(
                f"{run / 'config.yaml'} names no env_id: this is no run of train_rate_mujoco_ca.py; of a converted "
                "checkpoint give --env_id"
            )
        if trained is not None and task.robot != trained.robot:
            raise UserError(f"--env_id {options.env_id} is {task.name}, but {run} was trained on {trained.name}")
        path, model = options.common.load(spec_of(task.robot))
        if not model.spec.is_normalised:
            raise UserError(
                f"{run / NORMALISATION}: there is no such file, and {path} does not hold by which statistics "
                "observations were normalised: without them the model cannot act. A published checkpoint gets them "
                "when it is converted, with --normalisation"
            )
        return cls(path, model, task)

    def play(self, target: float, options: Options, **changes: Any) -> dict[str, Episodes]:
        """Episodes with both prompts."""
        settings = {
            "episodes": options.episodes,
            "version": options.version,
            "long_prompt": options.long_prompt,
            "transform_memory": options.common.transform_memory,
        }
        arguments = settings | options.acting | changes
        return protocol.play_prompts(self.model, self.task.robot, target_return=target, **arguments)


def show(target: float, played: dict[str, Episodes], trained: Trained) -> dict[str, float]:
    """Print a line per prompt; returns the same figures."""
    results = protocol.metrics(played, trained.task.robot)
    for prefix in played:
        mean, std, length, score = (
            results[f"{prefix}{name}"] for name in ("return_MEAN", "return_STD", "length_MEAN", "episode_MEAN")
        )
        prompt = prefix.rstrip("_") or ("window" if trained.model.memory.slides else "1")
        print(f"{target:10g}{prompt:>8}{mean:12.1f}{std:10.1f}{length:10.1f}{score:12.1f}")
    return results


def draw(trained: Trained, played: dict[float, dict[str, Episodes]], options: Options) -> None:
    """Pictures and videos, where asked for."""
    if options.common.pictures is None and not options.video:
        return
    from MuJoCo.pictures import record_videos
    from RATE_model.plots import plot_returns

    folder = options.common.pictures or Path()
    if options.common.pictures is not None:
        lines: dict[str, dict[float, Episodes]] = {}
        for label, transform in memory_conditions(trained.model).items():
            for target, found in played.items():
                if transform != options.common.transform_memory:
                    found = trained.play(target, options, transform_memory=transform)
                for prefix, episodes in found.items():
                    line = f"{label}, prompt {prefix.rstrip('_') or 1}"
                    lines.setdefault(line, {})[target] = episodes
        robot = trained.task.robot
        references = {
            "random": robot.random_return,
            "D4RL's medium data": robot.medium_return,
            "expert": robot.expert_return,
        }
        title = f"{trained.task.name}, {options.episodes} episodes"
        path = plot_returns(lines, folder / "returns.png", title=title, references=references)
        print(f"pictures: {path}")
    for target in played if options.video else ():
        paths = record_videos(
            trained.model,
            trained.task.robot,
            options.video,
            folder,
            target_return=target,
            version=options.version,
            transform_memory=options.common.transform_memory,
            **options.acting,
        )
        print("videos: " + " ".join(map(str, paths)))


def evaluate(options: Options) -> dict[str, Any]:
    """Results by return asked for, of filled options; prints a table."""
    trained = Trained.load(options)
    notes = ", memory knocked out" * options.common.knock_out + ", target renewed" * bool(options.reset_target)
    where = trained.task.robot.environment_id(options.version)
    print(f"{trained.path}: {where}, {options.episodes} episodes{notes}")
    print(f"{'asked for':>10}{'prompt':>8}{'return':>12}{'std':>10}{'steps':>10}{'score':>12}")
    started = time.perf_counter()
    targets = options.target_return or (trained.task.target_return,)
    played = {target: trained.play(target, options) for target in targets}
    results = {f"{target:g}": show(target, episodes, trained) for target, episodes in played.items()}
    print(f"{time.perf_counter() - started:.1f} s")
    draw(trained, played, options)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python3 MuJoCo/inference_mujoco.py",
            description="Evaluate a checkpoint on HalfCheetah, Hopper or Walker2d.",
        )
        options = fill_from_run(options, PUBLISHED)
        results = evaluate(options)
        asked = {name: getattr(options, name) for name in ("env_version", "long_prompt", "reset_target")}
        options.common.write(episodes=options.episodes, **asked, results=results)


if __name__ == "__main__":
    main()
