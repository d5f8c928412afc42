"""Check this machine's GPU: tests, benchmarks, and one complete training.

    make gpu-check                                              # no network
    python benchmarks/gpu.py --parts benchmarks --rounds 50 --output_dir /tmp
    python benchmarks/gpu.py --device cpu --tiny true --output_dir /tmp    # the same code without a GPU

Writes results/gpu.md and results/gpu.json, even if something fails. See benchmarks/README.md for what is measured.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # before the slow imports below

import numpy as np
import torch

from benchmarks import common, shares, train_step
from benchmarks.plain import PlainTraining, make_batch, make_meta, make_model, remembered_tables
from benchmarks.vizdoom_training import PUBLISHED as VIZDOOM_PUBLISHED
from RATE_model.acting.actor import Actor
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.cli.settings import at_least
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.spec import EnvironmentSpec
from RATE_model.system.atomic import atomic_write_json, atomic_write_text
from RATE_model.system.precision import pick_device
from RATE_model.system.processes import available_cores
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests import reference
from tests.tmaze_runs import TINY
from TMaze_new.TMaze_new_src import train_tmaze
from TMaze_new.TMaze_new_src.env import SPEC
from VizDoom.VizDoom_src.env import SPEC as VIZDOOM_SPEC
from VizDoom.VizDoom_src.environment import ENVIRONMENT as VIZDOOM

Part = Literal["tests", "benchmarks", "training"]
TESTS = ("tests/test_gpu.py", "tests/RATE_model/data/test_windows.py")
# (attention, how, precision) of the training steps that are timed; --compile true is "compiled, graph".
Step = tuple[str, str, str]
STEPS: list[Step] = [
    ("whole", "eager", "32"),
    *((attention, how, "bf16") for how in ("eager", "graph") for attention in ("shared", "fused", "whole")),
    ("whole", "compiled, graph", "bf16"),
]
IMAGE_STEPS: list[Step] = [("whole", how, "bf16") for how in ("eager", "graph", "compiled, graph")]
PLAIN: Step = ("plain", "eager", "32")
LENGTHS = (90, 900, 9600)
# The published sizes with a setting that trains T-Maze with few batches.
TRAINING = [
    *("--config", str(common.ROOT / "TMaze_new" / "TMaze_new_src" / "config_fast.yaml")),
    *"--n_layer 8 --n_head 10 --d_head 64 --learning_rate 3e-4 --precision bf16 --seed 1".split(),
    *("--compile", "true", "--wandb_mode", "disabled", "--eval_lengths", *map(str, LENGTHS)),
]
_TINY_SIZES = {"n_layer": 1, "n_head": 2, "d_model": 16, "d_head": 8}


@dataclass(frozen=True)
class Options:
    """What to check, and on which device."""

    # The device to check: cuda, cuda:1, or cpu to test this script
    device: str = "cuda"
    # Tiny sizes that take seconds, to test this script
    tiny: Boolean = False
    # What to do
    parts: tuple[Part, ...] = ("tests", "benchmarks", "training")
    # Timed training steps and segments of acting; at most 5 of what is slow
    rounds: int = 20
    # Where gpu.md and gpu.json are written; none = results/, which only a complete check may replace
    output_dir: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a missing device, no parts, or a missing folder."""
        at_least(1, rounds=self.rounds)
        pick_device(self.device)
        if not self.parts:
            raise UserError(f"--parts is empty; give some of {', '.join(get_args(Part))}")
        if self.output_dir is None and (self.tiny or set(self.parts) != set(get_args(Part))):
            raise UserError("--output_dir is missing: only a check of all parts at full size replaces results/gpu.json")
        if not self.folder.is_dir():
            raise UserError(f"--output_dir {self.folder}: give an existing folder")

    @property
    def folder(self) -> Path:
        """Where results are written."""
        return common.ROOT / "results" if self.output_dir is None else self.output_dir


def facts(device: torch.device) -> dict[str, Any]:
    """The machine, the card and its driver."""
    found = common.machine_facts() | {"device": str(device), "cuda": torch.version.cuda, "card": None, "driver": None}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"card": properties.name, "memory_gib": round(properties.total_memory / 2**30, 1)}
        found["cudnn"] = torch.backends.cudnn.version()
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
            found["driver"] = answer.splitlines()[0].strip()
        except (OSError, subprocess.SubprocessError, IndexError):
            pass
    return found


