"""Make results/tmaze.*: every model, every seed, one setting.

    python3 TMaze_new/TMaze_new_src/reproduce.py --seeds 1 2 3 4 5
    python3 TMaze_new/TMaze_new_src/reproduce.py --models LSTM GRU

Runs that are finished are kept, interrupted ones are continued, so the command can be given again at any time. With
`--models` the page keeps what it says of the other models, with the commit and the day that they were measured at.
"""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from RATE_model.acting.controls import knock_out_memory
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.cli.reproduce import (
    ROOT,
    PageOptions,
    Study,
    cell,
    final_results,
    kept_entries,
    made,
    merged,
    provenance,
    table,
    training_table,
    write_results,
)
from RATE_model.cli.training import check
from RATE_model.loading import load_model
from RATE_model.plots import plot_success_panels
from RATE_model.training.checkpoints import resolve_checkpoint
from TMaze_new.TMaze_new_src.dataset import ensure_datasets
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT
from TMaze_new.TMaze_new_src.evaluate import LENGTHS, success_by_length

PAGE = "tmaze"  # the name of the files of results
FAST = "TMaze_new/TMaze_new_src/config_fast.yaml"
STUDY = Study(
    script=ENVIRONMENT.train_script,
    settings=("--config", FAST),
    models={
        "RATE": ("--model_mode", "RATE"),
        "LSTM": ("--model_mode", "LSTM"),
        "GRU": ("--model_mode", "GRU"),
        "MLP": ("--model_mode", "MLP"),
        "RATE, bptt_segments 0": ("--model_mode", "RATE", "--bptt_segments", "0"),
        "RMT": ("--model_mode", "RMT"),
        "TrXL": ("--model_mode", "TrXL", "--mem_len", "270"),
        "DT": ("--model_mode", "DT", "--slide", "30"),
    },
    read_config=ENVIRONMENT.read_config,
    check=partial(check, ENVIRONMENT),
)
# The entry of a model whose memory is knocked out, by model.
KNOCKED_OUT = {label: f"{label}, memory knocked out" for label in ("RATE", "LSTM", "GRU")}
KNOCK_OUT_LENGTHS = tuple(length for length in LENGTHS if length <= 900)


def collect(directories: dict[str, list[Path]]) -> dict[str, dict]:
    """Per model and length the success of every seed, and what its training took."""
    document = {}
    for label, runs in directories.items():
        results = final_results(runs)
        agent = load_model(resolve_checkpoint(runs[0]))
        document[label] = {
            "success_rate": {str(t): [result[f"Success_rate_T_{t}"] for result in results] for t in LENGTHS},
            "parameters": sum(parameter.numel() for parameter in agent.parameters()),
            "train_seconds": [result["train_seconds"] for result in results],
            "optimizer_steps": [result["optimizer_steps"] for result in results],
            "solved": [bool(result.get("all_stages_solved", result.get("solved"))) for result in results],
            **provenance(runs),
        }
    return document


def knocked_out(runs: list[Path]) -> dict[str, Any]:
    """Success of every seed when each segment starts from the initial memory."""
    by_seed = [
        success_by_length(load_model(resolve_checkpoint(run)), KNOCK_OUT_LENGTHS, transform_memory=knock_out_memory)
        for run in runs
    ]
    success = {str(t): [result[t]["success_rate"] for result in by_seed] for t in KNOCK_OUT_LENGTHS}
    return {"success_rate": success, **provenance(runs)}


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


def panels(curves: dict[str, dict[int, list[float]]]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """What is drawn where: RATE beside other kinds of memory, and beside other transformers."""
    shown = {
        "RATE, recurrent networks, and no memory": ("RATE", "LSTM", "GRU", "MLP", *KNOCKED_OUT.values()),
        "RATE and other transformers": ("RATE", "RATE, bptt_segments 0", "RMT", "TrXL", "DT"),
    }
    return {title: {label: curves[label] for label in labels if label in curves} for title, labels in shown.items()}


def write(document: dict[str, dict], options: PageOptions) -> None:
    """results/tmaze.json, .png and the generated part of .md."""
    curves = {
        label: {int(length): values for length, values in entry["success_rate"].items()}
        for label, entry in document.items()
    }
    plot_success_panels(panels(curves), options.results_dir / f"{PAGE}.png", trained=90)
    text = (
        f"Success rate by episode length, mean and standard error over seeds {', '.join(map(str, options.seeds))}, "
        f"100 episodes per length and seed, made {made(document)}.\n\n{success_table(document)}\n\n"
        f"{training_table(document)}\n\nEvery seed:\n\n{seed_table(document, options.seeds)}\n\n"
        f"Commands:\n\n{STUDY.commands(options.seeds)}\n"
    )
    write_results(PAGE, "T-Maze", document, text, options)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(PageOptions, argv=argv, prog="reproduce.py", description=f"Make results/{PAGE}.*")
        kept = kept_entries(PAGE, STUDY, options)
        ensure_datasets(
            ENVIRONMENT.read_config(["--config", str(ROOT / FAST)]).data
        )  # before several processes want to
        directories = STUDY.run_all(options, options.models)
        document = collect(directories)
        for label, control in KNOCKED_OUT.items():
            if label in directories:
                document[control] = knocked_out(directories[label])
        document = merged(kept, document, [*STUDY.models, *KNOCKED_OUT.values()])
        write(document, options)
        print(success_table(document))


if __name__ == "__main__":
    main()
