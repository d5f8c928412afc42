"""Our own Atari data, from scripted players with various amounts of noise.

    python3 Atari/generate_dataset.py --game Breakout
    python3 Atari/generate_dataset.py --game Pong --transitions 500000 --mix 0 0.1 0.3 1 --workers 4
    python3 Atari/generate_dataset.py --game Breakout --replay /data/atari/

The file goes to Atari/Atari_data, where training finds it, or to --output; training then needs --data_path. With
--replay, the same episodes are also written as DQN-replay files. Repeat an interrupted command to continue it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from Atari.env import PUBLISHED_CAP
from Atari.experts import plans
from Atari.games import Game, ale_py
from Atari.games import game as game_of
from Atari.generate import FRAME_SHAPE, Recipe, generate
from RATE_model.cli.limits import MAX_EPISODE_STEPS, at_least, at_most, writable
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.data.dopamine import export_folder, export_replay
from RATE_model.data.parts import FileOptions
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.system.locks import ensure

SCRIPT = "python3 Atari/generate_dataset.py"
DATA_DIRECTORY = Path(__file__).resolve().parent / "Atari_data"

TRANSITIONS, PLANNED_TRANSITIONS = 100_000, 20_000
PLANNED_CAP = 2000  # decisions: a good planner hardly ever loses its last life
# Breakout's player always has noise. Without noise a paddle only rests where it should be, and a model that rests
# elsewhere by mistake never moves again.
MIXES = {"Breakout": (0.2, 0.3, 0.4, 0.5, 0.6), "Pong": (0.0, 0.05, 0.1, 0.2, 0.3, 1.0)}
DEFAULT_MIX = (0.0, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class GenerateOptions:
    """The content of our own data."""

    # Steps in the data. Training does not use an incomplete last episode. none = 100,000, or 20,000 for players that
    # plan, which are slow
    transitions: int | None = None
    # Noise levels of the player: its share of random actions; 1 is the random player. Episodes cycle through the
    # levels, so returns spread as they do over an agent's learning; none given = the game's own mix
    mix: tuple[float, ...] = ()
    # Probability, at every frame, of repeating the previous action; the plans of a planning player assume 0
    data_sticky: float = 0.0
    # Step limit per episode, in decisions of four frames; none = 7000, as in evaluations, or 2000 for players that plan
    episode_steps: int | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, transitions=self.transitions, episode_steps=self.episode_steps)
        at_most(MAX_EPISODE_STEPS, transitions=self.transitions, episode_steps=self.episode_steps)
        if not all(0 <= noise <= 1 for noise in self.mix):
            raise UserError(f"--mix {' '.join(f'{noise:g}' for noise in self.mix)}: must be numbers from 0 to 1")
        if not 0 <= self.data_sticky < 1:
            raise UserError(f"--data_sticky {self.data_sticky}: must be at least 0 and less than 1")

    def steps(self, game: Game) -> int:
        """Steps of the data."""
        return self.transitions or (PLANNED_TRANSITIONS if plans(game) else TRANSITIONS)

    def recipe(self, game: Game) -> Recipe:
        """What is played."""
        return Recipe(
            game=game.name,
            mix=self.mix or MIXES.get(game.name, DEFAULT_MIX),
            sticky=self.data_sticky,
            max_steps=self.episode_steps or (PLANNED_CAP if plans(game) else PUBLISHED_CAP),
        )


def dataset_path(game: Game, directory: Path | None = None, options: GenerateOptions | None = None) -> Path:
    """The file for these options; its name includes everything that its content depends on.

    Args:
        game: which.
        directory: of the file; None: Atari/Atari_data.
        options: None: the defaults.
    """
    options = options or GenerateOptions()
    chosen, default = options.recipe(game), GenerateOptions().recipe(game)
    parts = [game.name]
    if chosen.mix != default.mix:
        parts.append("mix" + "-".join(f"{noise:g}" for noise in chosen.mix))
    if chosen.sticky:
        parts.append(f"sticky{chosen.sticky:g}")
    if chosen.max_steps != default.max_steps:
        parts.append(f"cap{chosen.max_steps}")
    return (directory or DATA_DIRECTORY) / f"{'_'.join(parts)}_n{options.steps(game)}.h5"


def ensure_own_data(game: Game, directory: Path | None = None, transitions: int | None = None) -> Path:
    """The file that the script makes; makes it if it is missing.

    Args:
        game, directory: see `dataset_path`.
        transitions: steps in it; None: as many as by default.

    Raises:
        UserError: it cannot be written, or the package ale-py is missing.
    """
    options = GenerateOptions(transitions=transitions)
    path = dataset_path(game, directory, options)

    def make() -> None:
        ale_py()  # it may not be installed
        print(f"Making {options.steps(game)} steps of {game.name}: {path}", flush=True)
        generate(options.recipe(game), options.steps(game), path)

    ensure(path, make)
    return path


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    # Breakout, Pong, Qbert, Seaquest, or any other ALE game, in CamelCase
    game: str = "Breakout"
    generate: GenerateOptions = field(default_factory=GenerateOptions)
    file: FileOptions = field(default_factory=FileOptions)
    # Folder for the file; none = Atari/Atari_data
    data_dir: Path | None = None
    # Also write DQN-replay files to {game}/1/replay_logs in this folder. An existing .h5 file is reused; --overwrite
    # makes both again
    replay: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for an unknown game or a value out of range."""
        game_of(self.game)
        writable(data_dir=self.data_dir, replay=self.replay)

    @property
    def path(self) -> Path:
        """The file to make."""
        return self.file.output or dataset_path(game_of(self.game), self.data_dir, self.generate)


def describe(path: Path) -> str:
    """A file's content, and how its returns depend on the noise."""
    with TrajectoryFile(path, observation_shape=FRAME_SHAPE, observation_dtype="uint8") as file:
        made, lengths = file.attributes, file.lengths
    finished = "no complete one"
    if "return_mean" in made:
        finished = f"return of complete ones {made['return_mean']:.1f}, standard deviation {made['return_std']:.1f}"
    lines = [
        f"{path}: {made['num_steps']} steps in {made['num_episodes']} episodes of {lengths.min()} to {lengths.max()}, "
        f"{finished}, {path.stat().st_size / 1e6:.1f} MB"
    ]
    for level in made.get("levels", []):
        lines.append(
            f"  noise {level['noise']:g}: {level['episodes']} episodes, "
            f"return {level['return_mean']:.1f} ({level['return_min']:g} to {level['return_max']:g})"
        )
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Make the requested file (flags: None: the command line); see the module."""
    with exit_on_user_error():
        description = "Make Atari data with scripted players."
        options = parse_options(Options, argv=argv, prog=SCRIPT, description=description)
        game, path, overwrite = game_of(options.game), options.path, options.file.overwrite
        if options.replay is not None:  # it may exist already
            export_folder(options.replay, game.name, overwrite=overwrite)
        if options.replay is None or overwrite or not path.exists():
            recipe, steps = options.generate.recipe(game), options.generate.steps(game)
            generate(recipe, steps, path, overwrite=overwrite, workers=options.file.workers)
        print(describe(path))
        if options.replay is not None:
            print(export_replay(path, options.replay, game=game.name, overwrite=overwrite))


if __name__ == "__main__":
    main()
