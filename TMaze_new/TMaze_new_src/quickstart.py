"""The first steps: RATE and a Decision Transformer on T-Maze, about 6 minutes of CPU time.

    python3 TMaze_new/TMaze_new_src/quickstart.py

Makes the data, trains both with the same settings and the same limit, and evaluates them at up to a hundred times the
training lengths. Writes to quickstart/: the two runs, summary.json, success_by_length.png, and attention and memory
maps of one RATE episode. The models train side by side, one core each.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.cli.limits import Natural, Ranged
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.training import run_directory
from RATE_model.errors import UserError
from RATE_model.loading import load_model
from RATE_model.pages.study import of_modes
from RATE_model.plots import plot_success_by_length
from RATE_model.system.atomic import atomic_write_json
from RATE_model.training.checkpoints import resolve_checkpoint
from TMaze_new.TMaze_new_src.dataset import ensure_datasets
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT
from TMaze_new.TMaze_new_src.evaluate import LENGTHS
from TMaze_new.TMaze_new_src.pictures import draw_maps

HERE = Path(__file__).resolve().parent
FAST = HERE / "config_fast.yaml"
# The flags that differ between the two models; the rest is config_fast.yaml.
# Sliding the window of 90 steps by 60 at a time recomputes it 60 times less often than the published protocol.
MODELS = of_modes({"RATE": "", "DT": "--slide 60"})


@dataclass(frozen=True)
class Options(Ranged):
    """Quickstart: train RATE and a Decision Transformer, evaluate and plot both."""

    # Output folder; an earlier quickstart there is replaced
    output_dir: Path = Path("quickstart")
    # Seed of both models
    seed: Natural = 1


def arguments(name: str, options: Options) -> list[str]:
    """The flags that train and evaluate one model."""
    flags = ["--config", str(FAST), "--output_dir", str(options.output_dir), "--ckpt_folder", "runs", "--text", name]
    flags += ["--overwrite", "true", "--start_seed", str(options.seed), "--end_seed", str(options.seed)]
    return [*flags, "--device", "cpu", "--wandb_mode", "disabled", *MODELS[name]]


def start(name: str, options: Options) -> subprocess.Popen[bytes]:
    """Train and evaluate one model in a single-threaded process. The first model shows its progress; the others write
    logs."""
    command = [sys.executable, str(HERE / "train_tmaze.py"), *arguments(name, options)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if name == next(iter(MODELS)):
        return subprocess.Popen(command, env=environment)
    with open(options.output_dir / f"{name}.log", "wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def train_all(options: Options) -> dict[str, Path]:
    """Train all models side by side; returns their run directories."""
    processes = {name: start(name, options) for name in MODELS}
    first, *others = MODELS
    print(f"{first}'s progress follows; {', '.join(others)} writes {options.output_dir}/NAME.log", flush=True)
    try:
        for name, process in processes.items():
            if name != first and process.poll() is None:
                print(f"waiting for {name}: {options.output_dir / name}.log", flush=True)
            if process.wait():
                raise UserError(f"training {name} failed with exit code {process.returncode}; see the messages above "
                                f"or {options.output_dir / (name + '.log')}")  # fmt: skip
    except KeyboardInterrupt:  # the models' processes got the signal too
        print("stopped; make quickstart starts again from the beginning", file=sys.stderr)
        raise
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.terminate()
    return {
        name: run_directory(ENVIRONMENT, ENVIRONMENT.read_config(arguments(name, options)), options.seed)
        for name in MODELS
    }


def summarise(runs: dict[str, Path]) -> dict:
    """Success by length of every model, and the time for training and evaluating RATE."""
    results = {name: json.loads((run / "eval" / "final.json").read_text()) for name, run in runs.items()}
    success = {name: {t: result[f"Success_rate_T_{t}"] for t in LENGTHS} for name, result in results.items()}
    timed = ("train_seconds", "eval_seconds", "optimizer_steps")
    return {
        "success_rate": success,
        "train_seconds": results["RATE"]["train_seconds"],
        "eval_seconds": results["RATE"]["eval_seconds"],
        "models": {name: {key: result[key] for key in timed} for name, result in results.items()},
    }


def show(summary: dict) -> None:
    """Print the table of success by length."""
    print(f"\nsuccess rate over 100 episodes, by episode length (trained on at most 90 steps)\n{'length':>8}", end="")
    print("".join(f"{name:>8}" for name in summary["success_rate"]))
    for length in LENGTHS:
        print(f"{length:8d}" + "".join(f"{rates[length]:8.2f}" for rates in summary["success_rate"].values()))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, evaluate, print, draw."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="quickstart.py", description="RATE and a Decision Transformer on T-Maze."
        )
        started = time.perf_counter()
        try:
            options.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--output_dir {options.output_dir} cannot be written: {error.strerror}") from error
        ensure_datasets(ENVIRONMENT.read_config(["--config", str(FAST)]).data)  # before both processes try to
        runs = train_all(options)
        summary = summarise(runs)
        show(summary)
        atomic_write_json(options.output_dir / "summary.json", summary)
        plot_success_by_length(summary["success_rate"], options.output_dir / "success_by_length.png", trained=90)
        draw_maps(load_model(resolve_checkpoint(runs["RATE"])), options.output_dir)
        print(f"\n{time.perf_counter() - started:.0f} s in all; tables, pictures and runs: {options.output_dir}")


if __name__ == "__main__":
    main()
