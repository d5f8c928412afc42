"""Memory Maze: time of our environment's steps compared with the package's, of resets, and of many mazes in parallel.

    python benchmarks/memory_maze_env.py
    python benchmarks/memory_maze_env.py --steps 400 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from benchmarks import common
from MemoryMaze.MemoryMaze_src.env import MemoryMazeEnv, MemoryMazeVectorEnv, check_size
from MemoryMaze.MemoryMaze_src.experts import EXPERTS
from MemoryMaze.MemoryMaze_src.graphics import maze_tasks
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict

SEED = 0


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Size of the maze: 9, 11, 13 or 15 cells
    size: int = 9
    # Steps to compare and time
    steps: int = 400
    # Parallel mazes
    mazes: int = 10
    # Timed rounds; in each, everything runs once
    rounds: int = 3
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        check_size(self.size)
        at_least(1, steps=self.steps, mazes=self.mazes, rounds=self.rounds)
        common.check_output(self.output)


class Route:
    """The planner's actions in the maze of one seed, which touch balls and walls as a player does."""

    def __init__(self, size: int, steps: int) -> None:
        with contextlib.closing(MemoryMazeEnv(size, max_steps=steps, privileged=True)) as maze:
            player = EXPERTS["planner"](np.random.default_rng(SEED), noise=0.1)
            picture, info = maze.reset(seed=SEED)
            self.pictures, self.rewards, self.actions = [picture], [], []
            for _ in range(steps):
                self.actions.append(player.act(info))
                picture, reward, _, _, info = maze.step(self.actions[-1])
                self.pictures.append(picture)
                self.rewards.append(reward)


def check_pictures(package: Any, route: Route) -> float:
    """Walk the route in the package's environment; raises RuntimeError if a picture or reward differs."""
    step = package.reset()
    difference = 0.0
    for number, action in enumerate([*route.actions, None]):
        image = step.observation.transpose(2, 0, 1).astype(float)
        difference = max(difference, float(np.abs(image - route.pictures[number]).max()))
        if action is not None:
            step = package.step(action)
            difference = max(difference, abs(step.reward - route.rewards[number]))
    return common.check_agreement("pictures and rewards", difference, 0.0)


def cpu_seconds(work: Callable[[], object]) -> Callable[[], float]:
    """A candidate for `interleave` that measures CPU seconds of all threads, which do not depend on other load."""

    def run() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return run


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds, on one core except those of many mazes."""
    tasks = maze_tasks()
    route = Route(options.size, options.steps)
    package = getattr(tasks, f"memory_maze_{options.size}x{options.size}")(image_only_obs=True, seed=SEED)
    difference = check_pictures(package, route)
    never = 10**9
    maze = MemoryMazeEnv(options.size, max_steps=never, privileged=True)
    _, info = maze.reset(seed=SEED)
    package.reset()
    mazes = MemoryMazeVectorEnv(options.mazes, options.size, max_steps=never)
    mazes.reset(seed=SEED)
    players = {name: player(np.random.default_rng(SEED)) for name, player in EXPERTS.items()}

    def walk(step: Callable[[int], object]) -> Callable[[], None]:
        def run() -> None:
            for action in route.actions:
                step(action)

        return run

    def play(name: str) -> None:
        seen = info
        for _ in route.actions:
            *_, seen = maze.step(players[name].act(seen))

    with contextlib.closing(maze), contextlib.closing(mazes):
        seconds = common.interleave(
            {
                "ours": cpu_seconds(walk(maze.step)),
                "package": cpu_seconds(walk(package.step)),
                "start": cpu_seconds(lambda: MemoryMazeEnv(options.size).reset(seed=SEED + 1)),
                "package_start": cpu_seconds(
                    lambda: getattr(tasks, f"memory_maze_{options.size}x{options.size}")(seed=SEED + 1).reset()
                ),
                **{name: cpu_seconds(lambda name=name: play(name)) for name in EXPERTS},
                "mazes": walk(lambda action: mazes.step(np.full(options.mazes, action))),
            },
            rounds=options.rounds,
        )
    return {
        "difference": difference,
        "balls": sum(route.rewards),
        "times_faster": {
            "step": common.ratio(seconds["package"], seconds["ours"]),
            "start": common.ratio(seconds["package_start"], seconds["start"]),
        },
        "cases": {name: common.summary(values) for name, values in seconds.items()},
    }


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options, cases, faster = result["options"], result["cases"], result["times_faster"]

    def speed(name: str, steps: int = options["steps"]) -> str:
        return f"{steps / cases[name]['median_s']:,.0f} steps/s"

    rows = [
        ["our environment, on one core", speed("ours"), f"{faster['step']:.1f}"],
        ["the package's, on one core", speed("package"), ""],
        ["the start of an episode, on one core", f"{cases['start']['median_s']:.2f} s", f"{faster['start']:.1f}"],
        ["the package's", f"{cases['package_start']['median_s']:.2f} s", ""],
        *([f"the {name} plays, on one core", speed(name), ""] for name in EXPERTS),
        [f"{options['mazes']} mazes, on all cores", speed("mazes", options["steps"] * options["mazes"]), ""],
    ]
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"Maze of {options['size']}x{options['size']} cells. The {options['steps']} compared pictures are equal, "
            f"bit for bit; {result['balls']:.0f} balls were touched between them.",
            common.table(["", "median", "times faster"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/memory_maze_env.py", description="Speed of Memory Maze."
        )
        result = {
            "benchmark": "memory_maze_env",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "memory_maze_env", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
