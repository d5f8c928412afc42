"""Time of Atari steps, and of making data with the scripted players.

    python benchmarks/atari_data.py
    python benchmarks/atari_data.py --rounds 1 --steps 100 --planned_steps 20 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from Atari.env import AtariEnv
from Atari.experts import plans
from Atari.games import GAMES, Game
from Atari.generate import generate
from Atari.generate_dataset import GenerateOptions
from benchmarks import common
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Steps of the random player, and of each noise level without planning
    steps: int = 500
    # Steps of each noise level with planning
    planned_steps: int = 40
    # Timed rounds; in each, everything is done once
    rounds: int = 3
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, steps=self.steps, planned_steps=self.planned_steps, rounds=self.rounds)
        common.check_output(self.output)

    def data_steps(self, game: Game) -> tuple[int, int]:
        """Steps per noise level of a game's data, and in total."""
        steps = self.planned_steps if plans(game) else self.steps
        return steps, steps * len(GenerateOptions(game.name).recipe.mix)


def on_the_processor(work: Callable[[], None]) -> Callable[[], float]:
    """A candidate for `interleave` that measures processor time, which does not depend on other load."""

    def run() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return run


def act_at_random(env: AtariEnv, steps: int) -> None:
    """Take this many random steps after a reset."""
    actions = np.random.default_rng(0).integers(env.game.actions, size=steps)
    env.reset(seed=0)
    for action in actions:
        *_, terminated, truncated, _ = env.step(int(action))
        if terminated or truncated:
            env.reset()


def make_data(game: Game, options: Options, folder: Path) -> None:
    """Make data with the configured number of steps at every noise level."""
    steps, total = options.data_steps(game)
    recipe = replace(GenerateOptions(game.name).recipe, max_steps=steps)
    generate(recipe, total, folder / f"{game.name}.h5", overwrite=True, workers=1)


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds of one core."""
    envs = {game: AtariEnv(game.name) for game in GAMES.values()}
    with tempfile.TemporaryDirectory() as name:
        candidates: dict[str, Callable[[], float]] = {}
        for game, env in envs.items():
            candidates[f"{game.name}, random"] = on_the_processor(lambda env=env: act_at_random(env, options.steps))
            candidates[f"{game.name}, data"] = on_the_processor(lambda game=game: make_data(game, options, Path(name)))
        seconds = common.interleave(candidates, rounds=options.rounds)
    return {"cases": {name: common.summary(values) for name, values in seconds.items()}}


def format_table(result: dict[str, Any], options: Options) -> str:
    """The figures as Markdown."""
    rows = []
    for game in GAMES.values():
        random, data = (result["cases"][f"{game.name}, {kind}"]["median_s"] for kind in ("random", "data"))
        steps, wanted = options.data_steps(game)[1], GenerateOptions(game.name).steps
        rows.append(
            [
                game.name,
                f"{options.steps / random:,.0f} steps/s",
                f"{steps / data:,.0f} steps/s",
                f"{wanted:,} steps: {wanted * data / steps / 60:.1f} minutes",
            ]
        )
    machine = common.machine_line(result["machine"], {})
    return f"{machine}\n\n" + common.table(["one core", "random player", "making data", "the default data"], rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/atari_data.py",
            description="Time of Atari steps, and of making data.",
        )
        result = {
            "benchmark": "atari_data",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        text, output = format_table(result, options), options.output
        common.publish("atari_data", text, result, output=output, update_readme=options.update_readme)


if __name__ == "__main__":
    main()
