"""Atari: time of a training batch of the published setting, and the share of its convolutions.

    python benchmarks/atari_training.py
    python benchmarks/atari_training.py --batch_size 16 --rounds 3 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch

from Atari.env import FRAME_STACK
from Atari.environment import ENVIRONMENT
from benchmarks import common
from benchmarks.train_step import WINDOWS
from RATE_model.agent import Agent
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.batch import Batch
from RATE_model.data.dopamine import FRAME_SHAPE
from RATE_model.data.frames import FrameStack
from RATE_model.encoders import TokenEncoder
from RATE_model.system.precision import autocast
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer

PUBLISHED = ("--game", "Breakout", "--skip_dec_ffn")
ENCODING = "frames alone, forward and backward"
_COLUMNS = {"share_of_frames": ".0%", "encodings_per_observation": "g"}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Windows of a training batch
    batch_size: int = 128
    # Windows computed at a time
    part: int = 16
    # float32, or bfloat16 products
    precision: str = "32"
    # Timed rounds; in each, everything runs once
    rounds: int = 1
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, part=self.part, rounds=self.rounds)
        at_least(0, threads=self.threads)
        common.check_output(self.output)


def make_batch(size: int, steps: int, actions: int) -> Batch:
    """Random windows without padding, as single frames."""
    generator = torch.Generator().manual_seed(0)
    shape = (size, steps + FRAME_STACK - 1, 1, *FRAME_SHAPE)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return Batch(
        observations=FrameStack(frames, FRAME_STACK),
        actions=torch.randint(actions, (size, steps), generator=generator),
        rtg=torch.rand(size, steps, generator=generator) * 100,
        valid=torch.ones(size, steps, dtype=torch.bool),
        lengths=torch.full((size,), steps),
        indices=torch.arange(size),
    )


def measure(options: Options) -> dict[str, Any]:
    """Timings in seconds, and how many observations a batch encoded."""
    config = ENVIRONMENT.read_config(PUBLISHED)
    spec, agent_config, segments = config.spec, config.agent_config(), config.task.segments
    steps = segments * config.task.context_length
    batch = make_batch(options.batch_size, steps, spec.num_actions)
    parts = max(1, -(-options.batch_size // options.part))
    candidates: dict[str, Callable[[], float | None]] = {}
    encoded = {}
    for bptt_segments, window in WINDOWS.items():
        torch.manual_seed(0)
        train = replace(
            config.train, bptt_segments=bptt_segments, accumulate=parts, precision=options.precision, ckpt_batches=None
        )
        trainer = Trainer(Agent(agent_config, spec), train, Schedule(1, None, 0, 1.0))
        name = f"batch, gradients through {window}"
        candidates[name] = _training(trainer, batch)
        encoded[name] = _count(trainer.model.encoder)
    candidates[ENCODING] = _encoding(trainer.model.encoder, batch, parts, segments, options.precision)
    seconds = common.interleave(candidates, rounds=options.rounds)
    cases: dict[str, dict[str, Any]] = {name: common.summary(values) for name, values in seconds.items()}
    for name, counts in encoded.items():
        # Every batch runs in a warm-up round and the timed ones; the encoder alone runs on the last model.
        runs = (options.rounds + 1) * (2 if name == [*encoded][-1] else 1)
        cases[name]["encodings_per_observation"] = sum(counts) / runs / (options.batch_size * steps)
        cases[name]["share_of_frames"] = cases[ENCODING]["median_s"] / cases[name]["median_s"]
    bytes_moved = batch.observations.frames.numel()
    stacked = options.batch_size * steps * FRAME_STACK * FRAME_SHAPE[0] * FRAME_SHAPE[1]
    return {"cases": cases, "batch_bytes": bytes_moved, "stacked_bytes": stacked}


def _training(trainer: Trainer, batch: Batch) -> Callable[[], None]:
    def run() -> None:
        trainer.train_batch(batch)

    return run


def _encoding(encoder: TokenEncoder, batch: Batch, parts: int, segments: int, precision: str) -> Callable[[], None]:
    """A candidate that encodes a batch's observations as training does, forward and backward."""
    rows = -(-len(batch) // parts)
    steps = batch.valid.shape[1] // segments

    def run() -> None:
        encoder.zero_grad()
        for row in range(0, len(batch), rows):
            dense = batch.observations[row : row + rows, :].dense()
            with autocast(torch.device("cpu"), precision):
                tokens = [encoder.encode_observations(part) for part in dense.split(steps, dim=1)]
            torch.cat(tokens, dim=1).float().sum().backward()

    return run


def _count(encoder: TokenEncoder) -> list[int]:
    """A list that gets the number of observations of every call of the encoder."""
    counts: list[int] = []
    encoder.observation.register_forward_hook(lambda module, inputs, outputs: counts.append(len(outputs)))
    return counts


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options = result["options"]
    rows = []
    for name, case in result["cases"].items():
        known = "encodings_per_observation" in case
        share, times = (
            (f"{case['share_of_frames']:.0%}", f"{case['encodings_per_observation']:g}") if known else ("", "")
        )
        rows.append([name, f"{case['median_s']:.1f}", f"{case['min_s']:.1f}", share, times])
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"{options['batch_size']} windows of 90 steps a batch, {options['part']} at a time, precision "
            f"{options['precision']}; a batch moves {result['batch_bytes'] / 1e6:.0f} MB of single frames; stacked, "
            f"{result['stacked_bytes'] / 1e6:.0f} MB.",
            common.table(["", "median s", "min s", "share of frames", "encodings of an observation"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/atari_training.py", description="Speed of training on Atari."
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "atari_training",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "atari_training", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
