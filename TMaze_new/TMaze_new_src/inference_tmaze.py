"""Evaluate a checkpoint on T-Maze at any length.

    python3 TMaze_new/TMaze_new_src/inference_tmaze.py --checkpoint RUN_DIR --lengths 90 900 9600 1000000 --episodes 100

Acting keeps only the running segment, so memory does not grow with the length.
"""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if not __package__:  # started as a script: make the repository importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from RATE_model.actor import knock_out_memory
from RATE_model.atomic import atomic_write_text
from RATE_model.checkpoints import resolve_checkpoint
from RATE_model.errors import UserError
from RATE_model.fit import load_model
from RATE_model.limits import MAX_EPISODE_STEPS, at_least, at_most
from RATE_model.options import Boolean, exit_on_user_error, load_yaml, parse_options
from RATE_model.precision import Precision, pick_device
from TMaze_new.TMaze_new_src.evaluate import LENGTHS, check_episodes, success_by_length
from TMaze_new.TMaze_new_src.pictures import draw_maps, knock_out_curve
from TMaze_new.TMaze_new_src.spec import SPEC

SCRIPT = "python3 TMaze_new/TMaze_new_src/inference_tmaze.py"


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    # A run directory (its newest checkpoint), a directory step_*, or a tag such as RUN/checkpoints/best
    checkpoint: Path | None = None
    # Episode lengths T: corridors of T - 2 cells, at most T steps
    lengths: tuple[int, ...] = LENGTHS
    # Episodes per length, as many up as down
    episodes: int = 100
    # Return that the agent is asked for
    target_return: float = 1.0
    # Observations that show the hint; none = as the run was trained
    hint_steps: int | None = None
    # Replace the memory by the initial one at every segment: success must fall to chance
    knock_out: Boolean = False
    # DT and DTXL: steps that leave a full window at once; 1 is the published protocol, more is faster
    slide: int = 1
    # float32, or bfloat16 products
    precision: Precision = "32"
    # auto (a GPU if there is one), cpu, cuda, ...
    device: str = "auto"
    # Also draw into this folder: attention and memory maps of an episode of 90 steps; success with and without memory
    pictures: Path | None = None
    # Also write the results to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if self.checkpoint is None:
            raise UserError("--checkpoint is missing: give a run directory or a checkpoint")
        if not self.lengths:
            raise UserError("--lengths is empty: give at least one episode length")
        for length in self.lengths:
            at_least(3, lengths=length)
            at_most(MAX_EPISODE_STEPS, lengths=length)
        check_episodes(episodes=self.episodes)
        at_least(1, slide=self.slide, hint_steps=self.hint_steps)
        at_most(MAX_EPISODE_STEPS, hint_steps=self.hint_steps)
        if self.output is not None and (self.output.is_dir() or not self.output.absolute().parent.is_dir()):
            raise UserError(f"--output {self.output}: give a file in a folder that exists")
        if self.pictures is not None and self.pictures.exists() and not self.pictures.is_dir():
            raise UserError(f"--pictures {self.pictures}: is a file; give a folder")


def trained_hint_steps(checkpoint: Path) -> int:
    """Observations that showed the hint in training, from the run's config.yaml; 1 for a checkpoint without a run."""
    config = checkpoint.parents[1] / "config.yaml"
    return int(load_yaml(config).get("hint_steps", 1)) if config.exists() else 1


def evaluate(options: Options) -> dict[int, dict[str, float]]:
    """Success and delay by length; prints one line per length."""
    path = resolve_checkpoint(options.checkpoint)
    model = load_model(path, device=pick_device(options.device))
    if model.spec != SPEC:
        raise UserError(f"{path} was trained in another environment: its spec is {model.spec}")
    hint_steps = trained_hint_steps(path) if options.hint_steps is None else options.hint_steps

    acting = {
        "hint_steps": hint_steps,
        "target_return": options.target_return,
        "slide": options.slide,
        "precision": options.precision,
    }
    print(f"{path}: {options.episodes} episodes per length{', memory knocked out' if options.knock_out else ''}")
    started = time.perf_counter()
    results = success_by_length(
        model,
        options.lengths,
        episodes=options.episodes,
        transform_memory=knock_out_memory if options.knock_out else None,
        **acting,
    )
    print(f"{'length':>9} {'success':>8} {'delay':>8}")
    for length, result in results.items():
        print(f"{length:9d} {result['success_rate']:8.2f} {result['mean_delay']:8.2f}")
    print(f"{time.perf_counter() - started:.1f} s")
    if options.pictures is not None:
        draw_maps(model, options.pictures, hint_steps=hint_steps)
        known = None if options.knock_out else {length: result["success_rate"] for length, result in results.items()}
        curve = options.pictures / "knock_out.png"
        knock_out_curve(model, options.lengths, options.episodes, curve, intact=known, **acting)
        print(f"pictures: {options.pictures}")
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog=SCRIPT, description="Evaluate a checkpoint on T-Maze.")
        results = evaluate(options)
        if options.output is not None:
            document = {"checkpoint": str(options.checkpoint), "episodes": options.episodes, "results": results}
            try:
                atomic_write_text(options.output, json.dumps(document, indent=2) + "\n")
            except OSError as error:
                raise UserError(f"--output {options.output} cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    main()
