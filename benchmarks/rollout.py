"""Time and memory of acting, early and late in an episode, compared with the published way to act.

    python benchmarks/rollout.py
    python benchmarks/rollout.py --lengths 90 900 --rounds 3 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch

from benchmarks import common
from benchmarks.flops import acting_flops
from benchmarks.plain import PlainActor, make_meta, make_model, remembered_tables
from RATE_model.acting.actor import Actor
from RATE_model.cli.options import Boolean, exit_on_user_error, load_yaml, parse_options, to_flat_dict, updated
from RATE_model.cli.settings import ModelOptions, at_least
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from tests import reference
from TMaze_new.TMaze_new_src.env import SPEC

FAST = common.ROOT / "TMaze_new" / "TMaze_new_src" / "config_fast.yaml"

# Largest difference of logits, in units of their standard deviation, that counts as equal.
ALLOWED_LOGITS = {"32": 1e-4, "bf16": 0.2}


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure."""

    # Steps of a segment (K)
    context_length: int = 30
    # Parallel episodes
    batch_size: int = 100
    # Episode lengths: memory is read at each, time around the first and after the last
    lengths: tuple[int, ...] = (90, 900, 9000)
    # Precisions to measure; the plain way always runs in float32
    precisions: tuple[Literal["32", "bf16"], ...] = ("32", "bf16")
    # Timed rounds of one segment
    rounds: int = 5
    # Also measure the small model of config_fast.yaml
    fast: Boolean = True
    # Size of the matrices whose product measures the machine's speed
    matrix_size: int = common.MATRIX_SIZE
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the table into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, context_length=self.context_length, batch_size=self.batch_size, rounds=self.rounds)
        at_least(1, matrix_size=self.matrix_size)
        at_least(0, threads=self.threads)
        if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < self.context_length:
            raise UserError(
                f"--lengths {' '.join(map(str, self.lengths))}: must rise, from --context_length {self.context_length}"
            )
        common.check_output(self.output)


@dataclass(frozen=True)
class Options:
    """All flags of this script."""

    # The published sizes
    model: ModelOptions = field(default_factory=lambda: updated(ModelOptions(), {"skip_dec_ffn": True}))
    measure: MeasureOptions = field(default_factory=MeasureOptions)

    def validate(self) -> None:
        """Raise a UserError for invalid sizes, or a model that does not act in segments."""
        if self.model_config().sliding:
            raise UserError(f"--model_mode {self.model.model_mode}: only models that act in segments are measured")

    def model_config(self) -> RATEConfig:
        """The model's sizes."""
        sizes = self.model.agent_config(context_length=self.measure.context_length, segments=1).sizes
        if not isinstance(sizes, RATEConfig):
            raise UserError(f"--model_mode {self.model.model_mode}: only RATE and its ablations are measured")
        return sizes


def with_fast_model(options: Options) -> Options:
    """The same measurement of the model of config_fast.yaml."""
    return replace(options, model=updated(ModelOptions(), load_yaml(FAST)))


def make_weights(config: RATEConfig) -> tuple[reference.Weights, dict]:
    """Random weights for both implementations, and the sizes under the plain one's names."""
    meta = make_meta(config, batch_size=1, segments=1)
    return reference.random_weights(meta, seed=1), meta


def check_logits(options: Options, precision: str) -> float:
    """Act with both in two episodes across two segment borders; returns the largest difference of their logits.

    Returns:
        The difference in units of the logits' standard deviation.

    Raises:
        RuntimeError: the logits differ.
    """
    config = options.model_config()
    weights, meta = make_weights(config)
    ours = Actor(make_model(config, weights).eval(), 2, 1.0, precision=precision)
    plain = PlainActor(weights, meta, 2, 1.0, full=True)
    logits, expected = [], []
    with remembered_tables():
        for observations in torch.randn(2 * config.context_length + 2, 2, *SPEC.observation_shape):
            logits.append(ours.observe(observations))
            expected.append(plain.observe(observations))
            actions = expected[-1].argmax(-1)
            ours.take(actions)
            plain.take(actions)
    wanted = torch.stack(expected)
    difference = ((torch.stack(logits) - wanted).abs().max() / wanted.std()).item()
    return common.check_agreement(f"logits ({precision})", difference, ALLOWED_LOGITS[precision])


