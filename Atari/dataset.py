"""Atari trajectories for training: where they come from, and loading them as windows.

Training uses the first of these that exists:

    --data_path     a trajectory file (.h5), or a folder with DQN-replay files (see `RATE_model.data.dopamine`)
    atari: data:    the same, in wandb_config.yaml
    our own         made by Atari/generate_dataset.py; training makes it if it is missing

DQN-replay files are converted once; later runs open the converted file.

Windows of L = segments x context_length steps begin at every step of an episode that has L steps left, and never cross
its end. A shorter episode is one window, padded after its last step. Returns-to-go are undiscounted and run to the end
of the episode. Frames are stored, loaded and moved to the device once; the four frames of an observation are combined,
as a view, only where they are encoded (`RATE_model.data.frames.FrameStack`).
"""

from __future__ import annotations

import json
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from Atari.env import FRAME_STACK
from Atari.games import Game, GameName
from Atari.games import game as game_of
from Atari.generate_dataset import DATA, GenerateOptions
from RATE_model.cli.limits import Range, Ranged
from RATE_model.cli.local_settings import configured_folder
from RATE_model.cli.options import changeable
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.dopamine import CLIPPED, FRAME_SHAPE, Selection, conversion_path, convert, find_replay_logs
from RATE_model.data.maker import split_datasets
from RATE_model.data.selection import strided_or_whole
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_text

TRAINING_FRACTION = 0.9
REWARDS_FILE = "rewards.json"  # in a run: whether its data's rewards are clipped


@dataclass(frozen=True)
class DataOptions(Ranged):
    """Which trajectories to train on."""

    # Breakout, Qbert, Seaquest, Pong, or any other game of the Arcade Learning Environment
    game: GameName = "Breakout"
    # Data: an .h5 file, or a folder with DQN-replay files ({Game}/1/replay_logs in it); none = `atari: data:` of
    # wandb_config.yaml, or else our own data, made if missing
    data_path: Path | None = changeable(None)
    # Folder for data files; none = Atari/Atari_data
    data_dir: Path | None = changeable(None)
    # Load all frames if they fit into this many GiB; otherwise read them from disk window by window
    memory_gib: Annotated[float, Range(0)] = changeable(4.0)
    replay: Selection = field(default_factory=Selection)

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a `UserError` for a typed flag without effect on the data that is used."""
        place, names = self.given[0] if self.given else None, typed & vars(self.replay).keys()
        if place is None:
            names, used = names - {"transitions"}, "the data is our own"
        elif place.is_file() and place.suffix != ".gz":  # part of DQN-replay data is reported later
            used = f"'{place}' is used as it is"
        else:
            return
        for name in sorted(names):
            raise UserError(
                f"--{name} {getattr(self.replay, name)}: only applies to DQN-replay files, but {used}; name their "
                "folder with --data_path, or leave this out"
            )

    @property
    def given(self) -> tuple[Path, str] | None:
        """The given data and the flag or setting that names it; None: our own data."""
        if self.data_path is not None:
            return self.data_path, f"--data_path {self.data_path}"
        if (place := configured_folder("atari", "data")) is not None:
            return place, f"'atari: data: {place}' of wandb_config.yaml"
        return None


@dataclass(frozen=True)
class Data:
    """A game's data, ready for training."""

    file: TrajectoryFile
    training: WindowDataset
    validation: WindowDataset

    @property
    def clipped(self) -> bool:
        """Whether rewards look clipped to [-1, 1], as dopamine's are."""
        return bool(self.file.attributes.get(CLIPPED, False))

    def write(self, directory: Path) -> None:
        """Store what acting needs to know about the data in a run's directory."""
        atomic_write_text(directory / REWARDS_FILE, json.dumps({"clipped": self.clipped}) + "\n")


def trained_on_clipped_rewards(run: Path) -> bool:
    """Whether a run's data had clipped rewards; False if unknown, as for a converted checkpoint.

    Raises:
        UserError: the run's record of it is damaged.
    """
    path = run / REWARDS_FILE
    try:
        return bool(json.loads(path.read_text())["clipped"]) if path.exists() else False
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})") from None


