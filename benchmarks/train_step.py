"""Time and memory of training on one batch, compared with a plain training loop.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --n_layer 2 --n_head 2 --d_head 32 --rounds 10 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch

from benchmarks import common, shares
from benchmarks.flops import training_flops
from benchmarks.plain import PlainTraining, make_batch, make_meta, make_model, remembered_tables
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict, updated
from RATE_model.cli.settings import ModelOptions, TrainOptions, at_least
from RATE_model.data.batch import Batch
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests import reference
from TMaze_new.TMaze_new_src.env import SPEC

# The published way (gradients inside a segment, one optimizer step for each) and ours (through all segments, one step).
WINDOWS = {0: "one segment", -1: "all segments"}

# Largest difference of the mean loss of a batch that counts as equal, in nats.
ALLOWED_LOSS = {"32": 1e-4, "bf16": 2e-2}


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure."""

    # Steps of a segment (K), segments of a trajectory (N), trajectories of a batch
    context_length: int = 30
    segments: int = 3
    batch_size: int = 64
    # Precisions to measure; the plain loop always runs in float32
    precisions: tuple[Literal["32", "bf16"], ...] = ("32", "bf16")
    # Forms of attention to measure, as for the train scripts
    attention: tuple[Literal["auto", "shared", "blocks", "whole", "fused"], ...] = ("auto",)
    # Timed rounds; each runs everything once
    rounds: int = 5
    # Also time the plain loop (which takes most of the time)
    plain: Boolean = True
    # Measure peak memory with trajectories of this many segments; none = skip
    memory_segments: tuple[int, ...] = (3, 6, 12)
    # Size of the matrices whose product measures the machine's speed
    matrix_size: int = common.MATRIX_SIZE
    # Print the shares of a batch's time by phase and kind of operation
    profile: Boolean = False
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the table into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, context_length=self.context_length, segments=self.segments, batch_size=self.batch_size)
        at_least(1, rounds=self.rounds, matrix_size=self.matrix_size)
        at_least(0, threads=self.threads)
        for segments in self.memory_segments:
            at_least(1, memory_segments=segments)
        common.check_output(self.output)


@dataclass(frozen=True)
class Options:
    """All flags of this script."""

    # The published sizes. Ours uses dropout, the plain loop does not.
    model: ModelOptions = field(default_factory=lambda: updated(ModelOptions(), {"skip_dec_ffn": True}))
    measure: MeasureOptions = field(default_factory=MeasureOptions)

    def validate(self) -> None:
        """Raise a UserError if these sizes are invalid."""
        self.model_config()

    def model_config(self, **changes: Any) -> RATEConfig:
        """The model's sizes, with changes."""
        measure = self.measure
        sizes = self.model.agent_config(context_length=measure.context_length, segments=measure.segments).sizes
        if not isinstance(sizes, RATEConfig):
            raise UserError(f"--model_mode {self.model.model_mode}: only RATE and its ablations are measured")
        return replace(sizes, **changes)


def train_options(bptt_segments: int, precision: str = "32", attention: str = "auto") -> TrainOptions:
    """Options of both loops. Weight decay costs the same on all weights or on some."""
    return TrainOptions(bptt_segments=bptt_segments, precision=precision, weight_decay=0.0, attention=attention)


def make_trainer(
    config: RATEConfig, weights: reference.Weights, *, bptt_segments: int, precision: str, attention: str = "auto"
) -> Trainer:
    """Ours, at a constant learning rate."""
    options = train_options(bptt_segments, precision, attention)
    return Trainer(make_model(config, weights), options, Schedule(0, None, 0, 1.0))


def check_losses(options: Options, batches: int = 2) -> dict[str, float]:
    """Train both on the same small batches, without dropout; returns the largest difference of the losses by kind.

    Raises:
        RuntimeError: the losses differ.
    """
    measure = options.measure
    config = options.model_config(dropout=0.0, dropatt=0.0)
    meta = make_meta(config, batch_size=min(4, measure.batch_size), segments=measure.segments)
    weights = reference.random_weights(meta, seed=1)
    differences = {}
    for bptt_segments, window in WINDOWS.items():
        plain = PlainTraining(weights, meta, train_options(bptt_segments))
        data = [make_batch(meta, seed=seed) for seed in range(batches)]
        expected = [plain.train_batch(batch) for batch in data]
        for precision in measure.precisions:
            ours = make_trainer(config, weights, bptt_segments=bptt_segments, precision=precision)
            losses = [ours.train_batch(batch)["train_loss"].item() for batch in data]
            name = f"{window}, {precision}"
            difference = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
            differences[name] = common.check_agreement(f"losses ({name})", difference, ALLOWED_LOSS[precision])
    return differences


