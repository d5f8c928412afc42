"""Speed-up by several processes: time of optimizer steps and of messages between processes, for published models.

    python benchmarks/scale.py
    python benchmarks/scale.py --output FILE.json
    python benchmarks/scale.py --parts speed          # only compare steps of two processes with those of one

Measured with one thread per process:

    speed    steps of a small model by one process and by two, alternating
    step     the CPU time of a step of each published model as a function of the trajectories in it, and the sum of
             gradients over two processes of this machine; from these, the time of a step with 2 to 64 processes

See docs/scale.md.
"""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch

from benchmarks import common
from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.options import check_choice, exit_on_user_error, parse_options
from RATE_model.cli.settings import TrainOptions, at_least
from RATE_model.data.batch import Batch
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig, apply_mode
from RATE_model.protocol.statistics import bootstrap
from RATE_model.spec import EnvironmentSpec
from RATE_model.system import distributed
from RATE_model.system.atomic import atomic_write_json
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer

PROCESSES = (1, 2, 4, 8, 16, 32, 64)
# Messages per batch besides the gradient: steps of windows, metrics, and signals and clock.
SMALL_MESSAGES = 4
# Assumed networks: seconds per message, and bytes per second.
NETWORKS = {"10 Gbit/s Ethernet": (50e-6, 1.25e9), "100 Gbit/s InfiniBand": (5e-6, 12.5e9)}


@dataclass(frozen=True)
class Model:
    """A published model, and its training batch."""

    spec: EnvironmentSpec
    batch_size: int
    context_length: int
    sizes: dict[str, int]


def _image(shape: tuple[int, ...], actions: int, **more: Any) -> EnvironmentSpec:
    return EnvironmentSpec(observation_shape=shape, num_actions=actions, observation_scale=1 / 255, **more)


def _sizes(layers: int, heads: int, width: int, tokens: int, valve_heads: int, cache: int) -> dict[str, int]:
    """RATE's sizes, from the flags of an environment's config.yaml."""
    names = ("n_layer", "n_head", "d_model", "d_head", "d_inner", "num_mem_tokens", "n_head_ca", "mem_len")
    return dict(zip(names, (layers, heads, width, width, width, tokens, valve_heads, cache), strict=True))


_TMAZE = EnvironmentSpec(observation_shape=(4,), num_actions=4, action_embeddings=5)
_ROBOT = EnvironmentSpec(observation_shape=(17,), num_actions=6, continuous=True)
MODELS = {
    "T-Maze": Model(_TMAZE, 64, 30, _sizes(8, 10, 64, 5, 4, 0)),
    "Minigrid-Memory": Model(_image((3, 84, 84), 3, action_embeddings=4), 64, 10, _sizes(8, 10, 64, 5, 2, 2)),
    "ViZDoom-Two-Colors": Model(_image((3, 64, 112), 5), 64, 30, _sizes(6, 8, 128, 5, 2, 2)),
    "Memory Maze": Model(_image((3, 64, 64), 6, conv_padding=2), 64, 30, _sizes(6, 8, 64, 5, 2, 2)),
    "Atari": Model(_image((4, 84, 84), 4), 128, 30, _sizes(6, 8, 128, 15, 1, 360)),
    "MuJoCo": Model(_ROBOT, 4096, 20, _sizes(3, 1, 128, 5, 1, 210)),
}
SEGMENTS = 3
# The model for measuring two processes: T-Maze with two layers, whose step takes a few hundred milliseconds.
SMALL = Model(_TMAZE, 64, 30, _sizes(2, 2, 64, 5, 4, 0))

Part = Literal["speed", "step"]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Trajectories of the two batches from which the time of a step is computed
    rows: tuple[int, ...] = (2, 6)
    # What to measure
    parts: tuple[Part, ...] = ("speed", "step")
    # Timed rounds of a step of each model
    rounds: int = 3
    # Timed pairs of a step of one process and a step of two
    pairs: int = 40
    # Models, by name; empty: all
    models: tuple[str, ...] = ()
    # Write the figures to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if len(self.rows) != 2 or not 1 <= self.rows[0] < self.rows[1]:
            raise UserError(
                f"--rows {' '.join(map(str, self.rows))}: give two numbers of trajectories, the smaller first"
            )
        at_least(1, rounds=self.rounds)
        at_least(2, pairs=self.pairs)
        for name in self.models:
            check_choice(list(MODELS), models=name)
        common.check_output(self.output)


