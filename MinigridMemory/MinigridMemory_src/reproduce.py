"""Make results/minigrid_memory.*: every model, every seed, one setting.

    python3 MinigridMemory/MinigridMemory_src/reproduce.py --seeds 1 2 3
    python3 MinigridMemory/MinigridMemory_src/reproduce.py --seeds 1 2 3 --models LSTM GRU

Runs that are finished are kept, interrupted ones are continued, so the command can be given again at any time. With
`--models` the page keeps what it says of the other models, with the commit and the day that they were measured at.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MinigridMemory.MinigridMemory_src.dataset import ensure_dataset
from MinigridMemory.MinigridMemory_src.env import PUBLISHED_CAP
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT
from MinigridMemory.MinigridMemory_src.evaluate import (
    LARGE_SIZES,
    SIZES,
    SizeResult,
    expert_play,
    widest_cap,
)
from MinigridMemory.MinigridMemory_src.pictures import SIZE
from RATE_model.acting.controls import exchange_twins, knock_out_memory
from RATE_model.cli.evaluation import evaluation_of_run
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
from RATE_model.memories.contract import MemoryTransform
from RATE_model.plots import plot_success_panels
from RATE_model.training.checkpoints import resolve_checkpoint

PAGE = "minigrid_memory"  # the name of the files of results
FAST = "MinigridMemory/MinigridMemory_src/config_fast.yaml"
TRAINED = 41  # size of the mazes that the setting trains on
STUDY = Study(
    script=ENVIRONMENT.train_script,
    settings=("--config", FAST, "--final_sizes", *map(str, SIZES + LARGE_SIZES)),
    models={
        "RATE": ("--model_mode", "RATE"),
        "LSTM": ("--model_mode", "LSTM"),
        "GRU": ("--model_mode", "GRU"),
        "MLP": ("--model_mode", "MLP"),
        "RMT": ("--model_mode", "RMT"),
        "TrXL": ("--model_mode", "TrXL", "--mem_len", "240"),
        "DT": ("--model_mode", "DT", "--slide", "20"),
    },
    read_config=ENVIRONMENT.read_config,
    check=partial(check, ENVIRONMENT),
)
EXPERT = "expert"
WIDE = "success_rate_expert_cap"  # "success_rate" is that within the published cap, as in a run's eval/*.json
# What is done to the memory of these models' runs: what it is called -> (a new transform, twins).
CONTROLLED = ("RATE", "LSTM", "GRU")
CONTROLS: dict[str, tuple[Callable[[], MemoryTransform], bool]] = {
    "memories of twins exchanged": (exchange_twins, True),
    "memory knocked out": (lambda: knock_out_memory, False),
}
CONTROL_SIZES = (11, 41, 91)


def control_labels() -> list[str]:
    """The entries of `CONTROLS`, in the page's order."""
    return [f"{label}, {name}" for name in CONTROLS for label in CONTROLLED]


def collect(directories: dict[str, list[Path]]) -> dict[str, dict]:
    """Per model and size the success of every seed under both caps, and what its training took."""
    document = {}
    for label, runs in directories.items():
        results = final_results(runs)
        agent = load_model(resolve_checkpoint(runs[0]))
        names = {WIDE: "FINAL_Success_rate_l_{}_expert_cap", "success_rate": "FINAL_Success_rate_l_{}"}
        document[label] = {
            key: {str(size): [result[name.format(size)] for result in results] for size in SIZES + LARGE_SIZES}
            for key, name in names.items()
        } | {
            "parameters": sum(parameter.numel() for parameter in agent.parameters()),
            "train_seconds": [result["train_seconds"] for result in results],
            "optimizer_steps": [result["optimizer_steps"] for result in results],
            **provenance(runs),
        }
    return document


def control(runs: list[Path], transform: MemoryTransform, twins: bool) -> dict[str, Any]:
    """Success of every seed by size with something done to the memory."""
    played = []
    for run in runs:
        evaluation = evaluation_of_run(ENVIRONMENT, run, cases=CONTROL_SIZES)
        played += evaluation.play_with(transform, twins=twins).values()
    success = {
        str(size): [SizeResult.of(episodes[size], widest_cap(size)).success_rate for episodes in played]
        for size in CONTROL_SIZES
    }
    return {WIDE: success, **provenance(runs)}


