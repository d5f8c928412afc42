"""Make results/tmaze.*: every model, every seed, one setting.

    python3 TMaze_new/TMaze_new_src/reproduce.py --seeds 1 2 3 4 5

Runs that are finished are kept, interrupted ones are continued, so the command can be given again at any time.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.acting.controls import knock_out_memory
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import ROOT, Study, StudyOptions, cell, commits, final_results, made, table, write_results
from RATE_model.loading import load_model
from RATE_model.plots import plot_success_by_length
from RATE_model.training.checkpoints import resolve_checkpoint
from TMaze_new.TMaze_new_src.dataset import ensure_datasets
from TMaze_new.TMaze_new_src.evaluate import LENGTHS, success_by_length
from TMaze_new.TMaze_new_src.train_tmaze import check, read_config

FAST = "TMaze_new/TMaze_new_src/config_fast.yaml"
STUDY = Study(
    script="TMaze_new/TMaze_new_src/train_tmaze.py",
    settings=("--config", FAST),
    models={
        "RATE": ("--model_mode", "RATE"),
        "RATE, bptt_segments 0": ("--model_mode", "RATE", "--bptt_segments", "0"),
        "RMT": ("--model_mode", "RMT"),
        "TrXL": ("--model_mode", "TrXL", "--mem_len", "270"),
        "DT": ("--model_mode", "DT", "--slide", "30"),
    },
    read_config=read_config,
    check=check,
)
KNOCK_OUT = "RATE, memory knocked out"
KNOCK_OUT_LENGTHS = tuple(length for length in LENGTHS if length <= 900)


def collect(directories: dict[str, list[Path]]) -> dict[str, dict]:
    """Per model and length the success of every seed, and seconds and steps of training."""
    document = {}
    for label, runs in directories.items():
        results = final_results(runs)
        document[label] = {
            "success_rate": {str(t): [result[f"Success_rate_T_{t}"] for result in results] for t in LENGTHS},
            "train_seconds": [result["train_seconds"] for result in results],
            "optimizer_steps": [result["optimizer_steps"] for result in results],
            "solved": [bool(result.get("all_stages_solved", result.get("solved"))) for result in results],
            "commit": commits(runs),
        }
    return document


def knocked_out(runs: list[Path]) -> dict[str, list[float]]:
    """Success of every seed when each segment starts from the initial memory."""
    by_seed = [
        success_by_length(load_model(resolve_checkpoint(run)), KNOCK_OUT_LENGTHS, transform_memory=knock_out_memory)
        for run in runs
    ]
    return {str(t): [result[t]["success_rate"] for result in by_seed] for t in KNOCK_OUT_LENGTHS}


def success_table(document: dict[str, dict]) -> str:
    """Success by length, mean and standard error over seeds, as Markdown."""
    rows = [
        [label, *(cell(entry["success_rate"].get(str(length))) for length in LENGTHS)]
        for label, entry in document.items()
    ]
    return table(["model", *LENGTHS], rows)


def seed_table(document: dict[str, dict], seeds: Sequence[int]) -> str:
    """Every seed: training, and success at the longest trained and the longest evaluated length, as Markdown."""
    rows = []
    for label, entry in document.items():
        for index, seed in enumerate(seeds if "solved" in entry else ()):
            rates = [f"{entry['success_rate'][t][index]:.2f}" for t in ("90", "900", "9600")]
            solved = "yes" if entry["solved"][index] else "no"
            steps, seconds = entry["optimizer_steps"][index], entry["train_seconds"][index]
            rows.append([label, seed, steps, f"{seconds:.0f}", solved, *rates])
    header = ["model", "seed", "optimizer steps", "training, s", "all stages solved"]
    return table([*header, "success at 90", "at 900", "at 9600"], rows)


def write(document: dict[str, dict], options: StudyOptions) -> None:
    """results/tmaze.json, .png and the generated part of .md."""
    curves = {
        label: {int(length): values for length, values in entry["success_rate"].items()}
        for label, entry in document.items()
    }
    plot_success_by_length(curves, options.results_dir / "tmaze.png", trained=90)
    text = (
        f"Success rate by episode length, mean and standard error over seeds {', '.join(map(str, options.seeds))}, "
        f"100 episodes per length and seed, made {made(document)}.\n\n{success_table(document)}\n\n"
        f"{seed_table(document, options.seeds)}\n\nCommands:\n\n{STUDY.commands(options.seeds)}\n"
    )
    write_results("tmaze", "T-Maze", document, text, options)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(StudyOptions, argv=argv, prog="reproduce.py", description="Make results/tmaze.*")
        ensure_datasets(read_config(["--config", str(ROOT / FAST)]).data)  # before several processes want to
        directories = STUDY.run_all(options)
        document = collect(directories)
        document[KNOCK_OUT] = {"success_rate": knocked_out(directories["RATE"])}
        write(document, options)
        print(success_table(document))


if __name__ == "__main__":
    main()
