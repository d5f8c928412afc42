"""Memory Maze as training, inference and reports see it: flags, data, mazes, evaluation and pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import gymnasium
import numpy as np

from MemoryMaze.MemoryMaze_src import evaluate as protocol
from MemoryMaze.MemoryMaze_src.dataset import DATA, DataOptions, check_windows, load_windows
from MemoryMaze.MemoryMaze_src.env import (
    DEFAULT_SIZE,
    EPISODE_STEPS,
    MIRRORED,
    SEED_LIMIT,
    SPEC,
    VIEWS,
    MemoryMazeEnv,
    MemoryMazeVectorEnv,
    Size,
)
from MemoryMaze.MemoryMaze_src.generate import FIRST_DATA_SEED
from MemoryMaze.MemoryMaze_src.graphics import check_installed
from MemoryMaze.MemoryMaze_src.privileged import SAME_IN_THE_MIRROR, SIGNS_IN_THE_MIRROR
from RATE_model.acting.evaluation import Acting
from RATE_model.acting.rollout import Episodes, mean_and_error, rollout_alternating
from RATE_model.acting.video import with_caption
from RATE_model.cli.limits import Count, Return, Steps
from RATE_model.cli.options import Boolean, changeable
from RATE_model.cli.settings import ImageExperimentConfig, PlayOptions, SegmentOptions
from RATE_model.data.mirror import Mirror
from RATE_model.environments.contract import Case, Environment, Evaluation, TrainingData
from RATE_model.system.processes import available_cores


@dataclass(frozen=True)
class Rules(PlayOptions):
    """Rules that training and inference share."""

    # Lower limit of the return-to-go if the agent exceeds its target return. In the data it is never below 0; none = no
    # limit (published)
    rtg_floor: float | None = None
    # Step limit of evaluated episodes; none = the environment's own: 1000 in 9x9, 2000, 3000 and 4000 in larger mazes
    episode_timeout: Steps | None = 1000


@dataclass(frozen=True)
class Mazes(Rules):
    """The mazes to play."""

    # Size of the mazes: 9, 11, 13 or 15 cells
    size: Size = DEFAULT_SIZE
    # Also play the same mazes with a random player and with the experts that make the data
    players: Boolean = False
    # Processes that draw the mazes (at least two if there are two mazes) and that run other players; none = one per
    # core
    workers: Count | None = None


@dataclass(frozen=True)
class Task(Rules, SegmentOptions):
    """Segments and evaluation."""

    # Show every window as it is or mirrored left to right, with equal probability; doubles the data
    mirror: Boolean = False
    # Target return
    target_return: Return = protocol.TARGET_RETURN
    # Episodes per evaluation, with seeds spread over 0 to 99; 5 are the published 0, 20, ..., 80
    eval_episodes: int = changeable(protocol.PUBLISHED_EPISODES)


@dataclass(frozen=True)
class Config(ImageExperimentConfig):
    """All flags of the train script."""

    data: DataOptions = field(default_factory=DataOptions)
    task: Task = field(default_factory=Task)

    def validate(self) -> None:
        """Raise a UserError for invalid sizes, or if the episodes to be made are shorter than a window."""
        super().validate()
        check_windows(self.data, self.segments * self.context_length)


class MemoryMaze(Environment):
    """Balls in a maze that stays the same over an episode, one of them the target at a time."""

    name = "Memory Maze"
    train_script = "MemoryMaze/MemoryMaze_src/train_mem_maze.py"
    inference_script = "MemoryMaze/MemoryMaze_src/inference_mem_maze.py"
    config = Config
    maker = DATA
    play_options = Mazes
    episode_counts = range(1, protocol.MAX_EPISODES + 1)
    data_seeds = range(FIRST_DATA_SEED, SEED_LIMIT)
    bookkeeping = ("random", "player")
    check_packages = staticmethod(check_installed)

    def load(self, config: Config) -> TrainingData:
        """Windows as long as a trajectory. There is one stage, with all segments."""
        data, segments = config.data, config.segments
        size = segments * config.context_length
        sides = load_windows(self.files(config), size=size, windows=data.windows, learn=data.learn)
        transform = Mirror(MIRRORED, SAME_IN_THE_MIRROR, SIGNS_IN_THE_MIRROR) if config.task.mirror else None
        spec = replace(SPEC, conv_channels=config.image.conv_channels)
        return TrainingData.of_one_stage(sides, segments, spec, transform=transform)

    def make(self, case: Case, options: Mazes, *, render_mode: str | None = None) -> MemoryMazeEnv:
        """One maze."""
        return MemoryMazeEnv(options.size, max_steps=options.episode_timeout, render_mode=render_mode)

    def vector(self, cases: np.ndarray, options: Mazes) -> MemoryMazeVectorEnv:
        """Mazes in separate processes."""
        steps, workers = options.episode_timeout, options.workers
        return MemoryMazeVectorEnv(len(cases), options.size, max_steps=steps, workers=workers)

    def seeds(self, episodes: int) -> np.ndarray:
        """Up to 100, spread over 0 to 99."""
        return protocol.evaluation_seeds(episodes)

    def horizons(self, case: Case, options: Mazes) -> tuple[int, ...]:
        """From seeing a ball to its being the target, as published; 11x11 and 13x13 have no published figure."""
        shortest, steps = protocol.SHORTEST_HORIZONS.get(options.size), options.episode_timeout
        longest = EPISODE_STEPS[options.size] if steps is None else steps
        return () if shortest is None or longest < shortest else (shortest, longest)

    def chance(self, case: Case, evaluation: Evaluation) -> float:
        """A random player's return; playing takes a minute."""
        return float(_returns("random", evaluation).mean())

    def acting(self, evaluation: Evaluation, target: float) -> Acting:
        """Returns-to-go stop at a floor."""
        return replace(super().acting(evaluation, target), rtg_floor=evaluation.options.rtg_floor)

    def play(self, evaluation: Evaluation, acting: Acting, *, twins: bool = False) -> dict[Case, Episodes]:
        """All episodes at once: half of the mazes are drawn while the agent acts in the others."""
        if twins:
            return super().play(evaluation, acting, twins=twins)
        halves = np.array_split(self.seeds(evaluation.episodes), min(2, evaluation.episodes))
        options: Mazes = evaluation.options
        processes = max(1, (options.workers or available_cores()) // len(halves))
        mazes = [self.vector(seeds, replace(options, workers=processes)) for seeds in halves]
        acting = replace(acting, seed=len(halves) * acting.seed)
        actors = [acting.actor(evaluation.agent, len(seeds), first=half) for half, seeds in enumerate(halves)]
        steps = int(mazes[0].max_steps[0])
        return {None: rollout_alternating(actors, mazes, seeds=halves, max_steps=steps, description=self.name)}

    def metrics(
        self, played: Mapping[Case, Episodes], evaluation: Evaluation, config: Config, *, final: bool
    ) -> dict[str, float]:
        """Returns under the published names."""
        return protocol.metrics(played[None], target_return=evaluation.targets[0])

    def headlines(self, config: Config) -> Mapping[str, str]:
        """The mean return."""
        return {f"ReturnsMean_{config.task.target_return:g}": f"balls, {config.task.eval_episodes} episodes"}

    def figures(self, case: Case, episodes: Episodes, evaluation: Evaluation) -> dict[str, float]:
        """Balls found."""
        return protocol.figures(episodes.returns)

    def description(self, evaluation: Evaluation) -> str:
        """The mazes, and how actions are chosen."""
        actions = "the most probable actions" if evaluation.options.use_argmax else "sampled actions"
        return f"in mazes of {evaluation.options.size}x{evaluation.options.size} cells, {actions}"

    def others(self, evaluation: Evaluation) -> dict[str, dict[str, float]]:
        """Players without a model, if enabled."""
        return {player: protocol.figures(returns) for player, returns in _players(evaluation).items()}

    def references(self, evaluation: Evaluation) -> dict[str, float]:
        """The mean returns of those players."""
        return {player: mean_and_error(returns)[0] for player, returns in _players(evaluation).items()}

    def frame(self, environment: gymnasium.Env, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
        """The agent's view and the maze from above, framed in the colour of the target ball."""
        assert isinstance(environment, MemoryMazeEnv)
        views = [picture for view in VIEWS if (picture := environment.render(view)) is not None]
        return with_caption(np.concatenate(views, axis=1), *caption)


def _players(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Returns (E,) by player."""
    return {player: _returns(player, evaluation) for player in protocol.PLAYERS} if evaluation.options.players else {}


def _returns(player: str, evaluation: Evaluation) -> np.ndarray:
    """Returns (E,) of a player in the same mazes."""
    options: Mazes = evaluation.options
    how = {"size": options.size, "steps": options.episode_timeout, "workers": options.workers}
    return protocol.player_returns(player, episodes=evaluation.episodes, **how)


ENVIRONMENT = MemoryMaze()
