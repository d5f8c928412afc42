"""Make results/multi_cue.*: bits recalled by RATE with several numbers of memory tokens, and by LSTMs of several sizes.

    python3 tools/reproduce_capacity.py
    python3 tools/reproduce_capacity.py --models "RATE, 5 tokens" "LSTM, width 64" --bits 8

T-Maze's task multi-cue: n hints, one per step, then n junctions that ask for them by name in another order. Every model
is trained for every n, with the same data and the same limit on batches. The command can be repeated at any time. Seeds
whose figures are in results/multi_cue.json are done, even if their runs are gone, as long as the command that trains
them is the same; finished runs are kept and interrupted ones continued. The page is written after every model and n.
Failed runs are reported and left out.

Several machines can share the work: give each a part of the models, hints or seeds and a `--results_dir` of its own,
then join what they found:

    python3 tools/reproduce_capacity.py --join MACHINE_1/multi_cue.json MACHINE_2/multi_cue.json
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np

from RATE_model.cli.limits import at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.loading import load_agent
from RATE_model.pages.checks import check_figures
from RATE_model.pages.entries import (
    check_entries,
    entry_of,
    join_pages,
    keep_outdated,
    merged,
    missing_seeds,
    with_seeds,
)
from RATE_model.pages.page_file import read_results, write_results
from RATE_model.pages.run_results import final_results, training_of
from RATE_model.pages.study import Study, StudyOptions, check_models, of_modes
from RATE_model.pages.tables import cell, origin, table
from RATE_model.plots import plot_success_by_length
from TMaze_new.TMaze_new_src.environment import ENVIRONMENT as TMAZE
from tools.reproduce_leaderboard import bits_recalled

PAGE = "multi_cue"
# Episodes of four segments of ten steps, which have room for the hints and junctions of up to 16 bits.
LENGTH, MOST_BITS = 40, 16
SETTINGS = (
    *("--config", "TMaze_new/TMaze_new_src/config_fast.yaml", "--task", "multi-cue", "--trajectories", "10000"),
    *("--min_n_final", "4", "--max_n_final", "4", "--eval_lengths", str(LENGTH)),
    # A run ends early once it has learned the task.
    *("--curr", "adaptive", "--stage_batches", "2400"),
)
TOKENS, FSQ_TOKENS, WIDTHS = (1, 2, 5, 15), (5, 15), (16, 64, 256)
MODELS = of_modes(
    {f"RATE, {count} token{'s' * (count > 1)}": f"--nmt {count}" for count in TOKENS}
    | {f"RATE, FSQ valve, {count} tokens": f"--nmt {count} --mrv FSQ" for count in FSQ_TOKENS}
    | {f"LSTM, width {width}": f"--hidden_size {width}" for width in WIDTHS}
)


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which models and numbers of hints, and where the runs and the results go."""

    # Seeds of every model; consecutive
    seeds: tuple[int, ...] = (1, 2, 3)
    # Hints of an episode
    bits: tuple[int, ...] = (2, 4, 8)
    # Models to train and measure; the page keeps its figures of all others. Empty: all
    models: tuple[str, ...] = ()
    # Measure seeds again whose figures are on the page
    again: Boolean = False
    # Only add the figures in these files, multi_cue.json of other machines, and train nothing; for seeds in several,
    # the page's count, then those of the first file
    join: tuple[Path, ...] = ()

    def validate(self) -> None:
        """Raise a UserError for a value out of range or an unknown model."""
        super().validate()
        for bits in self.bits:
            at_least(1, bits=bits)
            at_most(MOST_BITS, bits=bits)
        check_models(self.models, list(MODELS))


def study(bits: int) -> Study:
    """All models with this many hints."""
    return Study.of(TMAZE, (*SETTINGS, "--bits", str(bits)), MODELS, prefix=f"multi_cue_{bits}")