def make_trainer(model: Model) -> Trainer:
    """A trainer of a new agent, through all segments, with one optimizer step per batch."""
    torch.manual_seed(0)
    sizes = apply_mode(RATEConfig(context_length=model.context_length, **model.sizes), mode="RATE", segments=SEGMENTS)
    return Trainer(Agent(AgentConfig("RATE", sizes), model.spec), TrainOptions(), Schedule(0, None, 0, 1.0))


def make_batch(model: Model, rows: int) -> Batch:
    """Random trajectories without padding."""
    steps, spec, generator = SEGMENTS * model.context_length, model.spec, torch.Generator().manual_seed(1)
    shape = (rows, steps, *spec.observation_shape)
    if spec.is_image:
        observations = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    else:
        observations = torch.randn(shape, generator=generator)
    actions = torch.rand(rows, steps, spec.num_actions) if spec.continuous else torch.randint(3, (rows, steps))
    valid = torch.ones(rows, steps, dtype=torch.bool)
    rtg = torch.rand(rows, steps, generator=generator)
    return Batch(observations, actions, rtg, valid, torch.full((rows,), steps), torch.arange(rows))


def step_seconds(model: Model, rows: Sequence[int], rounds: int) -> tuple[float, float, int]:
    """CPU seconds of a step (fixed part, and part per trajectory), and the number of parameters."""
    trainer = make_trainer(model)
    batches = [make_batch(model, count) for count in rows]
    times: list[list[float]] = [[] for _ in rows]
    for number in range(rounds + 1):
        for place, batch in enumerate(batches):
            start = time.process_time()
            trainer.train_batch(batch)
            if number:  # the first is a warm-up
                times[place].append(time.process_time() - start)
    fast, slow = (min(found) for found in (times[0], times[-1]))
    each = (slow - fast) / (rows[-1] - rows[0])
    return max(0.0, fast - rows[0] * each), each, sum(p.numel() for p in trainer.model.parameters())


def message_seconds(floats: Sequence[int], repeats: int = 30) -> list[float]:
    """Seconds for two local processes to sum this many floats; the fastest of several."""
    return _by_two(partial(_sum_up, list(floats), repeats))[0]


def _sum_up(floats: list[int], repeats: int) -> list[float]:
    found = []
    for count in floats:
        tensor, times = torch.zeros(count), []
        for _ in range(repeats):
            start = time.perf_counter()
            distributed.sum_tensor(tensor)
            times.append(time.perf_counter() - start)
        found.append(min(times))
    return found