class Episodes:
    """An actor in episodes of random observations without rewards, so the environment costs nothing.

    Args:
        actor: acts with a model for T-Maze.
        steps: period of the observations.
        clock: returns the time in seconds.
    """

    def __init__(self, actor: Actor, steps: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.actor, self.clock = actor, clock
        generator = np.random.default_rng(0)
        # One segment of observations, repeated, so longer episodes do not need more memory.
        shape = (steps, actor.batch_size, *SPEC.observation_shape)
        self.observations = generator.standard_normal(shape, dtype=np.float32)
        self.rewards = np.zeros(actor.batch_size, dtype=np.float32)
        self.step = 0

    def advance(self, steps: int) -> float:
        """Act for this many steps; returns seconds per step."""
        start = self.clock()
        for _ in range(steps):
            self.actor.act(self.observations[self.step % len(self.observations)], self.rewards)
            self.step += 1
        return (self.clock() - start) / steps

    def restart(self, steps: int) -> None:
        """Start new episodes and act for this many steps."""
        self.actor.reset()
        self.step = 0
        self.advance(steps)


def measure_case(options: Options, precision: str) -> dict[str, Any]:
    """Memory by episode length, then time per step, of one model; run in a new process."""
    measure, config = options.measure, options.model_config()
    common.set_threads(measure.threads)
    weights, meta = make_weights(config)
    model = make_model(config, weights).eval()

    def episodes(batch_size: int) -> Episodes:
        return Episodes(Actor(model, batch_size, 1.0, precision=precision), config.context_length)

    episodes(1).advance(config.context_length + 1)  # libraries allocate some memory once
    late = episodes(measure.batch_size)
    before, peaks = common.memory_mib(), []
    for length in measure.lengths:
        late.advance(length - late.step)
        after = common.memory_mib()
        peaks.append(None if before is None or after is None else after[1] - before[0])
    early = episodes(measure.batch_size)
    untimed = (measure.lengths[0] // config.context_length - 1) * config.context_length

    def act_early() -> float:
        early.restart(untimed)
        return early.advance(config.context_length)

    seconds = _time(
        {
            "early": act_early,
            "late": lambda: late.advance(config.context_length),
            "plain": lambda: _plain_step(weights, meta),
            "matrix": common.matrix_product(precision, measure.matrix_size),
        },
        measure.rounds,
    )
    gflops = common.product_flops(measure.matrix_size) / min(seconds["matrix"]) / 1e9
    flops = acting_flops(config, SPEC, batch_size=measure.batch_size)
    early_summary = common.summary(seconds["early"])
    return {
        "precision": precision,
        "early": early_summary,
        "late": common.summary(seconds["late"]),
        "late_by_early": common.ratio(seconds["late"], seconds["early"]),
        "plain_episode": common.summary(seconds["plain"]),
        "ratio": common.ratio(seconds["plain"], seconds["early"]) * measure.batch_size,
        "flops": flops,
        "matrix_product_gflops": gflops,
        "share": flops / early_summary["median_s"] / (gflops * 1e9),
        "peak_mib": dict(zip(map(str, measure.lengths), peaks, strict=True)),
    }


def _time(candidates: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    with remembered_tables():
        return common.interleave(candidates, rounds=rounds)


def _plain_step(weights: reference.Weights, meta: dict) -> float:
    """Seconds per step of one episode with the plain actor, over one whole segment.

    Every segment costs the same, so this holds for episodes of any length.
    """
    actor = PlainActor(weights, meta, 1, 1.0)
    steps = meta["segment_length"]
    observations = torch.randn(steps + 1, 1, *SPEC.observation_shape)
    actor.observe(observations[0])
    actor.take(torch.zeros(1, dtype=torch.int64))
    start = time.perf_counter()
    for current in observations[1:]:  # the last one closes the segment and begins the next
        actor.take(actor.observe(current).argmax(-1))
    return (time.perf_counter() - start) / steps


def format_tables(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    lengths = result["options"]["lengths"]
    episodes = result["options"]["batch_size"]
    header = ["model", "precision", f"ms a step at {lengths[0]}", f"at {lengths[-1]}", "late / early"]
    header += ["plain, ms a step of one episode", f"times faster for {episodes}", "GFLOP a step", "share"]
    rows, memory = [], []
    for case in result["cases"]:
        name = [case["model"], case["precision"]]
        rows.append(
            [
                *name,
                f"{case['early']['median_s'] * 1e3:.3g} (min {case['early']['min_s'] * 1e3:.3g})",
                f"{case['late']['median_s'] * 1e3:.3g} (min {case['late']['min_s'] * 1e3:.3g})",
                f"{case['late_by_early']:.2f}",
                f"{case['plain_episode']['median_s'] * 1e3:.3g}",
                f"{case['ratio']:.1f}",
                f"{case['flops'] / 1e9:.3g}",
                f"{case['share']:.0%}",
            ]
        )
        memory.append([*name, *("?" if peak is None else f"{peak:.0f}" for peak in case["peak_mib"].values())])
    speeds = {
        precision: max(case["matrix_product_gflops"] for case in result["cases"] if case["precision"] == precision)
        for precision in result["options"]["precisions"]
    }
    return "\n\n".join(
        [
            common.machine_line(result["machine"], speeds),
            common.table(header, rows),
            common.table(["peak MiB by episode length", "precision", *map(str, lengths)], memory),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, measure, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/rollout.py",
            description="Time and memory of acting.",
        )
        measure = options.measure
        common.set_threads(measure.threads)
        torch.manual_seed(0)
        models = {"as flags say": options}
        if measure.fast:
            models["config_fast"] = with_fast_model(options)
        cases = []
        for name, of_model in models.items():
            for precision in measure.precisions:
                print(
                    f"{name}, {precision}: checking that logits agree, acting {measure.lengths[-1]} steps, timing ..."
                )
                difference = check_logits(of_model, precision)
                case = common.in_fresh_process(measure_case, of_model, precision)
                if case is None:
                    raise UserError(f"{name}, {precision}: the process was killed, probably out of memory")
                cases.append({"model": name, "logit_difference": difference, **case})
        result = {
            "benchmark": "rollout",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            "cases": cases,
        }
        common.publish(
            "rollout", format_tables(result), result, output=measure.output, update_readme=measure.update_readme
        )


if __name__ == "__main__":
    main()
