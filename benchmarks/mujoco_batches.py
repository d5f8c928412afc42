"""Time to assemble a batch of MuJoCo windows, compared with a loop over windows.

    python benchmarks/mujoco_batches.py
    python benchmarks/mujoco_batches.py --batch_size 1024 --steps 100000 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import h5py
import numpy as np

from benchmarks import common
from MuJoCo.dataset import Data, DataOptions, load_data
from MuJoCo.files import d4rl_name
from MuJoCo.tasks import HALFCHEETAH, MAX_EPISODE_STEPS, TASKS
from RATE_model.cli.limits import MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.writer import TrajectoryWriter

TASK = TASKS[0]  # halfcheetah-medium: 17 observations, 6 actions


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Windows of a batch
    batch_size: int = 4096
    # Steps of a window (segments x steps of a segment)
    window: int = 60
    # Steps of the data, in episodes of 1000
    steps: int = 1_000_000
    # Timed rounds; in each, everything assembles one batch
    rounds: int = 20
    # Threads of torch; 0 = torch's default
    threads: int = 1
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, window=self.window, rounds=self.rounds)
        at_least(0, threads=self.threads)
        at_least(20 * MAX_EPISODE_STEPS, steps=self.steps)
        at_most(100 * MAX_STEPS, steps=self.steps)
        common.check_output(self.output)


def make_data(options: Options, folder: Path) -> None:
    """Random numbers in the shape of D4RL's halfcheetah-medium, whole episodes of 1000 steps."""
    rng = np.random.default_rng(0)
    with TrajectoryWriter(
        folder / d4rl_name(TASK),
        observation_shape=(HALFCHEETAH.observation_size,),
        observation_dtype="float32",
        action_shape=(HALFCHEETAH.action_size,),
        action_dtype="float32",
        attributes={},
    ) as writer:
        for _ in range(options.steps // MAX_EPISODE_STEPS):
            writer.add_episode(
                rng.normal(size=(MAX_EPISODE_STEPS, HALFCHEETAH.observation_size)),
                rng.uniform(-1, 1, (MAX_EPISODE_STEPS, HALFCHEETAH.action_size)),
                rng.normal(size=MAX_EPISODE_STEPS),
                terminal=False,
            )


def normalised(data: Data, observations: np.ndarray) -> np.ndarray:
    """Observations (..., 17) float32 minus the data's mean, over its standard deviation."""
    mean, std = data.file.statistics
    return (observations - mean) / std


def loop_over_windows(data: Data, arrays: tuple[np.ndarray, ...], indices: Sequence[int]) -> list[np.ndarray]:
    """The published way to make a batch: cut, pad and normalise one window after another, then stack them.

    Args:
        arrays: raw observations, actions and rewards of all steps.

    Returns:
        Observations, actions, returns-to-go, valid.
    """
    size = data.training.size
    observations, actions, rewards = arrays
    rows: list[list[np.ndarray]] = [[], [], [], []]
    for index in indices:
        _, start, length = data.training.windows[index]
        episode = np.searchsorted(data.file.starts, start, side="right") - 1
        end = data.file.starts[episode] + data.file.lengths[episode]
        padding = size - length
        steps = slice(start, start + length)
        rtg = np.cumsum(rewards[start:end][::-1])[::-1][:length]
        values = normalised(data, observations[steps])
        rows[0].append(np.concatenate([values, np.repeat(values[-1:], padding, axis=0)]))
        rows[1].append(np.concatenate([actions[steps], np.zeros((padding, actions.shape[1]), dtype=np.float32)]))
        rows[2].append(np.concatenate([rtg, np.zeros(padding)]))
        rows[3].append(np.arange(size) < length)
    return [np.stack(row) for row in rows]


def check(data: Data, arrays: tuple[np.ndarray, ...], indices: Sequence[int]) -> float:
    """Largest difference of returns-to-go between the two ways; raises RuntimeError if anything differs."""
    batch = data.training.__getitems__(indices)
    observations, actions, rtg, valid = loop_over_windows(data, arrays, indices)
    for name, ours, plain in (
        ("observations", normalised(data, batch.observations.numpy()), observations),
        ("actions", batch.actions, actions),
        ("valid", batch.valid, valid),
    ):
        common.check_agreement(name, float(np.abs(np.asarray(ours) * 1.0 - plain).max()), 0.0)
    return common.check_agreement("returns-to-go", float(np.abs(batch.rtg.numpy() - rtg).max()), 1e-3)


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds, and the bytes of a batch."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"making {options.steps} steps ...")
        make_data(options, Path(folder))
        start = time.perf_counter()
        data = load_data(TASK, DataOptions(data_path=Path(folder)), size=options.window)
        loaded = time.perf_counter() - start
        with h5py.File(data.file.path) as raw:
            arrays = tuple(raw[name][:] for name in ("observations", "actions", "rewards"))
        left = WindowDataset([data.file], data.training.windows, size=options.window, pad="left")
    rng = np.random.default_rng(0)

    def draw() -> list[int]:
        return rng.integers(0, len(data.training), options.batch_size).tolist()

    difference = check(data, arrays, draw())
    batch = data.training.__getitems__(draw())
    tensors = (batch.observations, batch.actions, batch.rtg, batch.valid)
    plain = np.zeros(sum(tensor.nbytes for tensor in tensors), dtype=np.uint8)
    candidates: dict[str, Callable[[], None]] = {
        "padded right": lambda: _discard(data.training.__getitems__(draw())),
        "padded left": lambda: _discard(left.__getitems__(draw())),
        "copy of as many bytes": lambda: _discard(plain.copy()),
        "loop over windows": lambda: _discard(loop_over_windows(data, arrays, draw())),
    }
    seconds = common.interleave(candidates, rounds=options.rounds)
    return {
        "load_s": loaded,
        "rtg_difference": difference,
        "batch_bytes": plain.nbytes,
        "times_faster": common.ratio(seconds["loop over windows"], seconds["padded right"]),
        "cases": {name: common.summary(values) for name, values in seconds.items()},
    }


def _discard(batch: object) -> None:
    """Drop the result: `interleave` would take a returned number for seconds."""


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options = result["options"]
    rows = [
        [name, f"{case['median_s'] * 1e3:.1f}", f"{case['min_s'] * 1e3:.1f}", f"{max(case['seconds']) * 1e3:.1f}"]
        for name, case in result["cases"].items()
    ]
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"{options['batch_size']} windows of {options['window']} steps from {options['steps']} steps, "
            f"{result['batch_bytes'] / 1e6:.0f} MB a batch; loading took {result['load_s']:.1f} s. "
            f"{result['times_faster']:.0f} times as fast as the loop.",
            common.table(["one batch", "median ms", "min ms", "max ms"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/mujoco_batches.py",
            description="Time to assemble a batch of MuJoCo windows.",
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "mujoco_batches",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "mujoco_batches",
            format_table(result),
            result,
            output=options.output,
            update_readme=options.update_readme,
        )


if __name__ == "__main__":
    main()