def _by_two(work: Callable[[], Any]) -> list[Any]:
    """The results of `work` in two single-threaded processes of one group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(2)]
    processes = [
        context.Process(target=_one_of_two, args=(number, port, work, theirs))
        for number, (_, theirs) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    found = [ours.recv() for ours, _ in pipes]
    for process in processes:
        process.join()
    return found


def _one_of_two(number: int, port: str, work: Callable[[], Any], pipe: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with distributed.process_group():
        found = work()
    pipe.send(found)


def paired_steps(pairs: int, rows: int = SMALL.batch_size) -> dict[str, np.ndarray]:
    """Seconds of alternating optimizer steps of the small model, (pairs,) each, by kind.

    The speed of a shared machine changes within seconds; each step takes less than one.

        alone    process 0, the whole batch; the other process sleeps
        half     process 0, half the batch; the other process sleeps
        both     two processes, half the batch each

    These keys are wall-clock times; with " CPU" appended, the CPU time of the slower process.
    """
    first, second = _by_two(partial(_step_in_turn, pairs, rows))
    return {name: np.maximum(times, second.get(name, times)) for name, times in first.items()}


def _step_in_turn(pairs: int, rows: int) -> dict[str, np.ndarray]:
    found: dict[str, list[float]] = {}
    own = make_batch(SMALL, len(range(rows)[distributed.row_slice(rows)]))
    together = make_trainer(SMALL)
    lonely: list[tuple[str, Trainer, Batch]] = []

    def step(name: str, trainer: Trainer, batch: Batch) -> None:
        clock, cpu = time.perf_counter(), time.process_time()
        trainer.train_batch(batch)
        distributed.signal_in_any(None)  # as the training loop does after a batch
        distributed.any_process(False)
        found.setdefault(name, []).append(time.perf_counter() - clock)
        found.setdefault(f"{name} CPU", []).append(time.process_time() - cpu)

    def prepare() -> None:
        lonely.extend(
            ("alone" if size == rows else "half", make_trainer(SMALL), make_batch(SMALL, size))
            for size in (rows, len(own))
        )

    def step_alone() -> None:
        for work in lonely:
            step(*work)

    distributed.run_on_first(prepare)
    for _ in range(pairs + 1):
        distributed.run_on_first(step_alone)
        distributed.any_process(False)  # start both at the same time
        step("both", together, own)
    return {name: np.array(times[1:]) for name, times in found.items()}  # the first is a warm-up


def speed_table(found: dict[str, np.ndarray]) -> str:
    """The figures of `paired_steps`: medians of the ratios within a pair, with 95 % intervals."""
    rows = []
    for kind, suffix in (("the clock", ""), ("CPU time", " CPU")):
        alone, half, both = (found[name + suffix] for name in ("alone", "half", "both"))
        ratios = [_interval(a / b) for a, b in ((alone, both), (alone, half), (both, half))]
        rows.append([kind, f"{median(alone):.3f} s", *ratios])
    return common.table(
        ["by", "step of one process", "two are faster by", "half a batch alone is faster by", "both take longer by"],
        rows,
    )


def _interval(ratios: np.ndarray) -> str:
    """The median and its interval."""
    found = bootstrap([ratios], lambda samples: np.median(samples, axis=-1))
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def messages(floats: int, processes: int, delay: float, bandwidth: float) -> float:
    """Seconds of all messages of a step; a ring all-reduce sends 2 (P - 1) parts of 1 / P of the gradient each."""
    if processes == 1:
        return 0.0
    hops = 2 * (processes - 1)
    return (1 + SMALL_MESSAGES) * hops * delay + hops / processes * 4 * floats / bandwidth


def table(found: dict[str, dict[str, float]], delay: float, bandwidth: float) -> str:
    """Speed-up with P processes over one, and the share of messages in a step."""
    lines = [
        "| model | parameters | batch | " + " | ".join(f"P = {count}" for count in PROCESSES[1:]) + " |",
        "|---|---|---|" + "---|" * (len(PROCESSES) - 1),
    ]
    for name, figures in found.items():
        batch, floats = MODELS[name].batch_size, int(figures["parameters"])
        alone = figures["fixed_s"] + batch * figures["each_s"]
        cells = []
        for processes in PROCESSES[1:]:
            sent = messages(floats, processes, delay, bandwidth)
            step = figures["fixed_s"] + -(-batch // processes) * figures["each_s"] + sent
            cells.append(f"{alone / step:.1f} ({sent / step:.0%})" if processes <= batch else "")
        lines.append(f"| {name} | {floats / 1e6:.2f} M | {batch} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the figures and write them."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="python benchmarks/scale.py", description=__doc__)
        torch.set_num_threads(1)
        document: dict[str, Any] = {"machine": common.machine_facts(), "load_before": os.getloadavg()}
        print(f"{common.machine_line(document['machine'], {})} Load {os.getloadavg()[0]:.1f}.", flush=True)
        if "speed" in options.parts:
            document["speed"] = measure_speed(options)
        if "step" in options.parts:
            document |= measure_steps(options)
        if options.output is not None:
            atomic_write_json(options.output, document | {"load": os.getloadavg()})


def measure_speed(options: Options) -> dict[str, list[float]]:
    """Measure and print the speed-up by two processes."""
    found = paired_steps(options.pairs)
    print(f"\n{options.pairs} pairs of steps, RATE of two layers, {SMALL.batch_size} trajectories of 90 steps:\n")
    print(f"{speed_table(found)}\n\nLoad {os.getloadavg()[0]:.1f} at the end.", flush=True)
    return {name: times.tolist() for name, times in found.items()}


def measure_steps(options: Options) -> dict[str, Any]:
    """Measure and print the time of each model's step, and the computed speed-up by up to 64 processes."""
    found: dict[str, dict[str, float]] = {}
    print()
    for name in options.models or MODELS:
        fixed, each, parameters = step_seconds(MODELS[name], options.rows, options.rounds)
        found[name] = {"fixed_s": fixed, "each_s": each, "parameters": parameters}
        print(f"{name}: {fixed:.3f} s and {each:.4f} s a trajectory", flush=True)
    largest = max(int(figures["parameters"]) for figures in found.values())
    small, large = (median(times) for times in zip(*(message_seconds([8, largest]) for _ in range(3)), strict=True))
    delay, bandwidth = small / 2, 4 * largest / max(large - small, 1e-9)
    networks = {"this machine, as measured": (delay, bandwidth), **NETWORKS}
    for name, (delay, bandwidth) in networks.items():
        print(f"\n{name}: {delay * 1e6:.0f} µs a message, {bandwidth / 1e9:.2f} GB/s\n")
        print(table(found, delay, bandwidth))
    return {"models": found, "small_s": small, "large_s": large, "floats": largest, "cpu_s": time.process_time()}


if __name__ == "__main__":
    main()
