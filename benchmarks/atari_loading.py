"""Atari: time and memory from half a million transitions in DQN-replay files to batches.

    python benchmarks/atari_loading.py
    python benchmarks/atari_loading.py --transitions 20000 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from Atari.dataset import DataOptions, ensure_dataset, load_data, open_dataset
from Atari.games import GAMES
from benchmarks import common
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.dopamine import export_replay
from RATE_model.data.selection import strided_or_whole
from RATE_model.data.writer import TrajectoryWriter

GAME = GAMES["Breakout"]
EPISODE = 1000  # steps
BATCHES = 5


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Transitions of the data
    transitions: int = 500_000
    # Transitions of a buffer
    buffer: int = 100_000
    # Windows of a batch
    batch_size: int = 128
    # Steps of a window
    steps: int = 90
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(20 * EPISODE, transitions=self.transitions, buffer=self.buffer)
        at_least(1, batch_size=self.batch_size, steps=self.steps)
        common.check_output(self.output)


def write_data(path: Path, transitions: int) -> None:
    """Write frames with a ball, bricks and a changing score, which compress about as well as a game's."""
    rng = np.random.default_rng(0)
    bricks = np.zeros((EPISODE, 1, 84, 84), dtype=np.uint8)
    bricks[:, :, 24:36, 4:80] = np.arange(40, 160, 10, dtype=np.uint8)[:, None]
    with TrajectoryWriter(
        path, observation_shape=(1, 84, 84), observation_dtype="uint8", attributes={"game": GAME.name}
    ) as writer:
        for _ in range(transitions // EPISODE):
            frames, step = bricks.copy(), np.arange(EPISODE)
            frames[step, 0, rng.integers(37, 84, EPISODE), rng.integers(84, size=EPISODE)] = 142
            for brick in rng.integers(EPISODE, size=200):
                frames[brick:, 0, 24 + brick % 12, 4 + brick % 76] = 0
            actions = rng.integers(GAME.actions, size=EPISODE)
            writer.add_episode(frames, actions, rng.random(EPISODE) < 0.1, terminal=True)


def convert(options: DataOptions) -> dict[str, float]:
    """Convert DQN-replay files; returns seconds and memory."""
    before, started = common.memory_mib(), time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        ensure_dataset(options)
    return {"seconds": time.perf_counter() - started, **_memory(before)}


def load(options: DataOptions, size: int, batch_size: int) -> dict[str, float]:
    """Open converted data and draw batches; returns seconds and memory of each."""
    before, started = common.memory_mib(), time.perf_counter()
    path = ensure_dataset(options)
    file = open_dataset(path, GAME)
    opened = time.perf_counter()
    file.returns_to_go()
    strided_or_whole(0, file, size, 1)
    prepared = time.perf_counter()
    data = load_data(options, size=size)
    loaded = time.perf_counter()
    rng = np.random.default_rng(0)
    for _ in range(BATCHES):
        data.training.__getitems__(rng.integers(len(data.training), size=batch_size).tolist())
    ended = time.perf_counter()
    return {
        "open_s": opened - started,
        "prepare_s": prepared - opened,
        "load_s": loaded - prepared,
        "batch_s": (ended - loaded) / BATCHES,
        "transitions": file.num_steps,
        **_memory(before),
    }


def _memory(before: tuple[float, float] | None) -> dict[str, float]:
    after = common.memory_mib()
    return {} if before is None or after is None else {"peak_mib": after[1], "before_mib": before[0]}


def measure(options: Options) -> dict[str, Any]:
    """Measure every case in a separate process."""
    with tempfile.TemporaryDirectory(prefix="atari_loading_") as folder:
        source = Path(folder) / "data.h5"
        write_data(source, options.transitions)
        export_replay(source, folder, game=GAME.name, capacity=options.buffer)
        source.unlink()
        place = {"data_path": Path(folder), "data_dir": Path(folder)}
        cases = {"convert": common.in_fresh_process(convert, DataOptions(**place))}
        for name, gib in (("from disk", 0.0), ("in memory", 64.0)):
            where = DataOptions(**place, memory_gib=gib)
            cases[name] = common.in_fresh_process(load, where, options.steps, options.batch_size)
    return {"cases": cases}


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options, cases = result["options"], result["cases"]
    disk, memory = cases["from disk"], cases["in memory"]
    rows = [
        ["convert DQN-replay files, once", f"{cases['convert']['seconds']:.0f} s, peak {_gib(cases['convert'])}"],
        ["open the conversion", f"{disk['open_s']:.2f} s"],
        ["returns-to-go and windows", f"{disk['prepare_s']:.2f} s"],
        ["load all frames", f"{memory['load_s']:.1f} s, peak {_gib(memory)}"],
        ["a batch from memory", f"{memory['batch_s'] * 1e3:.0f} ms"],
        ["a batch from disk, without loading", f"{disk['batch_s'] * 1e3:.0f} ms, peak {_gib(disk)}"],
    ]
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"{memory['transitions']:,} transitions; batches of {options['batch_size']} windows of {options['steps']} "
            "steps. Peaks include the whole process with PyTorch.",
            common.table(["", ""], rows),
        ]
    )


def _gib(case: dict[str, float]) -> str:
    return f"{case['peak_mib'] / 1024:.2f} GiB" if "peak_mib" in case else "unknown"


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/atari_loading.py", description="Loading Atari data."
        )
        result = {
            "benchmark": "atari_loading",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "atari_loading", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
