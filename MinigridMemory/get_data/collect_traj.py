"""Collect Minigrid-Memory trajectories with the scripted expert.

    python3 MinigridMemory/get_data/collect_traj.py
    python3 MinigridMemory/get_data/collect_traj.py --preset published_31 --workers 4
    python3 MinigridMemory/get_data/collect_traj.py --preset clean_41 --corridor fixed --noise 0.05 --output fixed.h5

The file goes to MinigridMemory/MinigridMemory_data, where training finds it by the same flags. With --output it goes
elsewhere, and training takes it as --data_path. --data_path FOLDER converts a folder of the published collector's
train_data_*.npz.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MinigridMemory.MinigridMemory_src.dataset import DataOptions, dataset_path, given_dataset, open_dataset
from MinigridMemory.MinigridMemory_src.generate import generate
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.data.parts import FileOptions
from RATE_model.errors import UserError


@dataclass(frozen=True)
class Options:
    """Collect episodes of the scripted expert."""

    data: DataOptions = field(default_factory=DataOptions)
    file: FileOptions = field(default_factory=FileOptions)

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if self.data.data_path is not None and not self.data.data_path.is_dir():
            raise UserError(f"--data_path '{self.data.data_path}': must be a folder of train_data_*.npz to convert")


def describe(path: Path) -> str:
    """One line on what a file holds and how it was made."""
    with open_dataset(path) as file:
        made, lengths = file.attributes, file.lengths
    line = (
        f"{path}: {made['num_episodes']} episodes of {lengths.min()} to {lengths.max()} steps, {made['num_steps']} "
        f"in all, mean return {made['return_mean']:.3f}, {path.stat().st_size / 1e6:.1f} MB"
    )
    if "played" not in made:
        return line
    dropped = ", ".join(f"{count} {reason}" for reason, count in made["dropped"].items())
    kept = f"{made['acceptance']:.1%} of {made['played']} episodes played were kept"
    return f"{line}; {kept}" + (f" (dropped: {dropped})" if dropped else "")


def main(argv: Sequence[str] | None = None) -> None:
    """Collect or convert as the flags (None: the command line) say; see the module."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python3 MinigridMemory/get_data/collect_traj.py",
            description="Collect Minigrid-Memory trajectories with the scripted expert.",
        )
        if options.data.data_path is not None:
            path = given_dataset(options.data, options.file.output, overwrite=options.file.overwrite)
        else:
            path = options.file.output or dataset_path(options.data)
            generate(options.data.selection(), path, overwrite=options.file.overwrite, workers=options.file.workers)
        print(describe(path))


if __name__ == "__main__":
    main()