def ensure_dataset(options: DataOptions) -> Path:
    """The file to train on, made or converted if necessary.

    Raises:
        UserError: the named data is missing or invalid, or no data can be made or written.
    """
    played, selection = game_of(options.game), options.replay
    own = GenerateOptions(options.game, selection.transitions, data_dir=options.data_dir)
    if options.given is None:
        return DATA.ensure(own)
    place, named = options.given
    if place.is_file() and place.suffix == ".gz":
        raise UserError(f"{named}: this is one file of a replay buffer; give its folder, '{place.absolute().parent}'")
    if place.is_file():
        return place
    how = f"{how_to_get(played, selection.transitions)} Then name the file with --data_path '{DATA.path(own)}'."
    if not place.exists():
        raise UserError(f"{named}: does not exist. {how}")
    logs = find_replay_logs(place, played.name)
    if logs is None:
        there = sorted(place.glob("*.h5"))
        advice = f"To train on '{there[0].name}' in it, name that file." if there else how
        raise UserError(
            f"{named}: no DQN-replay files there ({played.name}/1/replay_logs/$store$_observation_ckpt.0.gz ...). "
            f"{advice}"
        )
    if (found := game_of_logs(logs)) not in (None, played.name):
        raise UserError(f"{named}: '{logs}' contains {found}; give --game {found}, or the folder of {played.name}")
    target = conversion_path(logs, selection, played.name, options.data_dir or DATA.directory)
    return convert(logs, target, selection, game=played.name, num_actions=played.actions)


def game_of_logs(logs: Path) -> str | None:
    """The game of a folder of buffers, from its name and those of the two folders above it; None: not a known game."""
    for name in reversed(logs.resolve().parts[-3:]):  # {Game}/1/replay_logs
        with suppress(UserError):
            return game_of(name).name
    return None


def how_to_get(game: Game, transitions: int | None = None) -> str:
    """The command that makes data."""
    steps = "" if transitions is None else f" --transitions {transitions}"
    return f"Make your own with `python3 {DATA.script} --game {game.name}{steps}`."


def open_dataset(path: Path, game: Game) -> TrajectoryFile:
    """A file of single frames of a game, checked. Raises UserError; see `TrajectoryFile`."""
    return TrajectoryFile(
        path,
        observation_shape=(1, *FRAME_SHAPE),
        observation_dtype="uint8",
        num_actions=game.actions,
        hint=f"It is read as {game.name}. {how_to_get(game)}",
    )


def rewards_note(file: TrajectoryFile, game: Game) -> str | None:
    """A note on the rewards of a converted file; None: the file is not a conversion."""
    if (clipped := file.attributes.get(CLIPPED)) is None:
        return None
    if clipped and game.unit_points:
        return f"rewards of '{file.path}' lie within [-1, 1], as {game.name}'s always do: clipping does not change them"
    if clipped:
        return (
            f"rewards of '{file.path}' look clipped to [-1, 1]: give --target_return in clipped points; evaluation "
            "subtracts clipped points, too"
        )
    return f"rewards of '{file.path}' are not clipped"


def load_data(options: DataOptions, *, size: int, fraction: float = TRAINING_FRACTION) -> Data:
    """Windows of ``size`` steps (segments x context_length) for training and validation.

    Episodes are divided between the two. Training windows begin at every step; validation windows do not overlap.

    Raises:
        UserError: the data is missing, invalid, of another game, or has too few episodes.
    """
    played = game_of(options.game)
    path = ensure_dataset(options)
    file = open_dataset(path, played)
    made_of = file.attributes.get("game", played.name)  # files from other sources do not record it
    if made_of != played.name:
        raise UserError(f"'{path}' contains {made_of}, not {played.name}; give another --data_path or --game")
    if (note := rewards_note(file, played)) is not None:
        print(note, flush=True)
    everywhere, tiles = (strided_or_whole(0, file, size, stride) for stride in (1, size))
    shown = {"size": size, "in_memory": file.num_bytes <= options.memory_gib * 2**30, "stack": FRAME_STACK}
    return Data(file, *split_datasets([file], everywhere, tiles, fraction=fraction, **shown))
