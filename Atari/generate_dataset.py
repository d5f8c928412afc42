"""Our own Atari data, from scripted players with various amounts of noise.

    python3 Atari/generate_dataset.py --game Breakout
    python3 Atari/generate_dataset.py --game Pong --transitions 500000 --mix 0 0.1 0.3 1 --workers 4
    python3 Atari/generate_dataset.py --game Breakout --replay /data/atari/

The file goes to Atari/Atari_data, where training finds it, or to --output; training then needs --data_path. With
--replay, the same episodes are also written as DQN-replay files. Repeat an interrupted command to continue it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from Atari.env import ENV_ID, PUBLISHED_CAP
from Atari.experts import EXPERT_VERSION, plans
from Atari.games import Game, GameName, ale_py
from Atari.games import game as game_of
from Atari.generate import Recipe, described, generate
from RATE_model.cli.limits import EpisodeSteps, Range, Ranged, Share, writable
from RATE_model.cli.options import exit_on_user_error
from RATE_model.data.dopamine import export_folder, export_replay
from RATE_model.data.maker import DataMaker, exact
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError

TRANSITIONS, PLANNED_TRANSITIONS = 100_000, 20_000
PLANNED_CAP = 2000  # decisions: a good planner hardly ever loses its last life
# Breakout's player always has noise. Without noise a paddle only rests where it should be, and a model that rests
# elsewhere by mistake never moves again.
MIXES = {"Breakout": (0.2, 0.3, 0.4, 0.5, 0.6), "Pong": (0.0, 0.05, 0.1, 0.2, 0.3, 1.0)}
DEFAULT_MIX = (0.0, 0.1, 0.3, 1.0)
# Attributes of a file, and the flags that set them.
_FLAGS = {
    "game": "--game",
    "mix": "--mix",
    "sticky": "--data_sticky",
    "max_steps": "--episode_steps",
    "num_steps": "--transitions",
}


@dataclass(frozen=True)
class GenerateOptions(Ranged):
    """What our own data is made of, and where it goes."""

    # Breakout, Pong, Qbert, Seaquest, or any other ALE game, in CamelCase
    game: GameName = "Breakout"
    # Steps in the data. Training does not use an incomplete last episode. none = 100,000, or 20,000 for players that
    # plan, which are slow
    transitions: EpisodeSteps | None = None
    # Noise levels of the player: its share of random actions; 1 is the random player. Episodes cycle through the
    # levels, so returns spread as they do over an agent's learning; none given = the game's own mix
    mix: Annotated[tuple[float, ...], Range(0, 1)] = ()
    # Probability, at every frame, of repeating the previous action; the plans of a planning player assume 0
    data_sticky: Share = 0.0
    # Step limit per episode, in decisions of four frames; none = 7000, as in evaluations, or 2000 for players that plan
    episode_steps: EpisodeSteps | None = None
    # Folder for the file; none = Atari/Atari_data
    data_dir: Path | None = None
    # Also write DQN-replay files to {game}/1/replay_logs in this folder. An existing .h5 file made with the same flags
    # is reused; --overwrite makes both again
    replay: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range, an unknown game, or a folder that cannot be written."""
        super().validate()
        writable(data_dir=self.data_dir, replay=self.replay)

    @property
    def played(self) -> Game:
        """The game."""
        return game_of(self.game)

    @property
    def steps(self) -> int:
        """Steps of the data."""
        return self.transitions or (PLANNED_TRANSITIONS if plans(self.played) else TRANSITIONS)

    @property
    def recipe(self) -> Recipe:
        """What is played."""
        return Recipe(
            game=self.played.name,
            mix=self.mix or MIXES.get(self.played.name, DEFAULT_MIX),
            sticky=self.data_sticky,
            max_steps=self.episode_steps or (PLANNED_CAP if plans(self.played) else PUBLISHED_CAP),
        )


class AtariData(DataMaker[GenerateOptions]):
    """Episodes of a game's scripted player."""

    name = "Atari"
    environment = ENV_ID
    script = "Atari/generate_dataset.py"
    directory = Path(__file__).resolve().parent / "Atari_data"
    options = GenerateOptions

    def file_name(self, options: GenerateOptions) -> str:
        """Named by the game and by what differs from its usual data."""
        chosen, usual = options.recipe, GenerateOptions(options.game).recipe
        parts = [chosen.game]
        if chosen.mix != usual.mix:
            parts.append("mix" + "-".join(map(exact, chosen.mix)))
        if chosen.sticky:
            parts.append(f"sticky{exact(chosen.sticky)}")
        if chosen.max_steps != usual.max_steps:
            parts.append(f"cap{chosen.max_steps}")
        return f"{'_'.join(parts)}_n{options.steps}.h5"

    def make(
        self, options: GenerateOptions, path: Path, *, overwrite: bool = False, workers: int | None = None
    ) -> None:
        """See `generate`."""
        generate(options.recipe, options.steps, path, overwrite=overwrite, workers=workers)

    def source(self, options: GenerateOptions) -> None:
        """These options only make data."""

    def versions(self) -> Mapping[str, int]:
        """Version of the scripted players."""
        return {"expert_version": EXPERT_VERSION}

    def ensure(self, options: GenerateOptions) -> Path:
        """As in every environment; a missing package is reported first."""
        if self.is_missing(options):
            ale_py()
        return super().ensure(options)

    def amount(self, options: GenerateOptions) -> str:
        """The number of steps."""
        return f"{options.steps} steps of {options.played.name}"

    def note(self, made: Mapping[str, Any], episodes: int) -> str:
        """How returns depend on the noise."""
        shown = "\n  noise {noise:g}: {episodes} episodes, return {return_mean:.1f} ({return_min:g} to {return_max:g})"
        return "".join(shown.format(**level) for level in made.get("levels", []))

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Make what the flags (None: of the command line) ask for; see the module."""
        with exit_on_user_error():
            flags = self.read_flags(argv)
            options, file = flags.data, flags.file
            game, path, overwrite = options.played, file.output or self.path(options), file.overwrite
            if options.replay is not None:  # it may be there already
                export_folder(options.replay, game.name, overwrite=overwrite)
            if options.replay is not None and not overwrite and path.exists():
                check_made_with(path, options)
            else:
                self.make(options, path, overwrite=overwrite, workers=file.workers)
            print(self.describe(path))
            if options.replay is not None:
                print(export_replay(path, options.replay, game=game.name, overwrite=overwrite))


def check_made_with(path: Path, options: GenerateOptions) -> None:
    """Raise a `UserError` unless a file contains what these options make."""
    with TrajectoryFile(path) as file:
        made = file.attributes
    for name, value in {**described(options.recipe), "num_steps": options.steps}.items():
        if (found := made.get(name, "unknown")) != value:
            raise UserError(
                f"'{path}': was made with {_FLAGS.get(name, name)} {_typed(found)}, not {_typed(value)}; name another "
                "file with --output, or add --overwrite true to replace this one"
            )


def _typed(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


DATA = AtariData()
main = DATA.main

if __name__ == "__main__":
    main()
