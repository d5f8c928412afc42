"""Evaluate a checkpoint on T-Maze at any length.

    python3 TMaze_new/TMaze_new_src/inference_tmaze.py --checkpoint RUN_DIR --lengths 90 900 9600 1000000 --episodes 100

Acting keeps only the running segment, so memory does not grow with the length.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.cli.inference import InferenceOptions, fill_from_run
from RATE_model.cli.limits import MAX_EPISODE_STEPS, at_least, at_most
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.errors import UserError
from TMaze_new.TMaze_new_src.evaluate import LENGTHS, check_episodes, success_by_length
from TMaze_new.TMaze_new_src.pictures import draw_maps, knock_out_curve
from TMaze_new.TMaze_new_src.spec import SPEC

SCRIPT = "python3 TMaze_new/TMaze_new_src/inference_tmaze.py"

# What is asked where no run tells.
PUBLISHED = {"target_return": 1.0, "hint_steps": 1}


@dataclass(frozen=True)
class Options:
    """Flags of this script; those of `PUBLISHED` are filled from what the run recorded."""

    common: InferenceOptions = field(default_factory=InferenceOptions)
    # Episode lengths T: corridors of T - 2 cells, at most T steps
    lengths: tuple[int, ...] = LENGTHS
    # Episodes per length, as many up as down
    episodes: int = 100
    # Return that the agent is asked for; none = the run's (1 for a converted checkpoint)
    target_return: float | None = None
    # Observations that show the hint; none = the run's (1 for a converted checkpoint)
    hint_steps: int | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if not self.lengths:
            raise UserError("--lengths is empty: give at least one episode length")
        for length in self.lengths:
            at_least(3, lengths=length)
            at_most(MAX_EPISODE_STEPS, lengths=length)
        check_episodes(episodes=self.episodes)
        at_least(1, hint_steps=self.hint_steps)
        at_most(MAX_EPISODE_STEPS, hint_steps=self.hint_steps)


def evaluate(options: Options) -> dict[int, dict[str, float]]:
    """Success and delay by length, of filled options; prints one line per length."""
    path, model = options.common.load(SPEC)
    acting = {
        "hint_steps": options.hint_steps,
        "target_return": options.target_return,
        "slide": options.common.slide,
        "precision": options.common.precision,
    }
    print(f"{path}: {options.episodes} episodes per length{', memory knocked out' if options.common.knock_out else ''}")
    started = time.perf_counter()
    results = success_by_length(
        model,
        options.lengths,
        episodes=options.episodes,
        transform_memory=options.common.transform_memory,
        **acting,
    )
    print(f"{'length':>9} {'success':>8} {'delay':>8}")
    for length, result in results.items():
        print(f"{length:9d} {result['success_rate']:8.2f} {result['mean_delay']:8.2f}")
    print(f"{time.perf_counter() - started:.1f} s")
    if (folder := options.common.pictures) is not None:
        draw_maps(model, folder, hint_steps=options.hint_steps)
        success = {length: result["success_rate"] for length, result in results.items()}
        intact = None if options.common.knock_out else success
        knock_out_curve(model, options.lengths, options.episodes, folder / "knock_out.png", intact=intact, **acting)
        print(f"pictures: {folder}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog=SCRIPT, description="Evaluate a checkpoint on T-Maze.")
        options = fill_from_run(options, PUBLISHED)
        results = evaluate(options)
        asked = {name: getattr(options, name) for name in PUBLISHED}
        options.common.write(episodes=options.episodes, **asked, results=results)


if __name__ == "__main__":
    main()