def collect(runs: list[Path], model: str, bits: int) -> dict[str, Any]:
    """Bits recalled by every seed, the cost of the model, and the command that made it."""
    recalled = [result[f"Recalled_T_{LENGTH}"] for result in final_results(runs)]
    return {
        "recalled": recalled,
        "bits": [float(bits_recalled(rate, bits)) for rate in recalled],
        "state_numbers": load_agent(runs[0]).memory.largest_state().numbers_per_row(),
        **training_of(runs),
        "command": study(bits).key(model),
    }


def label_of(model: str, bits: int) -> str:
    """The label of an entry."""
    return f"{model}: {bits} bits"


def _keys() -> dict[str, str]:
    """The labels of all possible entries in the order of the page, and the commands that make them."""
    return {label_of(model, bits): study(bits).key(model) for model in MODELS for bits in range(1, MOST_BITS + 1)}


def _check(label: str, entry: Any, place: str) -> None:
    """Raise a UserError unless an entry has the figures of each of its seeds; all labels need the same."""
    check_figures(
        entry,
        place,
        of_seeds=("bits", "train_seconds", "optimizer_steps"),
        rates={"recalled": ()},
        alone=("parameters", "state_numbers"),
    )


def write(document: dict[str, dict], options: Options) -> None:
    """results/multi_cue.json, its picture, and the generated part of .md."""
    measured = sorted({int(label.rpartition(": ")[2].split()[0]) for label in document})
    rows, curves, commands = [], {}, []
    for model in MODELS:
        found = {bits: document[label_of(model, bits)] for bits in measured if label_of(model, bits) in document}
        if not found:
            continue
        entry = next(iter(found.values()))
        cells = [cell(found[bits]["bits"]) if bits in found else "" for bits in measured]
        rows.append([model, entry["parameters"], entry["state_numbers"], *cells])
        curves[model] = {bits: entry["recalled"] for bits, entry in found.items()}
        commands += [study(bits).commands(entry["seeds"], [model]) for bits, entry in found.items()]
    picture = f"{PAGE}.png"
    plot_success_by_length(
        curves, options.results_dir / picture, xlabel="hints to remember", title="Share of turns that are right"
    )
    text = (
        f"Bits recalled, n times (1 - binary entropy of the share of right turns), mean and standard error over seeds, "
        f"measured {origin(document)}; chance is 0.\n\n![Share of right turns]({picture})\n\n"
        + table(["model", "parameters", "state, numbers", *(f"n = {bits}" for bits in measured)], rows)
        + "\n\nCommands:\n\n"
        + "\n".join(commands)
    )
    write_results(PAGE, "Multi-cue: capacity", document, text, options)


def run(options: Options) -> int:
    """Train missing runs, collect all figures, write the results; 1 if a run failed."""
    document, keys, failed = read_results(PAGE, options), _keys(), False
    check_entries(PAGE, document, keys, _check, options)
    if options.join:
        write(join_pages(document, options.join, keys, _check), options)
        return 0
    asked = {label_of(model, bits) for bits in options.bits for model in options.models or MODELS}
    keep_outdated(PAGE, document, {label: keys[label] for label in asked}, options)
    for bits in options.bits:
        for model in options.models or MODELS:
            label = label_of(model, bits)
            old = entry_of(document, label, keys[label])
            seeds = options.seeds if options.again else missing_seeds(old, options.seeds)
            if not seeds:
                continue
            try:
                runs = study(bits).run_all(replace(options, seeds=tuple(seeds)), [model])[model]
            except UserError as error:
                print(f"left out: {error}", file=sys.stderr, flush=True)
                failed = True
                continue
            document = merged(document, {label: with_seeds(old, collect(runs, model, bits))}, list(keys))
            print(f"{label}: {np.mean(document[label]['bits']):.2f} bits", flush=True)
            write(document, options)
    if document:  # also if nothing was left to train
        write(document, options)
    return int(failed)


def main(argv: list[str] | None = None) -> int:
    """Make the page."""
    with exit_on_user_error():
        return run(
            parse_options(Options, argv=argv, prog="reproduce_capacity.py", description=f"Make results/{PAGE}.*")
        )


if __name__ == "__main__":
    sys.exit(main())
