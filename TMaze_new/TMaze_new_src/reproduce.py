"""Make results/tmaze.*: every model, every seed, one setting.

    python3 TMaze_new/TMaze_new_src/reproduce.py --seeds 1 2 3 4 5

Runs that are finished are kept, interrupted ones are continued, so the command can be given again at any time.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np

if not __package__:  # started as a script: make the repository importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from RATE_model.actor import knock_out_memory
from RATE_model.atomic import atomic_write_text
from RATE_model.checkpoints import resolve_checkpoint
from RATE_model.errors import UserError
from RATE_model.evaluation import mean_and_error
from RATE_model.fit import load_model
from RATE_model.limits import at_least
from RATE_model.options import exit_on_user_error, parse_options
from RATE_model.plots import plot_success_by_length
from TMaze_new.TMaze_new_src.dataset import ensure_datasets
from TMaze_new.TMaze_new_src.evaluate import LENGTHS, success_by_length
from TMaze_new.TMaze_new_src.train_tmaze import check, read_config

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPT = "TMaze_new/TMaze_new_src/train_tmaze.py"
SETTING = ("--config", "TMaze_new/TMaze_new_src/config_fast.yaml")

# What each model adds to the common setting.
MODELS = {
    "RATE": ("--model_mode", "RATE"),
    "RATE, bptt_segments 0": ("--model_mode", "RATE", "--bptt_segments", "0"),
    "RMT": ("--model_mode", "RMT"),
    "TrXL": ("--model_mode", "TrXL", "--mem_len", "270"),
    "DT": ("--model_mode", "DT", "--slide", "30"),
}
# results/tmaze.md: what is written anew stands between these.
BEGIN, END = "<!-- reproduce.py: begin -->", "<!-- reproduce.py: end -->"

KNOCK_OUT = "RATE, memory knocked out"
KNOCK_OUT_LENGTHS = tuple(length for length in LENGTHS if length <= 900)


@dataclass(frozen=True)
class Options:
    """Flags of this script."""

    # Seeds of every model
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    # Runs at a time, one core each
    jobs: int = 2
    # Where the runs go
    runs_dir: Path = HERE.parent / "TMaze_new_checkpoints"
    # Where tables and pictures go
    results_dir: Path = ROOT / "results"

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if not self.seeds:
            raise UserError("--seeds is empty: give at least one seed")
        at_least(0, seeds=min(self.seeds))
        if list(self.seeds) != list(range(self.seeds[0], self.seeds[-1] + 1)):
            raise UserError(f"--seeds {' '.join(map(str, self.seeds))}: give consecutive seeds, such as 1 2 3")
        at_least(1, jobs=self.jobs)


def folder(label: str) -> str:
    """The folder of a model's runs."""
    return "reproduce_" + "".join(c if c.isalnum() else "_" for c in label.lower())


def command(label: str, seeds: Sequence[int]) -> list[str]:
    """The arguments that train and evaluate a model, as a person would type them."""
    span = ["--start_seed", str(seeds[0]), "--end_seed", str(seeds[-1])]
    return [SCRIPT, *SETTING, *MODELS[label], "--ckpt_folder", folder(label), *span]


def run(label: str, seed: int, options: Options) -> Path:
    """One run, from start or from where it was interrupted; its directory."""
    arguments = [*command(label, [seed]), "--output_dir", str(options.runs_dir.resolve()), "--resume", "auto"]
    arguments += ["--device", "cpu", "--wandb_mode", "disabled"]
    # Not any run of this model and seed: an earlier setting may have left one of another name.
    config = read_config(["--config", str(ROOT / SETTING[1]), *arguments[1 + len(SETTING) :]])
    path = check(config, seed).directory  # refuses one that was made with other flags
    if (path / "eval" / "final.json").exists():
        return path
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"{label}, seed {seed}: exit code {done.returncode}: {done.stderr.strip()[-500:]}")
    print(f"{label}, seed {seed}: done", flush=True)
    return path


