"""T-Maze's tasks: steps of many parallel mazes on one core.

    python benchmarks/tmaze_tasks.py
    python benchmarks/tmaze_tasks.py --mazes 100 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
from gymnasium.vector import VectorEnv

from benchmarks import common
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from TMaze_new.TMaze_new_src.env import RIGHT, UP, TMazeVectorEnv
from TMaze_new.TMaze_new_src.tasks import TASKS


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Parallel mazes
    mazes: int = 1000
    # x of the junctions in their corridors
    corridor_length: int = 60
    # Timed rounds; in each, every task is played once
    rounds: int = 5
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, mazes=self.mazes, rounds=self.rounds)
        shortest = max(cls.shortest_corridor(cls.default_junctions) for cls in TASKS.values())
        at_least(shortest, corridor_length=self.corridor_length)
        common.check_output(self.output)


def seconds(mazes: VectorEnv, steps: int) -> float:
    """CPU seconds of this many steps: right, and up in the last one."""
    mazes.reset(seed=0)
    right, up = np.full(mazes.num_envs, RIGHT), np.full(mazes.num_envs, UP)
    started = time.process_time()
    for step in range(steps):
        mazes.step(up if (step + 1) % steps == 0 else right)
    return time.process_time() - started


def measure(options: Options) -> dict[str, Any]:
    """Steps a second by task."""
    mazes: dict[str, VectorEnv] = {"passive": TMazeVectorEnv(options.mazes, options.corridor_length)}
    mazes |= {name: cls(options.mazes, options.corridor_length) for name, cls in TASKS.items()}
    steps = options.corridor_length
    runs = {name: lambda mazes=mazes: seconds(mazes, steps) for name, mazes in mazes.items()}
    timed = common.interleave(runs, rounds=options.rounds)
    return {
        "cases": {name: common.summary(times) for name, times in timed.items()},
        "steps_per_second": {name: options.mazes * steps / np.median(times) for name, times in timed.items()},
    }


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [[name, f"{speed:,.0f}"] for name, speed in result["steps_per_second"].items()]
    title = f"{result['options']['mazes']} parallel mazes, on one core."
    header = ["task", "steps per CPU second"]
    return "\n\n".join([common.machine_line(result["machine"], {}), title, common.table(header, rows)])


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/tmaze_tasks.py", description="Speed of T-Maze's tasks."
        )
        result = {
            "benchmark": "tmaze_tasks",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "tmaze_tasks", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
