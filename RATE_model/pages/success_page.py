"""Results pages of success rates by case, such as length: every model and seed, and controls of the same agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.environments.contract import Environment
from RATE_model.memories.contract import MemoryTransform
from RATE_model.pages.entries import kept_entries, merged
from RATE_model.pages.page_file import write_results
from RATE_model.pages.run_results import final_results, play_again, provenance, training_of
from RATE_model.pages.study import PageOptions, Study
from RATE_model.pages.tables import cell, origin, seed_table, table, training_table
from RATE_model.plots import plot_success_panels

Document = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Control:
    """A control experiment: the same agents with changed memory.

    Attributes:
        transform: makes the change; the same in every run.
        models: the models it applies to.
        cases: the cases to play.
        twins: play every episode twice; see `Environment.twins`.
    """

    transform: Callable[[], MemoryTransform]
    models: Sequence[str]
    cases: Sequence[int]
    twins: bool = False


@dataclass(frozen=True, kw_only=True)
class SuccessPage:
    """One page.

    Attributes:
        name: of the results files.
        environment, study: the environment, whose name is the title of a new page, and the runs.
        cases: columns of the tables.
        rates: kinds of success: key in the JSON file -> name in eval/final.json, with {} for the case. The same keys
            are names of `Environment.figures`. The first is drawn, shown by seed, and measured by controls.
        texts: the text above the table of each kind, with placeholders {seeds} and {origin}.
        shown: cases in the table of seeds.
        notes: further columns of that table: a heading -> a key in the JSON file, and the name of a boolean in
            eval/final.json.
        controls: by the words that follow a model's label.
        others: returns entries of untrained players.
        panels: titles of the picture's panels, and the labels in each.
        trained: see `plot_success_panels`.
    """

    name: str
    environment: Environment
    study: Study
    cases: Sequence[int]
    rates: Mapping[str, str]
    texts: Mapping[str, str]
    shown: Sequence[int]
    panels: Mapping[str, Sequence[str]]
    trained: int
    notes: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    controls: Mapping[str, Control] = field(default_factory=dict)
    others: Mapping[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)

    @property
    def drawn(self) -> str:
        """The kind of success that is drawn."""
        return next(iter(self.rates))

    @property
    def labels(self) -> list[str]:
        """All entries, in the page's order."""
        controlled = [f"{model}, {words}" for words, control in self.controls.items() for model in control.models]
        return [*self.study.models, *controlled, *self.others]

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Train missing runs, collect all figures, write the results."""
        with exit_on_user_error():
            description = f"Make results/{self.name}.*"
            options = parse_options(PageOptions, argv=argv, prog="reproduce.py", description=description)
            kept = kept_entries(self.name, self.study, options, [self.drawn])
            self.environment.files(self.study.setting())  # before several processes try to make them
            directories = self.study.run_all(options, options.models)
            document: Document = {}
            for label, runs in directories.items():
                measured = {label: self.of_runs(runs)} | {
                    f"{label}, {words}": self.controlled(runs, control, options)
                    for words, control in self.controls.items()
                    if label in control.models
                }
                command = self.study.key(label)
                document |= {name: entry | {"command": command} for name, entry in measured.items()}
            document |= {label: make() for label, make in self.others.items() if label not in kept}
            document = merged(kept, document, self.labels)
            self.write(document, options)
            print(self.success_table(document, self.drawn))

    def of_runs(self, runs: Sequence[Path]) -> dict[str, Any]:
        """Success of every seed by case, and the cost of training."""
        results = final_results(runs)
        by_case = {
            key: {str(case): [result[name.format(case)] for result in results] for case in self.cases}
            for key, name in self.rates.items()
        }
        notes = {key: [bool(result.get(name)) for result in results] for key, name in self.notes.values()}
        return by_case | training_of(runs) | notes

    def controlled(self, runs: Sequence[Path], control: Control, options: PageOptions) -> dict[str, Any]:
        """Success of every seed by case under a control."""
        found: dict[str, list[float]] = {str(case): [] for case in control.cases}
        device = options.device or self.study.device
        for run in runs:
            changes = {"transform": control.transform(), "twins": control.twins, "cases": control.cases}
            evaluation, played = play_again(self.environment, run, device=device, **changes)
            for case, episodes in played.items():
                found[str(case)].append(self.environment.figures(case, episodes, evaluation)[self.drawn])
        return {self.drawn: found, **provenance(runs)}

    def success_table(self, document: Document, key: str) -> str:
        """Success by case, mean and standard error over seeds, as Markdown."""
        entries = {label: entry[key] for label, entry in document.items() if key in entry}
        rows = [[label, *(cell(rates.get(str(case))) for case in self.cases)] for label, rates in entries.items()]
        return table(["model", *self.cases], rows)

    def write(self, document: Document, options: PageOptions) -> None:
        """Write the JSON file, the picture and the generated part of the page."""
        curves = {
            label: {int(case): values for case, values in entry[self.drawn].items()}
            for label, entry in document.items()
        }
        drawn = {
            title: {label: curves[label] for label in labels if label in curves}
            for title, labels in self.panels.items()
        }
        picture = options.results_dir / f"{self.name}.png"
        plot_success_panels(drawn, picture, trained=self.trained, xlabel=self.environment.case_label)
        shown: dict[str, Callable[[dict[str, Any], int], str]] = {
            heading: lambda entry, index, key=key: "yes" if entry[key][index] else "no"
            for heading, (key, _) in self.notes.items()
        }
        shown |= {
            f"success at {case}" if case == self.shown[0] else f"at {case}": lambda entry, index, case=case: (
                f"{entry[self.drawn][str(case)][index]:.2f}"
            )
            for case in self.shown
        }
        values = {"seeds": ", ".join(map(str, options.seeds)), "origin": origin(document)}
        parts = [f"{self.texts[key].format(**values)}\n\n{self.success_table(document, key)}" for key in self.rates]
        parts += [training_table(document), f"Every seed:\n\n{seed_table(document, options.seeds, shown)}"]
        parts += [f"Commands:\n\n{self.study.commands(options.seeds)}\n"]
        write_results(self.name, self.environment.name, document, "\n\n".join(parts), options)
