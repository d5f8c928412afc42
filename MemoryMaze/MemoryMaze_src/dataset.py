"""Memory Maze trajectories: make or convert them, and load them as windows.

    python3 MemoryMaze/MemoryMaze_src/dataset.py --episodes 200
    python3 MemoryMaze/MemoryMaze_src/dataset.py --episodes 50 --size 11 --workers 8
    python3 MemoryMaze/MemoryMaze_src/dataset.py --data_path my_dreamer_episodes

A file is made by the experts, or converted from a folder of DreamerV3-style episodes. It goes to
MemoryMaze/MemoryMaze_data, where training finds it by the same flags. With --output it goes elsewhere, and training
takes it as --data_path. After an interruption, the same command continues where it was.

In our files actions[t] was taken on observations[t], and rewards[t] followed it. Dreamer's episodes have the action
that *led* to an image in its row, below a first row without one, so our actions[t] is their action[t + 1], and our
rewards[t] their reward[t + 1]. See --alignment for episodes from other sources.

Training takes windows: pieces of an episode of --segments times --context_length steps. A file always holds whole
episodes. Returns-to-go are those of the whole episode.

    --windows all         every piece of every episode; each epoch draws from all of them
    --windows published   adjacent pieces that start below step 500 - length (0, 90, ..., 360) and have at least two
                              rewards
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from MemoryMaze.MemoryMaze_src.env import SPEC, Size
from MemoryMaze.MemoryMaze_src.generate import DEFAULT_MIX, EXPERTS_VERSION, PlayerOfMix, Recipe, generate
from RATE_model.cli.limits import Check, Probability, Range, Steps
from RATE_model.cli.local_settings import configured_folder
from RATE_model.cli.options import changeable
from RATE_model.data.maker import DAggerOptions, DataMaker, exact, split_datasets
from RATE_model.data.npz import REWARDS_WITH_IMAGES, UNKNOWN_ALIGNMENT, NpzKeys, Rows, require_expert_labels
from RATE_model.data.selection import strided_windows
from RATE_model.data.trajectories import Learn, TrajectoryFile
from RATE_model.errors import UserError

if TYPE_CHECKING:
    from RATE_model.data.dataset import WindowDataset

MAX_EPISODES = 100_000
TRAINING_FRACTION = 0.9
# The published windows: where they may start, and their minimum reward.
PUBLISHED_STEPS = 500
PUBLISHED_REWARD = 2

Alignment = Literal["auto", "last", "causal", "replay"]
Windows = Literal["all", "published"]
_ROWS: dict[Alignment, Rows] = {"auto": "auto", "last": "arrivals", "causal": "steps", "replay": "replay"}


@dataclass(frozen=True)
class DataOptions(DAggerOptions):
    """Which trajectories to make or to train on."""

    # Size of the mazes, in training also of those to evaluate in: 9, 11, 13 or 15 cells
    size: Size = 9
    # Episodes; the published data had 5000
    episodes: Annotated[int, Range(10, MAX_EPISODES)] = 200
    # Steps per episode
    steps: Steps = 1000
    # Players, as EXPERT:NOISE:SHARE; NOISE is the probability of a random action, SHARE the share of episodes
    mix: Annotated[tuple[str, ...], Check(PlayerOfMix.of)] = DEFAULT_MIX
    # Share of the time in which the players walk to a random ball, maybe the target: expert data with
    # perturbations (DART)
    perturbation: Probability = 0.0
    # Targets at every step: recorded = the action taken, expert = the action that the player would have taken without
    # errors. Files hold both
    learn: Learn = "recorded"
    # Training windows: all pieces of the episodes, or those that the published code kept. Files hold whole episodes
    windows: Windows = "all"
    # Data to read instead: an .h5 file made here (for training), or a folder of DreamerV3-style *.npz. --episodes,
    # --steps, --mix and --perturbation then have no effect, and --size only applies to evaluations. none = in training,
    # `memory_maze: data:` of wandb_config.yaml, if set
    data_path: Path | None = changeable(None)
    # Meaning of such a folder's actions. last: the action that led to the image beside it (Dreamer's episodes); causal:
    # the action taken on it, with the reward that followed; replay: the action taken on it, with the reward that came
    # with the image (DreamerV3's replay chunks); auto: last if the first action is none (all zeros), causal if there is
    # one more image than actions, otherwise an error
    alignment: Alignment = "auto"
    # Folder for data files; none = MemoryMaze/MemoryMaze_data
    data_dir: Path | None = changeable(None)

    flaws: ClassVar = ("perturbation",)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        super().validate()
        if not self.mix:
            raise UserError("--mix: name at least one player, such as explorer:0.1:1")
        noisy = [text for text in self.mix if PlayerOfMix.of(text).noise]
        if self.driver is not None and noisy and self.mix != DEFAULT_MIX:
            raise UserError(
                f"--mix {noisy[0]}: with --driver the agent acts, and players only label; give them a NOISE of 0"
            )

    def check_typed(self, typed: Set[str]) -> None:
        """Raise a UserError for a typed --alignment if there is nothing to convert."""
        if "alignment" in typed and ((given := DATA.source(self)) is None or given[0].is_file()):
            raise UserError(
                f"--alignment {self.alignment}: only applies to a folder of episodes to convert; name it with "
                "--data_path, or leave this out"
            )

    @property
    def mix_of_recipe(self) -> tuple[str, ...]:
        """The mix. With a driver the players only label, so just their experts and shares count."""
        if self.driver is None:
            return self.mix
        shares: dict[str, float] = {}
        for player in map(PlayerOfMix.of, self.mix):
            shares[player.kind] = shares.get(player.kind, 0.0) + player.share
        return tuple(f"{kind}:0:{share:.6g}" for kind, share in shares.items())

    def recipe(self) -> Recipe:
        """The recipe of the data."""
        return Recipe(self.size, self.steps, self.mix_of_recipe, self.perturbation, self.driver_choice)


class MemoryMazeData(DataMaker[DataOptions]):
    """The experts' episodes, or DreamerV3-style ones."""

    name = "Memory Maze"
    environment = "MemoryMaze"
    script = "MemoryMaze/MemoryMaze_src/dataset.py"
    directory = Path(__file__).resolve().parents[1] / "MemoryMaze_data"
    prefix = "memory_maze"
    options = DataOptions
    spec = SPEC
    pattern = "*.npz"

    def file_name(self, options: DataOptions) -> str:
        """Named by maze and players."""
        mix = "_".join(word.replace(":", "-") for word in options.mix_of_recipe)
        parts = [f"memory_maze_{options.size}x{options.size}", mix]
        if options.steps != DataOptions.steps:
            parts.append(f"steps{options.steps}")
        if options.perturbation:
            parts.append(f"perturbation{exact(options.perturbation)}")
        return f"{'_'.join(parts + options.driver_name)}_n{options.episodes}.h5"

    def make(self, options: DataOptions, path: Path, *, overwrite: bool = False, workers: int | None = None) -> None:
        """See `generate`."""
        generate(options.recipe(), options.episodes, path, overwrite=overwrite, workers=workers)

    def source(self, options: DataOptions) -> tuple[Path, str] | None:
        """--data_path, else the entry in wandb_config.yaml."""
        if options.data_path is None and (place := configured_folder("memory_maze", "data")) is not None:
            return place, "memory_maze: data: of wandb_config.yaml"
        return super().source(options)

    def conversion(self, options: DataOptions) -> Mapping[str, Any]:
        """The formats that Dreamer's collectors write."""
        keys = NpzKeys(
            observations=("image", "obs", "image_t"),
            time_last=("image_t",),
            marked=False,
            continued=True,
            rows=_ROWS[options.alignment],
            one_hot=True,
            channels_last=True,
        )
        return {"keys": keys, "attributes": {"alignment": options.alignment}}

    def given(self, options: DataOptions, target: Path | None = None, *, overwrite: bool = False) -> Path:
        """As in every environment; an error says which --alignment would help."""
        try:
            return super().given(options, target, overwrite=overwrite)
        except UserError as error:
            if options.alignment == "auto" and UNKNOWN_ALIGNMENT in str(error):
                raise UserError(f"{error} Give --alignment last, causal or replay.") from None
            if REWARDS_WITH_IMAGES in str(error):
                raise UserError(f"{error} Give --alignment replay.") from None
            raise

    def versions(self) -> Mapping[str, int]:
        """Version of the experts."""
        return {"experts": EXPERTS_VERSION}


