"""Evaluate a checkpoint on an Atari game.

    python3 Atari/inference_atari.py --checkpoint RUN_DIR --target_return 90 180

Prints points, length and, where a human player was measured, the gamer-normalised score for every return asked for.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from Atari import evaluate as protocol
from Atari.dataset import trained_on_clipped_rewards
from Atari.env import PUBLISHED_CAP, Opening
from Atari.games import Game, ale_py
from Atari.games import game as game_of
from Atari.spec import spec_of
from RATE_model.acting.controls import memory_conditions
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.inference import InferenceOptions, fill_from_run
from RATE_model.cli.limits import MAX_SEED, MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.loading import load_model
from RATE_model.training.checkpoints import resolve_checkpoint

# What is asked where no run tells; no target return: the game's.
PUBLISHED = {
    "target_return": (),
    "use_argmax": False,
    "sticky": 0.0,
    "max_steps": PUBLISHED_CAP,
    "opening": "published",
}
# What runs did before they could record it.
BEFORE = {"opening": "black"}


@dataclass(frozen=True)
class Options:
    """Flags of this script; those of `PUBLISHED` are filled from what the run recorded."""

    common: InferenceOptions = field(default_factory=InferenceOptions)
    # Game, where the run does not name it: of a converted checkpoint; none = the run's
    game: str | None = None
    # Returns that the agent is asked for, in points as its data counts them; none = the run's, or the game's
    target_return: tuple[float, ...] = ()
    # Episodes for every return asked for
    episodes: int = 10
    # Take the most probable action, or draw it; none = as the run evaluated itself, drawn (published) if nothing tells
    use_argmax: Boolean | None = None
    # Seed of drawn actions
    seed: int = 0
    # Probability, at every frame, that the action before goes on; none = the run's, or 0
    sticky: float | None = None
    # Decisions of an episode at most; none = the run's, or 7000
    max_steps: int | None = None
    # What is seen where an episode or a ball begins: black before the first picture, or as published, the first picture
    # repeated; none = as in the run (black in those that do not tell), published for a converted checkpoint
    opening: Opening | None = None
    # Also record so many episodes for every return asked for as MP4 files, into --pictures or the working directory
    video: int = 0

    def validate(self) -> None:
        """Raise a UserError for an unknown game or a value out of range."""
        if self.game is not None:
            game_of(self.game)
        protocol.check_episodes(episodes=self.episodes)
        at_least(0, video=self.video, seed=self.seed)
        at_least(1, max_steps=self.max_steps)
        at_most(MAX_STEPS, max_steps=self.max_steps)
        at_most(MAX_SEED, seed=self.seed)
        at_most(protocol.MAX_EPISODES, video=self.video)
        if self.sticky is not None and not 0 <= self.sticky < 1:
            raise UserError(f"--sticky {self.sticky}: must be at least 0 and below 1")

    @property
    def acting(self) -> dict[str, Any]:
        """What `play` and `record_videos` take."""
        return {
            "greedy": self.use_argmax,
            "seed": self.seed,
            "sticky": self.sticky,
            "max_steps": self.max_steps,
            "opening": self.opening,
            "slide": self.common.slide,
            "precision": self.common.precision,
        }


@dataclass(frozen=True)
class Trained:
    """A checkpoint with the game that it plays."""

    path: Path
    model: Agent
    game: Game
    clip_rewards: bool  # as its data's

    @classmethod
    def load(cls, options: Options) -> "Trained":
        """Raises UserError: there is no such checkpoint, it is damaged, or it plays no Atari game, or another."""
        checkpoint = resolve_checkpoint(options.common.given_checkpoint())
        run = checkpoint.absolute().parent.parent
        recorded = options.common.recorded().get("game")
        name = recorded if options.game is None else options.game
        if not isinstance(name, str):
            config = run / "config.yaml"
            raise UserError(f"{config} names no game: this is no run of train_rate_atari.py; or give --game")
        game = game_of(name)
        if isinstance(recorded, str) and game != game_of(recorded):
            raise UserError(f"--game {name}: {run} was trained on {recorded}")
        made = load_model(checkpoint).spec  # what the run's flags decided of it was saved with the model
        path, model = options.common.load(
            spec_of(game, return_scale=made.return_scale, conv_channels=made.conv_channels)
        )
        return cls(path, model, game, trained_on_clipped_rewards(run))

    def play(self, target: float, options: Options, **changes: Any) -> Episodes:
        """Episodes that are asked for a return."""
        arguments = {"episodes": options.episodes, "transform_memory": options.common.transform_memory}
        arguments["clip_rewards"] = self.clip_rewards
        return protocol.play(self.model, self.game, target_return=target, **arguments | options.acting | changes)


def show(target: float, played: Episodes, game: Game) -> dict[str, float]:
    """Print a line; returns the same figures."""
    result = protocol.metrics(played, game)
    score = f"{result['normalised_score']:12.1f}" if "normalised_score" in result else ""
    print(f"{target:10g}{result['eval_return']:12.1f}{result['eval_std']:10.1f}{result['eval_length']:10.1f}{score}")
    return result


def draw(trained: Trained, played: dict[float, Episodes], options: Options) -> None:
    """Pictures and videos, where asked for."""
    if options.common.pictures is None and not options.video:
        return
    from Atari.pictures import record_videos
    from RATE_model.plots import plot_returns

    folder = options.common.pictures or Path()
    if options.common.pictures is not None:
        lines: dict[str, dict[float, Episodes]] = {}
        for label, transform in memory_conditions(trained.model).items():
            same = transform == options.common.transform_memory
            lines[label] = {
                target: found if same else trained.play(target, options, transform_memory=transform)
                for target, found in played.items()
            }
        title = f"{trained.game.name}, {options.episodes} episodes"
        references = {"random": trained.game.random_score, "human": trained.game.human_score}
        references = {label: value for label, value in references.items() if value is not None}
        print(f"pictures: {plot_returns(lines, folder / 'returns.png', title=title, references=references)}")
    for target in played if options.video else ():
        paths = record_videos(
            trained.model,
            trained.game,
            options.video,
            folder,
            target_return=target,
            clip_rewards=trained.clip_rewards,
            transform_memory=options.common.transform_memory,
            **options.acting,
        )
        print("videos: " + " ".join(map(str, paths)))


def evaluate(options: Options) -> dict[str, Any]:
    """Results by return asked for; prints a table."""
    ale_py()  # it may not be installed
    trained = Trained.load(options)
    notes = ", memory knocked out" * options.common.knock_out + ", most probable actions" * bool(options.use_argmax)
    print(f"{trained.path}: {trained.game.name}, {options.episodes} episodes{notes}")
    print(f"{'asked for':>10}{'points':>12}{'std':>10}{'steps':>10}{'score':>12}")
    started = time.perf_counter()
    targets = options.target_return or (protocol.target_of(trained.game, None, "--target_return"),)
    played = {target: trained.play(target, options) for target in targets}
    results = {f"{target:g}": show(target, episodes, trained.game) for target, episodes in played.items()}
    print(f"{time.perf_counter() - started:.1f} s")
    draw(trained, played, options)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python3 Atari/inference_atari.py",
            description="Evaluate a checkpoint on an Atari game.",
        )
        options = fill_from_run(options, PUBLISHED, before=BEFORE)
        options.common.write(
            episodes=options.episodes,
            use_argmax=options.use_argmax,
            sticky=options.sticky,
            results=evaluate(options),
        )


if __name__ == "__main__":
    main()
