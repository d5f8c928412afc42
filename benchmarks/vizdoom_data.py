"""ViZDoom-Two-Colors: time of steps, of making data, and of reading windows compared with the published way.

    python benchmarks/vizdoom_data.py
    python benchmarks/vizdoom_data.py --games 4 --rounds 2 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from benchmarks import common
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.npz import find_npz
from RATE_model.data.parts import make_part
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.system.processes import available_cores
from VizDoom.VizDoom_src.dataset import DATA
from VizDoom.VizDoom_src.env import NUM_ACTIONS, VizDoomTwoColorsEnv, VizDoomTwoColorsVectorEnv
from VizDoom.VizDoom_src.generate import PART, Recipe, generate, job_of
from VizDoom.VizDoom_src.scenario import Scenario

EPISODES = 5000  # of the dataset to extrapolate to
SCENARIO = Scenario(graphics="installed")  # needs no download


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Steps of an episode of the data, and of a window
    steps: int = 90
    # Steps per game and round
    game_steps: int = 500
    # Parallel games
    games: int = 16
    # Timed rounds; in each, everything is done once
    rounds: int = 5
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, steps=self.steps, game_steps=self.game_steps, games=self.games, rounds=self.rounds)
        common.check_output(self.output)


@contextmanager
def one_core() -> Iterator[None]:
    """Pin this process and its children to one core, if the system supports it."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def play_one(steps: int) -> Callable[[], None]:
    """Take this many random steps in a new game, which is restarted when it ends."""
    env, actions = VizDoomTwoColorsEnv(SCENARIO), np.random.default_rng(0)
    env.reset(seed=0)

    def run() -> None:
        with one_core():
            for _ in range(steps):
                *_, terminated, truncated, _ = env.step(actions.integers(NUM_ACTIONS))
                if terminated or truncated:
                    env.reset()

    return run


def play_many(envs: VizDoomTwoColorsVectorEnv, steps: int) -> Callable[[], None]:
    """Take this many random steps in every game."""
    actions = np.random.default_rng(0)

    def run() -> None:
        for _ in range(steps):
            _, _, terminated, truncated, _ = envs.step(actions.integers(NUM_ACTIONS, size=envs.num_envs))
            over = terminated | truncated
            if over.any():
                envs.reset(options={"reset_mask": over})

    return run


def write_npz(file: TrajectoryFile, folder: Path) -> None:
    """Write the episodes of a file as compressed arrays, one file each, under the published names."""
    for number, (start, length) in enumerate(zip(file.starts, file.lengths, strict=True)):
        observations, actions = file.read(start, start + length)
        rewards = file.rewards[start : start + length]
        arrays = {"obs": observations, "action": actions, "reward": rewards, "done": np.zeros(length, dtype=np.int64)}
        np.savez_compressed(folder / f"train_data_{number}.npz", **arrays)


def read_npz(path: Path) -> tuple[np.ndarray, ...]:
    """Read a whole episode, as the published loader does."""
    with np.load(path) as arrays:
        return tuple(arrays[name] for name in ("obs", "action", "reward", "done"))


def check(file: TrajectoryFile, paths: Sequence[Path]) -> None:
    """Raise RuntimeError if the two ways to read give different windows."""
    for start, length, path in zip(file.starts, file.lengths, paths, strict=True):
        for ours, plain in zip(file.read(start, start + length), read_npz(path), strict=False):
            common.check_agreement("windows", float(np.abs(ours.astype(np.int64) - plain).max()), 0.0)


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds, and the size of an episode on disk in bytes."""
    recipe = Recipe(SCENARIO, options.steps, "limited", 0.0)
    with (
        tempfile.TemporaryDirectory() as name,
        closing(VizDoomTwoColorsVectorEnv(options.games, SCENARIO)) as envs,
    ):
        folder = Path(name)
        file = DATA.open(generate(recipe, PART, folder / "data.h5"))
        write_npz(file, folder)
        paths = find_npz(folder)
        check(file, paths)
        envs.reset(seed=0)
        rng = np.random.default_rng(0)

        def make() -> None:
            with one_core():
                make_part(job_of(recipe), folder, (0, PART))

        def read_windows() -> None:
            for episode in rng.permutation(len(paths)):
                file.read(file.starts[episode], file.starts[episode] + file.lengths[episode])

        def read_whole() -> None:
            for episode in rng.permutation(len(paths)):
                read_npz(paths[episode])

        with one_core():
            game = play_one(options.game_steps)
        seconds = common.interleave(
            {
                "game": game,
                "games": play_many(envs, options.game_steps // 10 + 1),
                "making": make,
                "windows": read_windows,
                "windows, npz": read_whole,
            },
            rounds=options.rounds,
        )
        sizes = {"hdf5": file.path.stat().st_size, "npz": sum(path.stat().st_size for path in paths)}
    return {
        "cores": available_cores(),
        "bytes_per_episode": {kind: size / PART for kind, size in sizes.items()},
        "times_faster": common.ratio(seconds["windows, npz"], seconds["windows"]),
        "cases": {name: common.summary(values) for name, values in seconds.items()},
    }


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options, cases = result["options"], {name: case["median_s"] for name, case in result["cases"].items()}
    games = options["games"] * (options["game_steps"] // 10 + 1)
    minutes = cases["making"] / PART * EPISODES / 60
    megabytes = result["bytes_per_episode"]["hdf5"] / 1e6
    rows = [
        ["one game, on one core", f"{options['game_steps'] / cases['game']:,.0f} steps/s"],
        [f"{options['games']} games on {result['cores']} cores", f"{games / cases['games']:,.0f} steps/s"],
        ["an episode of data, on one core", f"{cases['making'] / PART * 1e3:.0f} ms, {megabytes:.2f} MB"],
        [f"{EPISODES} of them (extrapolated)", f"{minutes:.1f} core minutes, {megabytes * EPISODES / 1e3:.1f} GB"],
        ["a window of an episode", f"{cases['windows'] / PART * 1e3:.2f} ms"],
        ["the same from a compressed .npz", f"{cases['windows, npz'] / PART * 1e3:.2f} ms"],
        ["times faster", f"{result['times_faster']:.1f}"],
    ]
    machine = common.machine_line(result["machine"], {})
    return f"{machine}\n\n" + common.table([f"{options['steps']} steps an episode", "median"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/vizdoom_data.py",
            description="Time of ViZDoom-Two-Colors: steps, making data, reading windows.",
        )
        result = {
            "benchmark": "vizdoom_data",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        text, output = format_table(result), options.output
        common.publish("vizdoom_data", text, result, output=output, update_readme=options.update_readme)


if __name__ == "__main__":
    main()