def run_tests(device: torch.device) -> dict[str, Any]:
    """Run the tests marked gpu in separate processes, printing as they go; returns the summary and what failed.

    They see this card alone. On a CPU they are skipped; on a GPU that none has passed is a failure.
    """
    started = time.perf_counter()
    seen = dict(os.environ)
    if device.type == "cuda" and device.index is not None:
        cards = [card for card in seen.get("CUDA_VISIBLE_DEVICES", "").split(",") if card]
        seen["CUDA_VISIBLE_DEVICES"] = cards[device.index] if cards else str(device.index)
    parallel = ["-n", str(min(4, available_cores()))]  # what takes longest is compiling, on one core
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-m", "gpu", "-p", "no:cacheprovider", *parallel]
    lines: list[str] = []
    with subprocess.Popen([*command, *TESTS], cwd=common.ROOT, env=seen, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.strip())
    passed = device.type == "cpu" or bool(lines and " passed" in lines[-1])
    return {
        "ok": process.returncode == 0 and passed,
        "summary": lines[-1].strip("= ") if lines else f"exit {process.returncode}",
        "failed": [line for line in lines if line.startswith(("FAILED", "ERROR"))],
        "seconds": round(time.perf_counter() - started, 1),
    }


def timed(run: Callable[[], object], device: torch.device, rounds: int) -> dict[str, Any]:
    """Seconds of each call, including work on the device."""
    seconds = []
    for _ in range(rounds):
        wait_for(device)
        start = time.perf_counter()
        run()
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return common.summary(seconds)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Setting:
    """A published batch, and what trains on it.

    Attributes:
        env: the environment's key in `tests.reference.VARIANTS`.
        spec: its specification for our model.
        sizes: of the model.
        segments, batch_size: of the batch.
        steps: what is timed, besides the plain implementation.
    """

    env: str
    spec: EnvironmentSpec
    sizes: RATEConfig
    segments: int
    batch_size: int
    steps: Sequence[Step]


def settings(options: Options) -> dict[str, Setting]:
    """The published settings of T-Maze and ViZDoom-Two-Colors by name, with tiny models if asked for."""
    changes = _TINY_SIZES | {"d_inner": 16, "context_length": 4} if options.tiny else {}
    vizdoom = VIZDOOM.read_config(VIZDOOM_PUBLISHED).agent_config().sizes
    assert isinstance(vizdoom, RATEConfig)
    found = {
        "T-Maze": Setting("tmaze", SPEC, train_step.Options().model_config(), 3, 64, STEPS),
        "ViZDoom": Setting("doom", VIZDOOM_SPEC, vizdoom, 3, 64, IMAGE_STEPS),
    }
    small = {"batch_size": 4} if options.tiny else {}
    return {name: replace(each, sizes=replace(each.sizes, **changes), **small) for name, each in found.items()}


def attempt(run: Callable[[], dict[str, Any]], name: str = "error") -> dict[str, Any]:
    """What `run` finds, or why it failed under this name: the rest of the check goes on. Signals still end it."""
    try:
        return run()
    except SystemExit as end:
        if end.code != 2:
            raise
        return {name: "refused for the reason printed above"}
    except Exception as error:
        return {name: first_line(error)}


def first_line(error: Exception) -> str:
    """The error's kind and the first line of its message."""
    first, *_ = str(error).split("\n")
    return f"{type(error).__name__}: {first}"