def expert_entry() -> dict[str, dict[str, list[float]]]:
    """Success of the expert in the same mazes, by size, under both caps."""
    played = {size: expert_play(size, 100) for size in SIZES + LARGE_SIZES}
    return {
        key: {str(size): [SizeResult.of(episodes, cap(size)).success_rate] for size, episodes in played.items()}
        for key, cap in ((WIDE, widest_cap), ("success_rate", lambda size: PUBLISHED_CAP))
    }


def success_table(document: dict[str, dict], key: str) -> str:
    """Success by size, mean and standard error over seeds, as Markdown."""
    sizes = SIZES + LARGE_SIZES
    rows = [
        [label, *(cell(entry[key].get(str(size))) for size in sizes)]
        for label, entry in document.items()
        if key in entry
    ]
    return table(["model", *sizes], rows)


def seed_table(document: dict[str, dict], seeds: Sequence[int]) -> str:
    """Every seed: training, and success at some sizes, as Markdown."""
    rows = []
    for label, entry in document.items():
        for index, seed in enumerate(seeds if "optimizer_steps" in entry else ()):
            rates = [f"{entry[WIDE][size][index]:.2f}" for size in ("41", "91", "501")]
            rows.append([label, seed, entry["optimizer_steps"][index], f"{entry['train_seconds'][index]:.0f}", *rates])
    return table(["model", "seed", "optimizer steps", "training, s", "success at 41", "at 91", "at 501"], rows)


def panels(curves: dict[str, dict[int, list[float]]]) -> dict[str, dict[str, dict[int, list[float]]]]:
    """What is drawn where: RATE beside other kinds of memory, and beside other transformers."""
    shown = {
        "RATE, recurrent networks, and no memory": ("RATE", "LSTM", "GRU", "MLP", *control_labels()),
        "RATE and other transformers": ("RATE", "RMT", "TrXL", "DT"),
    }
    return {title: {label: curves[label] for label in labels if label in curves} for title, labels in shown.items()}


def write(document: dict[str, dict], options: PageOptions) -> None:
    """results/minigrid_memory.json, .png and the generated part of .md."""
    curves = {label: {int(size): values for size, values in entry[WIDE].items()} for label, entry in document.items()}
    plot_success_panels(panels(curves), options.results_dir / f"{PAGE}.png", trained=TRAINED, xlabel=SIZE)
    seeds = ", ".join(map(str, options.seeds))
    text = (
        f"Success rate by size of the maze, mean and standard error over seeds {seeds}, 100 episodes per size and "
        f"seed, made {made(document)}. The cap on steps is the expert's, 2 size + 14 and at least {PUBLISHED_CAP}."
        f"\n\n{success_table(document, WIDE)}\n\n"
        f"The same episodes under the published cap of {PUBLISHED_CAP} steps, beside the expert's:\n\n"
        f"{success_table(document, 'success_rate')}\n\n{training_table(document)}\n\n"
        f"Every seed:\n\n{seed_table(document, options.seeds)}\n\n"
        f"Commands:\n\n{STUDY.commands(options.seeds)}\n"
    )
    write_results(PAGE, "Minigrid-Memory", document, text, options)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, collect everything, write the results."""
    with exit_on_user_error():
        options = parse_options(PageOptions, argv=argv, prog="reproduce.py", description=f"Make results/{PAGE}.*")
        kept = kept_entries(PAGE, STUDY, options)
        fast = ENVIRONMENT.read_config(["--config", str(ROOT / FAST)])
        ensure_dataset(fast.data)  # before several processes want to
        directories = STUDY.run_all(options, options.models)
        document = collect(directories)
        for name, (transform, twins) in CONTROLS.items():
            for label in set(CONTROLLED) & set(directories):
                document[f"{label}, {name}"] = control(directories[label], transform(), twins)
        if EXPERT not in kept:
            document[EXPERT] = expert_entry()
        document = merged(kept, document, [*STUDY.models, *control_labels(), EXPERT])
        write(document, options)
        print(success_table(document, WIDE))


if __name__ == "__main__":
    main()
