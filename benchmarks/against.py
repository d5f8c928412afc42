"""Time of training and acting, against another checkout of this repository.

    git worktree add --detach /tmp/before 25a9094
    python benchmarks/against.py --other /tmp/before
    python benchmarks/against.py --other /tmp/before --cases "act*" --rounds 20 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from statistics import median
from typing import Any

_HERE = Path(__file__).resolve().parents[1]
if __name__ == "__main__":  # started as a script
    # Makes a checkout importable: this one, or the one whose code a worker is to time.
    sys.path[0] = sys.argv[2] if sys.argv[1:2] == ["work"] else str(_HERE)

import torch  # noqa: E402

from benchmarks import common, rollout, train_step  # noqa: E402

# By way of a script, because an old checkout has them elsewhere.
from benchmarks.rollout import (  # noqa: E402
    Boolean,
    UserError,
    at_least,
    exit_on_user_error,
    parse_options,
)

# A round of a short case repeats it for about this long: single runs of a few milliseconds vary too much.
_ROUND_SECONDS = 0.3
_FAST = {"n_layer": 2, "n_head": 2, "d_head": 32, "dropout": 0.0}
_MEMORY = {"mem_len": 90}


@dataclass(frozen=True)
class Case:
    """What is timed: a training batch, or acting for one segment; the sizes are the published ones, with changes."""

    acts: bool
    sizes: dict[str, Any] = field(default_factory=dict)  # fields of the memory's configuration
    batch_size: int = 64
    segments: int = 3
    bptt_segments: int = -1
    precision: str = "32"


CASES = {
    "train, published": Case(False),
    "train, published, bf16": Case(False, precision="bf16"),
    "train, published, one segment": Case(False, bptt_segments=0),
    "train, published, 8 trajectories": Case(False, batch_size=8),
    "train, published, cache": Case(False, _MEMORY, batch_size=16),
    "train, config_fast": Case(False, {**_FAST, "context_length": 10}, segments=9),
    "act, published": Case(True, batch_size=100),
    "act, published, bf16": Case(True, batch_size=100, precision="bf16"),
    "act, published, 1 episode": Case(True, batch_size=1),
    "act, published, cache": Case(True, _MEMORY, batch_size=100),
    "act, config_fast": Case(True, {**_FAST, "context_length": 10}, batch_size=100),
    "act, config_fast, K = 30": Case(True, _FAST, batch_size=100),
    "act, config_fast, 1000 episodes": Case(True, {**_FAST, "context_length": 10}, batch_size=1000),
}


def prepare(case: Case) -> Callable[[], object]:
    """What is timed, with the code of the checkout that was imported, which may be years older than this script."""
    torch.manual_seed(0)
    if case.acts:
        config = replace(rollout.Options().model_config(), **case.sizes)
        weights, _ = rollout.make_weights(config)
        actor = rollout.Actor(
            rollout.make_model(config, weights).eval(), case.batch_size, 1.0, precision=case.precision
        )
        episodes = rollout.Episodes(actor, config.context_length)
        return lambda: episodes.advance(config.context_length)
    config = replace(train_step.Options().model_config(), **case.sizes)
    try:
        meta = train_step.make_meta(config, batch_size=case.batch_size, segments=case.segments)
    except TypeError:  # as they were called first
        meta = train_step.make_meta(config, batch_size=case.batch_size, **{"sections": case.segments})
    weights, batch = train_step.reference.random_weights(meta, seed=1), train_step.make_batch(meta)
    trainer = train_step.make_trainer(config, weights, bptt_segments=case.bptt_segments, precision=case.precision)
    return lambda: trainer.train_batch(batch)


def work(name: str, threads: int) -> None:
    """Run a case once for every line on standard input; answer each with processor and wall-clock seconds."""
    common.set_threads(threads)
    run = prepare(CASES[name])
    for _ in sys.stdin:
        clock, processor = time.perf_counter(), time.process_time()
        run()
        print(time.process_time() - processor, time.perf_counter() - clock, flush=True)


class Worker:
    """A process that times a case with the code of one checkout."""

    def __init__(self, tree: Path, name: str, threads: int) -> None:
        command = [sys.executable, str(Path(__file__).resolve()), "work", str(tree), name, str(threads)]
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": str(threads)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def seconds(self, repeats: int = 1) -> tuple[float, float]:
        """Processor and wall-clock seconds of one run, the mean of some in a row."""
        assert self._process.stdin is not None and self._process.stdout is not None
        print("\n" * (repeats - 1), file=self._process.stdin, flush=True)
        taken = [tuple(map(float, self._process.stdout.readline().split())) for _ in range(repeats)]
        processor, clock = (sum(kind) / repeats for kind in zip(*taken, strict=True))
        return processor, clock


def compare(name: str, options: "Options") -> dict[str, Any]:
    """Both checkouts in turn, in processes of their own: seconds and how many times faster this one is, by kind."""
    trees = {"this": _HERE, "other": options.other.resolve()}
    seconds: dict[str, list[tuple[float, float]]] = {who: [] for who in trees}
    with ExitStack() as stack:
        workers = [(who, stack.enter_context(Worker(tree, name, options.threads))) for who, tree in trees.items()]
        repeats = 1
        for number in range(-2, options.rounds):  # two rounds do not count
            for who, worker in workers[:: 1 if number % 2 else -1]:
                taken = worker.seconds(repeats)
                if number == -1:
                    repeats = max(1, round(_ROUND_SECONDS / taken[1]))
                if number >= 0:
                    seconds[who].append(taken)
    found = {}
    for index, kind in enumerate(("processor", "clock")):
        this, other = ([pair[index] for pair in seconds[who]] for who in trees)
        ratios = [slow / fast for slow, fast in zip(other, this, strict=True)]
        found[kind] = {"this": common.summary(this), "other": common.summary(other), "ratios": ratios}
    return found


@dataclass(frozen=True)
class Options:
    """All flags of this script."""

    # The other checkout
    other: Path = Path("before")
    # Cases whose names fit one of these patterns
    cases: tuple[str, ...] = ("*",)
    # Timed rounds; in each, both checkouts run the case once, short ones repeatedly
    rounds: int = 7
    # Threads of torch
    threads: int = 1
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the table into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, rounds=self.rounds, threads=self.threads)
        if not (self.other / "benchmarks" / "train_step.py").exists():
            raise UserError(f"--other {self.other}: is not a checkout of this repository")
        common.check_output(self.output)


def format_tables(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rows = []
    for name, found in result["cases"].items():
        processor, clock = found["processor"], found["clock"]
        rows.append(
            [
                name,
                f"{processor['other']['median_s'] * 1e3:.4g}",
                f"{processor['this']['median_s'] * 1e3:.4g}",
                f"{median(processor['ratios']):.2f}",
                f"{min(processor['ratios']):.2f}-{max(processor['ratios']):.2f}",
                f"{processor['other']['min_s'] / processor['this']['min_s']:.2f}",
                f"{median(clock['ratios']):.2f}",
            ]
        )
    header = ["case", "before, ms", "now, ms", "times faster", "range", "of the minima", "wall-clock"]
    load = ", ".join(f"{value:.0f}" for value in result["load"])
    line = f"{common.machine_line(result['machine'], {})} Load before and after: {load}. Rounds: {result['rounds']}."
    return f"{line}\n\n{common.table(header, rows)}"


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog="python benchmarks/against.py",
            description="Time of training and acting, against another checkout of this repository.",
        )
        before, found = os.getloadavg()[0], {}
        for name in CASES:
            if any(fnmatch(name, pattern) for pattern in options.cases):
                found[name] = compare(name, options)
                print(f"{name}: {median(found[name]['processor']['ratios']):.2f} times faster", flush=True)
        result = {
            "benchmark": "against",
            "machine": common.machine_facts(),
            "load": [before, os.getloadavg()[0]],
            "rounds": options.rounds,
            "cases": found,
        }
        common.publish(
            "against", format_tables(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[3], int(sys.argv[4]))
    else:
        main()