DATA = MemoryMazeData()
main = DATA.main


def check_windows(options: DataOptions, size: int) -> None:
    """Raise a UserError if there can be no window of this many steps, as far as can be told without the data.

    Also if there can be none with targets.
    """
    source, named = DATA.source(options) or (None, "")
    require_expert_labels(source, options.learn, named=named)
    length = f"{size} steps (--segments times --context_length)"
    if options.windows == "published" and size >= PUBLISHED_STEPS:
        raise UserError(
            f"--windows published: windows end before step {PUBLISHED_STEPS}, but need {length}. Use "
            "fewer, or --windows all."
        )
    if options.steps < size and source is None:
        raise UserError(f"--steps {options.steps}: an episode must have at least the {length} of a window")


def load_windows(
    paths: Sequence[Path],
    *,
    size: int,
    windows: Windows = "all",
    learn: Learn = "recorded",
    fraction: float = TRAINING_FRACTION,
) -> tuple[WindowDataset, WindowDataset]:
    """Windows of ``size`` steps: a training and a validation dataset, of different episodes.

    Validation takes adjacent windows from the whole of its episodes, whatever training takes.

    Raises:
        UserError: a file is missing or bad, no episode is long enough, no window is left, there are too few episodes,
            or a file does not contain the targets.
    """
    files = [DATA.open(path) for path in paths]
    stride = size if windows == "published" else 1
    taken, beside = (
        np.concatenate([strided_windows(index, file, size, step) for index, file in enumerate(files)])
        for step in (stride, size)
    )
    if windows == "published":
        of_file = (taken[taken[:, 0] == index] for index in range(len(files)))
        taken = np.concatenate([rows[published(file, rows)] for file, rows in zip(files, of_file, strict=True)])
        if not len(taken):
            raise UserError(
                f"--windows published leaves nothing to train on: no window of {size} steps (--segments times "
                f"--context_length) that begins below step {PUBLISHED_STEPS - size} has {PUBLISHED_REWARD} rewards. "
                "Use --windows all, or data of better players."
            )
    return split_datasets(files, taken, beside, fraction=fraction, size=size, learn=learn)


def published(file: TrajectoryFile, windows: np.ndarray) -> np.ndarray:
    """Whether the published loader keeps each window (W, 3) of this file: (W,) bool."""
    starts, size = windows[:, 1], windows[:, 2]
    within = starts - file.starts[np.searchsorted(file.starts, starts, side="right") - 1]
    before = np.concatenate([[0.0], np.cumsum(file.rewards, dtype=np.float64)])
    return (within < PUBLISHED_STEPS - size) & (before[starts + size] - before[starts] >= PUBLISHED_REWARD)


if __name__ == "__main__":
    main()
