"""Make results/memory_retention.*: how long every memory keeps a hint of T-Maze, and why it stops.

    python3 tools/explain_memories.py
    python3 tools/explain_memories.py --models LRU GRU --seeds 2

Examines the runs that tools/reproduce_memories.py has finished, second tries among them, as
`python3 -m RATE_model.diagnose.retention RUN` does; trains nothing. Runs whose figures are in
results/memory_retention.json are not examined again, even if they are gone, as long as the command that trains them is
the same. See docs/diagnosis.md.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch

from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.diagnose import retention
from RATE_model.errors import UserError
from RATE_model.pages.entries import entry_of, merged
from RATE_model.pages.page_file import read_page, write_results
from RATE_model.pages.run_results import final_results, provenance
from RATE_model.pages.study import StudyOptions
from RATE_model.pages.tables import origin, table
from RATE_model.plots.retention import plot_retention
from tools.reproduce_memories import SECTIONS, Section, chosen

PAGE = "memory_retention"
ENVIRONMENTS = ("tmaze", "tmaze_second_tries")
# Memories that act with more room and the weights of a run: label -> model, sizes. A step of HCAM attends to all steps
# in its chunks, so longer episodes would take hours.
WIDER = {"HCAM, 240 chunks": ("HCAM", ("chunks=240",))}
WIDER_CASES = (90, 150, 300, 600, 1200, 2400)
GRADIENTS = (9, 90, 300, 1200)  # lengths in the table


@dataclass(frozen=True)
class Options(StudyOptions):
    """Which runs to examine, where they are, and where the results go."""

    # Seeds of the runs; consecutive
    seeds: tuple[int, ...] = (1, 2, 3)
    # Memories to examine, with their second tries; the page keeps its figures of all others. Empty: all
    models: tuple[str, ...] = ()
    # Examine runs again whose figures are on the page
    again: Boolean = False


def label_of(label: str, seed: int) -> str:
    """The label of an entry."""
    return f"{label}, seed {seed}"


def key_of(section: Section, model: str, sizes: tuple[str, ...]) -> str:
    """What an entry depends on: the command that trained its run, and the sizes with which it acts."""
    return section.study.key(model, *(("--sizes", *sizes) if sizes else ()))


def collect(section: Section, run: Path, sizes: tuple[str, ...] = ()) -> dict[str, Any]:
    """The measurements of a run, and their origin. Success is that of its own evaluation, unless sizes differ; then a
    few episodes are played."""
    (result,) = final_results([run])
    outcomes = {case: result[section.metric.format(case)] for case in section.cases}
    options = retention.Options(run=run, device="cpu")
    if sizes:
        _, found = retention.examine(replace(options, sizes=sizes, cases=WIDER_CASES, pairs=4))
    else:
        _, found = retention.examine(options, outcomes=outcomes)
    return {**found, **provenance([run])}


def row(label: str, found: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    wrong = retention.first_wrong(found)
    right = [each["case"] for each in found["by_case"] if wrong is None or each["case"] < wrong["case"]]
    trained = retention.memory_at(found, found["trained_steps"])
    there = None if wrong is None else retention.memory_at(found, wrong["steps"])
    gradients = {each["case"]: each["gradient"] for each in found["by_case"] if "gradient" in each}
    return [
        label,
        str(max(right, default="")),
        retention.reason(found),
        retention.cells(trained)[0],
        *retention.cells(there),
        " ".join(f"{gradients[case]:.1g}" if case in gradients else "-" for case in GRADIENTS),
        "" if found["reach"] is None else str(found["reach"]),
    ]


def write(document: Mapping[str, dict], options: Options) -> None:
    """results/memory_retention.json, its picture, and the generated part of .md."""
    picture = f"{PAGE}.png"
    seeds: dict[str, list[int]] = {}  # of every model
    for label in document:
        model, _, seed = label.rpartition(", seed ")
        seeds.setdefault(model, []).append(int(seed))
    shown = {name: document[name] for name in (label_of(model, min(found)) for model, found in seeds.items())}
    plot_retention(shown, options.results_dir / picture)
    trained = next(iter(document.values()))["trained_steps"]
    header = [
        "run",
        "right to",
        "then",
        f"distance at {trained}",
        "distance there",
        "probe fitted in training",
        "probe fitted there",
    ]
    header += [f"gradient at {' '.join(map(str, GRADIENTS))}", "reach"]
    text = (
        f"Runs of tools/reproduce_memories.py, measured {origin(document)}.\n\n![How long memories last]({picture})\n\n"
        + table(header, [row(label, found) for label, found in document.items()])
    )
    write_results(PAGE, "How long memories last", document, text, options)


def run(options: Options) -> int:
    """Examine all finished runs and write the results; 0. Raises UserError, also if no run is finished."""
    path = options.results_dir / f"{PAGE}.json"
    document = read_page(path) if path.exists() else {}
    sections = [SECTIONS[name] for name in ENVIRONMENTS]
    runs = [(label, section, label, ()) for section in sections for label in chosen(section, options.models)]
    runs += [
        (label, sections[0], model, sizes)
        for label, (model, sizes) in WIDER.items()
        if model in chosen(sections[0], options.models)
    ]
    labels = [*(label for section in sections for label in section.study.models), *WIDER]
    order = [label_of(label, seed) for label in labels for seed in range(100)]
    for label, section, model, sizes in runs:
        for seed in options.seeds:
            name = label_of(label, seed)
            key = key_of(section, model, sizes)
            if entry_of(document, name, key) and not options.again:
                continue
            if (directory := section.study.finished(model, seed, options)) is None:
                print(f"{name}: no finished run", file=sys.stderr, flush=True)
                continue
            torch.manual_seed(0)
            document = merged(document, {name: collect(section, directory, sizes) | {"command": key}}, order)
            print(f"{name}: {retention.reason(document[name])}", flush=True)
            write(document, options)
    if not document:
        raise UserError("no run is finished: python3 tools/reproduce_memories.py trains them")
    write(document, options)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Make the page."""
    with exit_on_user_error():
        return run(parse_options(Options, argv=argv, prog="explain_memories.py", description=f"Make results/{PAGE}.*"))


if __name__ == "__main__":
    sys.exit(main())
