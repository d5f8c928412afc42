"""What the processor's own speed allows: every operation of attention in training, timed alone, at its shapes.

    python benchmarks/roofline.py
    python benchmarks/roofline.py --batch_size 16

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # makes the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch
from torch import Tensor

from benchmarks import common, train_step
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.cli.settings import at_least
from RATE_model.memories.rate.blocks import Piece, step_pieces
from RATE_model.memories.rate.layout import Layout
from RATE_model.system.products import linear


@dataclass(frozen=True)
class Options:
    """All flags of this script."""

    # Trajectories of a batch, and segments of a trajectory; the model is the published one
    batch_size: int = 64
    segments: int = 3
    # Calls of every operation; the fastest counts
    calls: int = 20
    # Threads of torch
    threads: int = 1
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the table into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, segments=self.segments, calls=self.calls, threads=self.threads)
        common.check_output(self.output)


def operations(piece: Piece, batch: int, width: int, dtype: torch.dtype) -> list[tuple[str, Callable[[], Tensor], int]]:
    """Of one block, forwards and backwards: kind, call, and operations of a product; see `blocks.BlockAttention`."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape).to(dtype)

    rows, inner, columns, distances = batch * piece.count, piece.heads * width, piece.width, piece.scores
    tokens, query, content, near = (
        random(rows, width),
        random(inner, width),
        random(rows, inner),
        random(rows, distances),
    )
    far, keys = random(distances, width), random(batch, columns, width)
    queries = random(batch, piece.count * piece.heads, width)
    scores = random(batch, piece.count * piece.heads, columns)
    shares, by_row = scores.softmax(-1), scores.transpose(1, 2)
    one, by_distance, batched = 2 * rows * width * inner, 2 * rows * width * distances, 2 * scores.numel() * width
    linear_, batched_ = "products with weights", "products by trajectory"
    return [
        (linear_, lambda: linear(tokens, query), one),
        (linear_, lambda: linear(tokens, far), by_distance),
        (batched_, lambda: torch.baddbmm(scores, queries, keys.transpose(1, 2)), batched),
        ("softmax", lambda: scores.softmax(-1), 0),
        (batched_, lambda: torch.bmm(shares, keys), batched),
        (linear_, lambda: linear(content, query.t()), one),
        # backwards
        (linear_, lambda: linear(tokens.t(), content.t()), one),
        (linear_, lambda: linear(tokens, query), one),
        (batched_, lambda: torch.bmm(queries, keys.transpose(1, 2)), batched),
        (batched_, lambda: torch.bmm(by_row, queries), batched),
        ("softmax", lambda: torch.ops.aten._softmax_backward_data(scores, shares, -1, dtype), 0),
        (batched_, lambda: torch.bmm(by_row, queries), batched),
        (batched_, lambda: torch.bmm(scores, keys), batched),
        (linear_, lambda: linear(content, query.t()), one),
        (linear_, lambda: linear(near, far.t()), by_distance),
        (linear_, lambda: linear(tokens.t(), content.t()), one),
        (linear_, lambda: linear(tokens.t(), near.t()), by_distance),
        # scores by distance to scores by column, and back
        ("copies", lambda: piece.by_column(near).contiguous(), 0),
        ("copies", lambda: piece.by_column(near).copy_(scores.view(batch, piece.count, piece.heads, columns)), 0),
    ]


def best(call: Callable[[], Tensor], calls: int) -> float:
    """Seconds of the fastest call, which nothing else interrupted."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


@torch.inference_mode()
def measure(options: Options) -> list[dict[str, Any]]:
    """By precision and kind: seconds a batch, and GFLOP/s of products."""
    config = train_step.Options().model_config()
    layout = Layout(steps=config.context_length, tokens=config.num_mem_tokens, cached=0)
    found = []
    for precision in ("32", "bf16"):
        seconds, flops = defaultdict(float), defaultdict(int)
        for last in (False, True):
            times = options.segments * (1 if last else config.n_layer - 1)
            for piece in step_pieces(layout.step_rows(last=last), cached=0, columns=layout.length, heads=config.n_head):
                for block in piece.blocks(options.batch_size, common.DTYPES[precision]):
                    size = block.stop - block.start
                    for kind, call, count in operations(piece, size, config.d_model, common.DTYPES[precision]):
                        seconds[kind] += times * best(call, options.calls)
                        flops[kind] += times * count
        found += [
            {"precision": precision, "kind": kind, "seconds": taken, "gflops": flops[kind] / taken / 1e9}
            for kind, taken in seconds.items()
        ]
    return found


def format_tables(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = [
        [row["precision"], row["kind"], f"{row['seconds'] * 1e3:.0f}", f"{row['gflops']:.0f}" if row["gflops"] else ""]
        for row in result["operations"]
    ]
    for precision in dict.fromkeys(row["precision"] for row in result["operations"]):
        total = sum(row["seconds"] for row in result["operations"] if row["precision"] == precision)
        rows.append([precision, "all", f"{total * 1e3:.0f}", ""])
    table = common.table(["precision", "operations of attention", "ms a batch", "GFLOP/s"], rows)
    return f"{common.machine_line(result['machine'], {})}\n\n{table}"


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/roofline.py",
            description="What the processor's own speed allows in training.",
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "roofline",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            "operations": measure(options),
        }
        common.publish(
            "roofline", format_tables(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