def timings(options: Options) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Time everything, alternating, in this process: one row each, and the speed of matrix products in GFLOP/s."""
    measure = options.measure
    config = options.model_config()
    meta = make_meta(config, batch_size=measure.batch_size, segments=measure.segments)
    weights, batch = reference.random_weights(meta, seed=1), make_batch(meta)
    rows: dict[str, dict[str, Any]] = {}
    candidates: dict[str, Callable[[], float | None]] = {}
    for bptt_segments, window in WINDOWS.items():
        for precision, attention in itertools.product(measure.precisions, measure.attention):
            given = {"bptt_segments": bptt_segments, "precision": precision, "attention": attention}
            ours = make_trainer(config, weights, **given)
            name = f"ours, {window}, {precision}, {attention}"
            candidates[name] = _discard(ours.train_batch, batch)
            rows[name] = {"implementation": "ours", **given}
            rows[name]["flops"] = training_flops(
                config, SPEC, batch_size=measure.batch_size, segments=measure.segments, bptt_segments=bptt_segments
            )
        if measure.plain:
            name = f"plain, {window}"
            candidates[name] = _discard(PlainTraining(weights, meta, train_options(bptt_segments)).train_batch, batch)
            rows[name] = {"implementation": "plain", "bptt_segments": bptt_segments, "precision": "32"}
    for precision in measure.precisions:
        candidates[precision] = common.matrix_product(precision, measure.matrix_size)
    with remembered_tables():
        seconds = common.interleave(candidates, rounds=measure.rounds)
    gflops = {
        precision: common.product_flops(measure.matrix_size) / min(seconds[precision]) / 1e9
        for precision in measure.precisions
    }
    for name, row in rows.items():
        row |= common.summary(seconds[name])
        if row["implementation"] == "ours":
            row["share"] = row["flops"] / row["median_s"] / (gflops[row["precision"]] * 1e9)
            if measure.plain:
                row["ratio"] = common.ratio(seconds[f"plain, {WINDOWS[row['bptt_segments']]}"], seconds[name])
    return list(rows.values()), gflops


def profiles(options: Options) -> dict[str, dict[str, dict[str, float]]]:
    """Shares of a batch's time by precision, with gradients through all segments."""
    measure, config = options.measure, options.model_config()
    meta = make_meta(config, batch_size=measure.batch_size, segments=measure.segments)
    weights, batch = reference.random_weights(meta, seed=1), make_batch(meta)
    found = {}
    for precision in measure.precisions:
        ours = make_trainer(config, weights, bptt_segments=-1, precision=precision)
        ours.train_batch(batch)  # warm-up
        found[precision] = shares.shares(_discard(ours.train_batch, batch))
    return found


def _discard(train_batch: Callable[[Any], object], batch: object) -> Callable[[], None]:
    """A candidate for `interleave` that trains on the batch."""

    def run() -> None:
        train_batch(batch)

    return run


def peak_memory(options: Options, segments: int, bptt_segments: int, precision: str) -> float | None:
    """MiB for training on one batch, beyond libraries, model and batch; run in a new process. None: unknown."""
    common.set_threads(options.measure.threads)
    config = options.model_config()

    def prepare(batch_size: int, segments: int) -> tuple[Trainer, Batch]:
        meta = make_meta(config, batch_size=batch_size, segments=segments)
        weights = reference.random_weights(meta, seed=1)
        trainer = make_trainer(config, weights, bptt_segments=bptt_segments, precision=precision)
        return trainer, make_batch(meta)

    trainer, batch = prepare(1, 1)
    trainer.train_batch(batch)  # libraries allocate some memory once
    trainer, batch = prepare(options.measure.batch_size, segments)
    before = common.memory_mib()
    trainer.train_batch(batch)
    after = common.memory_mib()
    return None if before is None or after is None else after[1] - before[0]


def memory_rows(options: Options) -> list[dict[str, Any]]:
    """Peak memory by number of segments."""
    rows = []
    for bptt_segments in WINDOWS:
        for precision in options.measure.precisions:
            for segments in options.measure.memory_segments:
                peak = common.in_fresh_process(peak_memory, options, segments, bptt_segments, precision)
                rows.append(
                    {"bptt_segments": bptt_segments, "precision": precision, "segments": segments, "peak_mib": peak}
                )
    return rows


def format_tables(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    header = [
        "one batch",
        "gradients through",
        "precision",
        "attention",
        "median s",
        "min s",
        "times faster",
        "GFLOP",
        "share",
    ]
    rows = [
        [
            row["implementation"],
            WINDOWS[row["bptt_segments"]],
            row["precision"],
            row.get("attention", ""),
            f"{row['median_s']:.3g}",
            f"{row['min_s']:.3g}",
            f"{row['ratio']:.1f}" if "ratio" in row else "",
            f"{row['flops'] / 1e9:.4g}" if "flops" in row else "",
            f"{row['share']:.0%}" if "share" in row else "",
        ]
        for row in result["timings"]
    ]
    parts = [common.machine_line(result["machine"], result["matrix_product_gflops"]), common.table(header, rows)]
    if result["memory"]:
        lengths = sorted({row["segments"] for row in result["memory"]})
        peaks: dict[tuple[int, str], dict[int, float | None]] = {}
        for row in result["memory"]:
            peaks.setdefault((row["bptt_segments"], row["precision"]), {})[row["segments"]] = row["peak_mib"]
        rows = [
            [WINDOWS[bptt], precision, *("?" if peak[n] is None else f"{peak[n]:.0f}" for n in lengths)]
            for (bptt, precision), peak in peaks.items()
        ]
        header = ["peak MiB, gradients through", "precision", *(f"N = {n}" for n in lengths)]
        parts.append(common.table(header, rows))
    for precision, found in result["profile"].items():
        lines = "; ".join(shares.words(part) for part in found.values())
        parts.append(f"Where the time of a batch goes ({precision}, all segments): {lines}.")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, measure, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/train_step.py",
            description="Time and memory of training on one batch.",
        )
        measure = options.measure
        common.set_threads(measure.threads)
        torch.manual_seed(0)
        print("checking that losses agree with the plain implementation ...")
        agreement = check_losses(options)
        print("timing ...")
        rows, gflops = timings(options)
        print("measuring memory ...")
        result = {
            "benchmark": "train_step",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            "loss_differences": agreement,
            "matrix_product_gflops": gflops,
            "timings": rows,
            "memory": memory_rows(options),
            "profile": profiles(options) if measure.profile else {},
        }
        common.publish(
            "train_step", format_tables(result), result, output=measure.output, update_readme=measure.update_readme
        )


if __name__ == "__main__":
    main()
