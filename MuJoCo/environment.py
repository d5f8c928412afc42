"""MuJoCo as training, inference and reports see it: flags, data, robots, prompts, evaluation and pictures.

The published protocol plays every model twice, with two prompts:

    prompt 1    the steps of the current segment; a segment starts with one step and the memory
    prompt K    the last K steps, across segments; memory is still passed on every K steps

A Decision Transformer slides its own window of N K steps and is played once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from MuJoCo import evaluate as protocol
from MuJoCo import pictures
from MuJoCo.dataset import DataOptions, load_data, spec_of
from MuJoCo.tasks import TASKS, Robot, TaskNumber, Version, make_environment, task_of
from MuJoCo.tasks import Task as RobotTask
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.limits import Return
from RATE_model.cli.options import Boolean
from RATE_model.cli.settings import ExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.environments.contract import Environment, Evaluation, TrainingData
from RATE_model.errors import UserError
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import NORMALISATION, run_of


@dataclass(frozen=True)
class Simulation(PlayOptions):
    """Rules that training and inference share."""

    # Version of the Gymnasium environments; D4RL's scores refer to the dynamics of v4
    env_version: Version = "v4"
    # Also play with prompt K, where each action sees the last K steps; prompt 1 sees the current segment only
    long_prompt: Boolean = True


@dataclass(frozen=True)
class Play(Simulation):
    """The robot, and what it is shown."""

    # Task to play, if not the run's own: other data of the same robot. Needed for converted checkpoints that do not
    # name theirs
    env_id: TaskNumber | None = None

    @property
    def robot(self) -> Robot:
        """The robot; requires a known task."""
        assert self.env_id is not None, "seen by `load_agent`"
        return task_of(self.env_id).robot


@dataclass(frozen=True)
class Task(Simulation, SegmentOptions):
    """Robot and data, segments, and evaluation."""

    # Robot and data: 0 halfcheetah-medium ... 11 hopper-medium-expert, see MuJoCo/README.md
    env_id: TaskNumber = 0
    # Target return, in units of reward; none = the task's
    target_return: Return | None = None


@dataclass(frozen=True)
class Config(ExperimentConfig):
    """All flags of the train script."""

    data: DataOptions = field(default_factory=DataOptions)
    task: Task = field(default_factory=Task)

    @property
    def pad(self) -> str:
        """The side on which windows are padded."""
        return self.data.pad


class MuJoCo(Environment):
    """HalfCheetah, Hopper and Walker2d with D4RL's data or our own."""

    name = "MuJoCo"
    train_script = "MuJoCo/train_rate_mujoco_ca.py"
    inference_script = "MuJoCo/inference_mujoco.py"
    config = Config
    play_options = Play
    before = {"windows": "every"}
    # From the published script
    aliases = {"num_mem_tokens": "nmt"}
    axis = "prompt"
    data_seeds = range(2**31)
    first_seed = 2**31
    curves = ("train_loss", "grad_norm", "return_MEAN")

    def spec(self, flags: Mapping[str, Any]) -> EnvironmentSpec:
        """The robot's observations and actions."""
        return spec_of(_task(flags).robot)

    def load(self, config: Config) -> TrainingData:
        """Windows that end at every step; observations are normalised by the data's statistics."""
        data_task, segments = task_of(config.task.env_id), config.segments
        data = load_data(data_task, config.data, size=segments * config.context_length)
        sides, spec = (data.training, data.validation), spec_of(data_task.robot, data.file.statistics)
        return TrainingData.of_one_stage(sides, segments, spec)

    def name_parts(self, config: Config) -> tuple[Sequence[object], Sequence[str]]:
        """The run's name includes the task."""
        return (task_of(config.task.env_id).name, *config.model.name_parts), ("env_id",)

    def check(self, config: Config) -> None:
        """Check that MuJoCo is installed if the run acts."""
        task = config.task
        if task.online_inference or task.last_inference:
            make_environment(task_of(task.env_id).robot, task.env_version).close()

    def make(self, case: object, options: Play, *, render_mode: str | None = None) -> gymnasium.Env:
        """One robot, of at most 1000 steps."""
        rendering = {} if render_mode is None else pictures.rendering(render_mode)
        return make_environment(options.robot, options.env_version, **rendering)

    def recorded(self, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Add the task's number; converted checkpoints have at most its name."""
        named = str(flags.get("task", "")).lower().replace("_", "-").removesuffix("-v2")
        numbers = {task.name: number for number, task in enumerate(TASKS)}
        return {"env_id": numbers[named], **flags} if named in numbers else dict(flags)

    def load_agent(
        self, checkpoint: Path, recorded: Mapping[str, Any], asked: Mapping[str, Any], *, device: torch.device | str
    ) -> Agent:
        """An agent for the requested robot, with observation statistics."""
        run = run_of(checkpoint.absolute())
        if recorded.get("env_id") is not None:
            trained, task = _task(recorded), _task({**recorded, **asked})
            if task.robot != trained.robot:
                raise UserError(f"--env_id {asked['env_id']} is {task.name}, but {run} was trained on {trained.name}")
        elif asked.get("env_id") is None:
            raise UserError(
                f"{run / 'config.yaml'} does not name an env_id; give a run of train_rate_mujoco_ca.py, or "
                "--env_id for a converted checkpoint"
            )
        agent = super().load_agent(checkpoint, recorded, asked, device=device)
        if not agent.spec.is_normalised:
            raise UserError(
                f"{run / NORMALISATION}: there is no such file, and {checkpoint} has no statistics to normalise "
                "observations, without which the model cannot act; convert published checkpoints with --normalisation"
            )
        return agent

    def target_returns(self, flags: Mapping[str, Any]) -> tuple[float, ...]:
        """The target return of training, or the task's."""
        given = flags.get("target_return")
        return (_task(flags).target_return if given is None else float(given),)

    def played_cases(self, evaluation: Evaluation) -> Sequence[str]:
        """Prompt 1 and, if requested, prompt K; a single case if the agent has its own window."""
        memory = evaluation.agent.memory
        if memory.slides:
            return ("window",)
        return ("1", f"{memory.segment}") if evaluation.options.long_prompt and memory.can_slide else ("1",)

    def play(self, evaluation: Evaluation, acting: Acting, *, twins: bool = False) -> dict[str, Episodes]:
        """Episodes by prompt."""
        played = {}
        for number, prompt in enumerate(self.played_cases(evaluation)):
            how = replace(acting, window=True) if number else acting
            (played[prompt],) = super().play(evaluation, how, twins=twins).values()
        return played

    def metrics(
        self, played: Mapping[str, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Prompt 1's metrics, prompt K's with the prefix {K}_, and the target return."""
        prefixes = ["", *(f"{prompt}_" for prompt in [*played][1:])]
        asked = {"target_return": evaluation.targets[0]} | ({"reset_target": True} if config.task.reset_target else {})
        found = dict(zip(prefixes, played.values(), strict=True))
        return protocol.metrics(found, evaluation.options.robot) | asked

    def headlines(self, config: Config) -> Mapping[str, str]:
        """The return and D4RL's score."""
        return {"return_MEAN": "", "return_SEM": "standard error", "episode_MEAN": "normalised score"}

    def figures(self, case: str, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """Returns, lengths and scores, without the prefix of a prompt."""
        return protocol.metrics({"": episodes}, evaluation.options.robot)

    def description(self, evaluation: Evaluation) -> str:
        """The task and its robot."""
        options: Play = evaluation.options
        reset = ", target reset at every segment" * options.reset_target
        return f"{_task({'env_id': options.env_id}).name}, {options.robot.environment_id(options.env_version)}{reset}"

    def references(self, evaluation: Evaluation) -> dict[str, float]:
        """The reference returns of D4RL's scores, and the mean of its medium data."""
        robot: Robot = evaluation.options.robot
        return {"random": robot.random_return, "D4RL's medium data": robot.medium_return, "expert": robot.expert_return}

    def frame(self, environment: gymnasium.Env, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
        """The robot, from a camera that follows it. Raises UserError if OpenGL is missing or broken."""
        try:
            return super().frame(environment, observation, caption)
        except UserError:
            raise
        except Exception as error:  # its type depends on where OpenGL fails
            raise pictures.cannot_draw(error) from error


def _task(flags: Mapping[str, Any]) -> RobotTask:
    """The task in a run's flags, or the default one."""
    return task_of(flags.get("env_id", Task.env_id))


ENVIRONMENT = MuJoCo()