def collect(directories: dict[str, list[Path]]) -> dict[str, dict]:
    """Per model and length the success of every seed, and seconds and steps of training."""
    document = {}
    for label, runs in directories.items():
        results = [json.loads((path / "eval" / "final.json").read_text()) for path in runs]
        document[label] = {
            "success_rate": {str(t): [result[f"Success_rate_T_{t}"] for result in results] for t in LENGTHS},
            "train_seconds": [result["train_seconds"] for result in results],
            "optimizer_steps": [result["optimizer_steps"] for result in results],
            "solved": [bool(result["solved"]) for result in results],
            "commit": sorted({start["git"]["commit"] for path in runs for start in _starts(path) if start["git"]}),
        }
    return document


def _starts(path: Path) -> list[dict]:
    return json.loads((path / "environment.json").read_text())["starts"]


def knocked_out(runs: list[Path]) -> dict[str, list[float]]:
    """Success of every seed when each segment starts from the initial memory."""
    by_seed = [
        success_by_length(load_model(resolve_checkpoint(run)), KNOCK_OUT_LENGTHS, transform_memory=knock_out_memory)
        for run in runs
    ]
    return {str(t): [result[t]["success_rate"] for result in by_seed] for t in KNOCK_OUT_LENGTHS}


def table(document: dict[str, dict]) -> str:
    """Success by length, mean and standard error over seeds, as Markdown."""
    lines = ["| model | " + " | ".join(map(str, LENGTHS)) + " |", "|---" * (len(LENGTHS) + 1) + "|"]
    for label, entry in document.items():
        cells = []
        for length in LENGTHS:
            values = entry["success_rate"].get(str(length))
            cells.append("" if values is None else "{:.2f} ± {:.2f}".format(*mean_and_error(np.array(values))))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seed_table(document: dict[str, dict], seeds: Sequence[int]) -> str:
    """Every seed: training, and success at the longest trained and the longest evaluated length, as Markdown."""
    lines = [
        "| model | seed | optimizer steps | training, s | all stages solved | success at 90 | at 900 | at 9600 |",
        "|---" * 8 + "|",
    ]
    for label, entry in document.items():
        for index, seed in enumerate(seeds if "solved" in entry else ()):
            rates = " | ".join(f"{entry['success_rate'][t][index]:.2f}" for t in ("90", "900", "9600"))
            solved = "yes" if entry["solved"][index] else "no"
            steps, seconds = entry["optimizer_steps"][index], entry["train_seconds"][index]
            lines.append(f"| {label} | {seed} | {steps} | {seconds:.0f} | {solved} | {rates} |")
    return "\n".join(lines)


def write(document: dict[str, dict], options: Options) -> None:
    """results/tmaze.json, .png and the part of .md between the two marks; what people wrote around it stays."""
    options.results_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_text(options.results_dir / "tmaze.json", json.dumps(document, indent=1) + "\n")
    curves = {
        label: {int(length): values for length, values in entry["success_rate"].items()}
        for label, entry in document.items()
    }
    plot_success_by_length(curves, options.results_dir / "tmaze.png", trained=90)
    commands = "\n".join("    python3 " + shlex.join(command(label, options.seeds)) for label in MODELS)
    commits = ", ".join(sorted({commit[:12] for entry in document.values() for commit in entry.get("commit", ())}))
    text = (
        f"Success rate by episode length, mean and standard error over seeds {', '.join(map(str, options.seeds))}, "
        f"100 episodes per length and seed, made on {date.today()} at commit {commits}.\n\n{table(document)}\n\n"
        f"{seed_table(document, options.seeds)}\n\nCommands:\n\n{commands}\n"
    )
    page = options.results_dir / "tmaze.md"
    old = page.read_text() if page.exists() else f"# T-Maze\n\n{BEGIN}\n{END}\n"
    before, _, rest = old.partition(BEGIN)
    atomic_write_text(page, f"{before}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="reproduce.py", description="Make results/tmaze.*")
        ensure_datasets(read_config(["--config", str(ROOT / SETTING[1])]).data)  # before several processes want to
        jobs = [(label, seed) for label in MODELS for seed in options.seeds]
        with ThreadPoolExecutor(options.jobs) as pool:
            paths = list(pool.map(lambda job: run(*job, options), jobs))
        count = len(options.seeds)
        directories = {label: paths[i * count : (i + 1) * count] for i, label in enumerate(MODELS)}
        document = collect(directories)
        document[KNOCK_OUT] = {"success_rate": knocked_out(directories["RATE"])}
        write(document, options)
        print(table(document))


if __name__ == "__main__":
    main()
