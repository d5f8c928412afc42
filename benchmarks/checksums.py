"""Cost of the checksums of trajectory files in time and space, compared with HDF5's Fletcher-32.

    python benchmarks/checksums.py
    python benchmarks/checksums.py --episodes 100 --rounds 3 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import h5py
import hdf5plugin
import numpy as np

from benchmarks import common
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.checksums import GROUP
from RATE_model.data.compression import ZSTD_LEVEL, uses_zstd
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.loader import EpochSampler, make_loader
from RATE_model.data.selection import whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter

KINDS = {"vectors (4)": ((4,), "float32"), "images (3, 64, 64)": ((3, 64, 64), "uint8")}
WAYS = ("none", "checksums", "Fletcher-32")


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Episodes of images; 20 times as many of vectors
    episodes: int = 100
    # Steps of an episode, and of a window
    steps: int = 90
    # Windows of a batch
    batch_size: int = 64
    # Timed rounds; each reads all windows of every file twice
    rounds: int = 10
    # Threads of torch; 0 = torch's default
    threads: int = 1
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, episodes=self.episodes, steps=self.steps, batch_size=self.batch_size, rounds=self.rounds)
        at_least(0, threads=self.threads)
        common.check_output(self.output)


def make_data(kind: str, options: Options, path: Path) -> Path:
    """Make episodes of random vectors, or of coarse pictures with noise, which compress about as well as ViZDoom's."""
    shape, dtype = KINDS[kind]
    rng = np.random.default_rng(0)
    image = dtype == "uint8"
    with TrajectoryWriter(path, observation_shape=shape, observation_dtype=dtype, attributes={}) as writer:
        for _ in range(options.episodes * (1 if image else 20)):
            observations = rng.normal(size=(options.steps, *shape))
            if image:
                coarse = rng.integers(0, 240, (options.steps, 3, 8, 8)).repeat(8, axis=2).repeat(8, axis=3)
                observations = coarse + rng.integers(0, 16, coarse.shape) * (rng.random(coarse.shape) < 0.3)
            actions = rng.integers(0, 4, options.steps)
            writer.add_episode(observations, actions, rng.normal(size=options.steps), terminal=True)
    return path


def rewrite(source: Path, target: Path, *, fletcher: bool) -> Path:
    """Copy a file without our checksums, with the same chunks and compression, optionally with HDF5's checksums."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        for name in (name for name in old if name != GROUP):
            array = old[name]
            options = dict(hdf5plugin.Zstd(clevel=ZSTD_LEVEL)) if uses_zstd(array) else {}
            chunks = {"chunks": array.chunks, "maxshape": (None, *array.shape[1:]), "fletcher32": fletcher}
            new.create_dataset(name, data=array[:], **chunks, **options)
        for name, value in old.attrs.items():
            new.attrs[name] = value
    return target


class Reader:
    """Reads all windows of a file in random order. Measures processor time, because files are cached."""

    def __init__(self, path: Path, options: Options) -> None:
        self.path, self.options = path, options
        self._opened: tuple[WindowDataset, EpochSampler] | None = None

    def first_epoch(self) -> float:
        """Seconds to read every window after opening the file, including the comparison of checksums."""
        with TrajectoryFile(self.path) as file:
            data = WindowDataset([file], whole_episodes(0, file), size=self.options.steps, in_memory=False)
        self._opened = data, EpochSampler(len(data), self.options.batch_size, seed=0)
        return self.next_epoch()

    def next_epoch(self) -> float:
        """Seconds to read every window again."""
        data, sampler = self._opened
        start = time.process_time()
        for _ in make_loader(data, sampler, end_epoch=1):
            pass
        return time.process_time() - start

    def load(self) -> float:
        """Seconds to open the file and read all of it into memory."""
        start = time.process_time()
        with TrajectoryFile(self.path) as file:
            file.load()
        return time.process_time() - start


def check(paths: dict[str, Path]) -> None:
    """Raise RuntimeError if the files give different data."""
    loaded = [TrajectoryFile(path).load() for path in paths.values()]
    for arrays in loaded[1:]:
        for ours, other in zip(loaded[0], arrays, strict=True):
            common.check_agreement("contents", float(np.abs(ours * 1.0 - other).max()), 0.0)


def measure(options: Options) -> dict[str, Any]:
    """Sizes of the files in bytes, and seconds of all ways to read them."""
    kinds: dict[str, Any] = {}
    for kind in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(f"{kind}: making {options.episodes} episodes ...")
            own = make_data(kind, options, Path(folder) / "checksums.h5")
            none, fletcher = (
                rewrite(own, Path(folder) / f"fletcher_{used}.h5", fletcher=used) for used in (False, True)
            )
            paths = dict(zip(WAYS, (none, own, fletcher), strict=True))
            check(paths)
            readers = {way: Reader(path, options) for way, path in paths.items()}
            candidates: dict[str, Callable[[], float]] = {}
            for action in ("first_epoch", "next_epoch", "load"):
                candidates |= {f"{action} {way}": partial(getattr(readers[way], action)) for way in WAYS}
            seconds = common.interleave(candidates, rounds=options.rounds)
            kinds[kind] = {
                "bytes": {way: path.stat().st_size for way, path in paths.items()},
                "cases": {name: common.summary(values) for name, values in seconds.items()},
                "ratios": {
                    f"{action} {way}": common.ratio(seconds[f"{action} {way}"], seconds[f"{action} none"])
                    for action in ("first_epoch", "next_epoch", "load")
                    for way in WAYS[1:]
                },
            }
    return {"kinds": kinds}


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for kind, found in result["kinds"].items():
        for way in WAYS[1:]:
            more = [found["bytes"][way] / found["bytes"]["none"]]
            more += [found["ratios"][f"{action} {way}"] for action in ("first_epoch", "next_epoch", "load")]
            rows.append([kind, way, *(f"{100 * (share - 1):+.1f}%" for share in more)])
    header = ["", "", "size", "windows, first epoch", "windows, later epochs", "open and load"]
    options = result["options"]
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"{options['episodes']} episodes of images and 20 times as many of vectors, of {options['steps']} steps; "
            f"medians of {options['rounds']} rounds, relative to a file without checksums.",
            common.table(header, rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/checksums.py",
            description="Cost of the checksums of trajectory files.",
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "checksums",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "checksums", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