def time_training(options: Options, device: torch.device, setting: Setting) -> Iterator[dict[str, Any]]:
    """One row per way to train on the setting's batch; a failed one has its error."""
    meta = make_meta(setting.sizes, batch_size=setting.batch_size, segments=setting.segments, env=setting.env)
    weights, batch = reference.random_weights(meta, seed=1), make_batch(meta)
    if device.type == "cuda":
        batch = batch.pin_memory()

    def ours(attention: str, how: str, precision: str) -> Callable[[], object]:
        trained = replace(train_step.train_options(-1, precision), attention=attention, compile="compiled" in how)
        trainer = Trainer(
            make_model(setting.sizes, weights, setting.spec).to(device), trained, Schedule(0, None, 0, 1.0)
        )
        trainer.captured = trainer.captured_passes() if "graph" in how else None
        return lambda: trainer.train_batch(batch)

    def plain() -> Callable[[], object]:
        moved = {name: weight.to(device) for name, weight in weights.items()}
        training, on_device = PlainTraining(moved, meta, train_step.train_options(-1)), batch.to(device)
        return lambda: training.train_batch(on_device)

    # Compiling takes most of a minute on a CPU.
    for step in [PLAIN, *(each for each in setting.steps if not (options.tiny and "compiled" in each[1]))]:
        row: dict[str, Any] = dict(zip(("attention", "how", "precision"), step, strict=True))
        is_plain, rounds = step == PLAIN, options.rounds if "graph" in step[1] else min(5, options.rounds)
        try:
            with remembered_tables():
                # The plain implementation makes its tables once, on the default device.
                with torch.device(device) if is_plain else nullcontext():
                    run = plain() if is_plain else ours(*step)
                    started = time.perf_counter()
                    for _ in range(5):  # the third call is captured
                        run()
                wait_for(device)
                row["warm_up_s"] = time.perf_counter() - started
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                row |= timed(run, device, rounds)
                if device.type == "cuda":
                    row["peak_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
                    row |= attempt(partial(shares.on_gpu, run), "uncounted")
        except Exception as error:  # measure the other rows
            row["error"] = first_line(error)
        torch.compiler.reset()
        print("  ", {name: value for name, value in row.items() if name != "seconds"}, flush=True)
        yield row


def time_acting(options: Options, device: torch.device, *, cuda_graphs: bool) -> dict[str, Any]:
    """Seconds of a step of 1000 T-Maze episodes at once, averaged over segments; `cuda_graphs` as in `Actor`."""
    config = settings(options)["T-Maze"].sizes
    meta = make_meta(config, batch_size=1, segments=1)
    model = make_model(config, reference.random_weights(meta, seed=1)).to(device).eval()
    episodes = 10 if options.tiny else 1000
    actor = Actor(model, episodes, 1.0, cuda_graphs=cuda_graphs)
    generator = np.random.default_rng(0)
    seen = generator.standard_normal((config.context_length, episodes, *SPEC.observation_shape), dtype=np.float32)
    rewards = np.zeros(episodes, dtype=np.float32)

    def segment() -> None:
        for observations in seen:
            actor.act(observations, rewards)

    for _ in range(5 if cuda_graphs else 1):  # the third is captured
        segment()
    found = timed(segment, device, min(5, options.rounds))
    how = "graph" if cuda_graphs else "eager"
    return {"how": how, "episodes": episodes, **common.summary([s / config.context_length for s in found["seconds"]])}


def train_to_the_end(options: Options) -> dict[str, Any]:
    """Train on T-Maze from scratch; success by length."""
    flags, lengths = ([*TINY, "--epochs", "1"], (9, 13)) if options.tiny else (TRAINING, LENGTHS)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        where = ["--data_dir", f"{folder}/data", "--output_dir", f"{folder}/runs", "--device", options.device]
        code = train_tmaze.main([*flags, *where])
        finals = [json.loads(path.read_text()) for path in Path(folder).glob("runs/*/*/eval/final.json")]
    final = finals[0] if code == 0 and finals else {}
    success = {str(length): final.get(f"Success_rate_T_{length}") for length in lengths}
    return {
        "ok": bool(final) and (options.tiny or success[str(lengths[-1])] == 1.0),
        "success": success,
        "seconds": round(time.perf_counter() - started, 1),
        "optimizer_steps": final.get("optimizer_steps"),
        "flags": [flag.removeprefix(f"{common.ROOT}/") for flag in flags],
    }


def training_table(rows: Sequence[dict[str, Any]]) -> str:
    """Times of a training batch as Markdown."""
    plain = next((row["median_s"] for row in rows if row["attention"] == "plain" and "median_s" in row), None)
    header = ["attention", "how", "precision", "median ms", "min ms", "times faster than plain"]
    header += ["kernels", "their ms", "peak MiB"]
    cells = []
    for row in rows:
        cell = [row["attention"], row["how"], row["precision"]]
        if "error" in row:
            cell += [row["error"], *[""] * 5]
        else:
            cell += [f"{row['median_s'] * 1e3:.3g}", f"{row['min_s'] * 1e3:.3g}"]
            cell.append(f"{plain / row['median_s']:.1f}" if plain else "")
            cell += (
                [row["kernels"], f"{row['kernel_s'] * 1e3:.3g}"] if "kernels" in row else [row.get("uncounted", ""), ""]
            )
            cell.append(f"{row['peak_mib']:.0f}" if "peak_mib" in row else "")
        cells.append(cell)
    return common.table(header, cells)


def format_page(result: dict[str, Any]) -> str:
    """results/gpu.md."""
    machine = result["machine"]
    commit, _, dirty = (machine["commit"] or "unknown").partition("-")
    parts = [
        "# On a GPU",
        "Written by `make gpu-check` (benchmarks/gpu.py); for what is measured see "
        "[benchmarks/README.md](../benchmarks/README.md#gpupy).",
        f"{machine['card'] or machine['cpu']}, driver {machine['driver'] or 'none'}, torch {machine['torch']}, CUDA "
        f"{machine['cuda'] or 'none'}, Python {machine['python']}, {machine['date']}, commit {commit[:12]}"
        f"{' with changes' if dirty else ''}.",
    ]
    if tests := result.get("tests"):
        listed = "".join(f"\n- {line}" for line in tests["failed"])
        parts.append(f"Tests: {tests['summary']}{listed}")
    for name, rows in result.get("train_step", {}).items():
        parts += [f"One training batch of the published {name} setting:", training_table(rows)]
    for acting in result.get("acting", []):
        if "error" in acting:
            parts.append(f"Acting failed: {acting['error']}")
            continue
        median, least = acting["median_s"] * 1e3, acting["min_s"] * 1e3
        what = f"Acting, {acting['how']}, {acting['episodes']} episodes at once"
        parts.append(f"{what}: {median:.3g} ms a step (min {least:.3g}).")
    training = result.get("training", {})
    if "error" in training:
        parts.append(f"Training on T-Maze failed: {training['error']}")
    elif training:
        rates = ", ".join(f"success {rate} at {length} steps" for length, rate in training["success"].items())
        parts.append(f"T-Maze at the published size, trained and evaluated in {training['seconds']:.0f} s: {rates}.")
    return "\n\n".join(parts) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    """Check, time, train and write. Returns 1 if a test failed, something could not be timed or training fell short."""
    with exit_on_user_error():
        return check(parse_options(Options, argv=argv, prog="python benchmarks/gpu.py", description="Check a GPU."))


def check(options: Options) -> int:
    """As `main`, with parsed options. Raises UserError if results cannot be written."""
    for name in ("gpu.json", "gpu.md"):
        try:
            (options.folder / name).open("a").close()
        except OSError as error:
            raise UserError(f"--output_dir {options.folder}: {name} cannot be written ({error.strerror})") from None
    device = pick_device(options.device)
    asked = to_flat_dict(options)
    del asked["output_dir"]  # a path on this machine
    result: dict[str, Any] = {"machine": facts(device), "options": asked}

    def save() -> None:
        """After every row, so that nothing measured is lost if the rest fails."""
        atomic_write_json(options.folder / "gpu.json", result)
        atomic_write_text(options.folder / "gpu.md", format_page(result))

    good = True
    for part in dict.fromkeys(options.parts):
        print(f"{part} ...", flush=True)
        if part == "tests":
            result["tests"] = run_tests(device)
            good &= result["tests"]["ok"]
        elif part == "benchmarks":
            result["train_step"] = {}
            for name, setting in settings(options).items():
                rows = result["train_step"][name] = []
                for row in time_training(options, device, setting):
                    rows.append(row)
                    save()
                good &= not any("error" in row for row in rows)
            result["acting"] = []
            for cuda_graphs in (False, True):
                result["acting"].append(attempt(partial(time_acting, options, device, cuda_graphs=cuda_graphs)))
                save()
            good &= not any("error" in row for row in result["acting"])
        else:
            result["training"] = attempt(partial(train_to_the_end, options))
            good &= result["training"].get("ok", False)
        save()
    print(f"\n{format_page(result)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
