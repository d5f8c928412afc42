"""Pages of one setting: every model with every seed, the same agents played otherwise, and players without a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from RATE_model.acting.rollout import mean_and_error
from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.environments.contract import Environment
from RATE_model.errors import UserError
from RATE_model.pages.checks import require_figures
from RATE_model.pages.entries import (
    by_model,
    entry_of,
    keep_outdated,
    keep_seeds,
    merged,
    model_of,
    refuse_outdated,
    with_seeds,
)
from RATE_model.pages.page_file import read_results, write_results
from RATE_model.pages.run_results import play_again, provenance, training_of
from RATE_model.pages.study import PageOptions, Study
from RATE_model.pages.tables import cell, training_table

Entry = dict[str, Any]
Document = dict[str, Entry]


class ControlsPage(ABC):
    """One page; a subclass says what is on it.

    Attributes:
        name, environment: of the files of results, and whose; its name is the title of a new page.
        study: the runs.
        options_type: the flags.
        figures, of_model: lists that every entry has, and those that models have besides.
        played_otherwise: see `controls`.
        options: their values.
    """

    name: str
    study: Study
    environment: ClassVar[Environment]
    options_type: ClassVar[type[PageOptions]]
    figures: ClassVar[Sequence[str]]
    of_model: ClassVar[Sequence[str]] = ()
    played_otherwise: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, options: Any) -> None:
        self.options = options

    @abstractmethod
    def of_runs(self, runs: Sequence[Path]) -> Entry:
        """Results of every seed of a model; the cost of training is added."""

    @abstractmethod
    def table(self, document: Document) -> str:
        """The table of results, as Markdown."""

    @abstractmethod
    def paragraphs(self, document: Document) -> Sequence[str]:
        """The generated part of the page, as Markdown."""

    @abstractmethod
    def draw(self, document: Document, path: Path) -> object:
        """Draw the page's picture."""

    def controls(self, label: str) -> Mapping[str, Mapping[str, Any]]:
        """What else a model's agents play: a control's label, "MODEL, what is done" -> arguments of `of_control`."""
        return {name: changes for name, changes in self.played_otherwise.items() if name.partition(", ")[0] == label}

    def of_control(self, runs: Sequence[Path], **changes: Any) -> Entry:
        """Results of every seed under changes, those of `play_again`: by default the environment's figures."""
        found: dict[str, list[float]] = {}
        device = self.options.device or self.study.device
        for run in runs:
            evaluation, played = play_again(self.environment, run, device=device, **changes)
            for case, episodes in played.items():
                for column, value in self.environment.figures(case, episodes, evaluation).items():
                    found.setdefault(column, []).append(value)
        return found

    def others(self, kept: Mapping[str, Any]) -> Document:
        """Entries of the data and of players without a model; `kept` ones need not be made again."""
        return {}

    def kept(self) -> dict[str, Any]:
        """The page's entries, to which the measured models and seeds are added; none without `--models`.

        Raises:
            UserError: the page is damaged, lacks figures, or would lose seeds.
        """
        page, models = read_results(self.name, self.options), self.study.chosen(self.options.models)
        owners = {label: model_of(self.study, label) for label in page}
        if not self.options.models:
            keep_seeds(self.name, page, self.options)
            return {}
        keys = {label: self.study.key(model) for label, model in owners.items() if model in models}
        keep_outdated(self.name, page, keys, self.options)
        others = {label: entry for label, entry in page.items() if label not in keys}
        refuse_outdated(self.name, others, self.study, self.options)
        for label, entry in page.items():
            place = f"{self.options.results_dir / self.name}.json: '{label}'"
            require_figures(entry, place, self.needed(label, owners[label]))
            if scalars := [name for name in self.figures if not isinstance(entry.get(name, []), list)]:
                raise UserError(f"{place}: '{scalars[0]}' is {entry[scalars[0]]!r}; must be a list of numbers")
        return page

    def needed(self, label: str, model: str | None) -> Sequence[str]:
        """What an entry of the page must have; `model` is the one that the label belongs to, if any."""
        of_seeds = () if model is None else ("seeds", "commit")
        trained = ("train_seconds", "optimizer_steps", "parameters", *self.of_model) if label == model else ()
        return (*self.figures, *of_seeds, *trained)

    def costs(self, document: Document) -> str:
        """The table of what training cost, as Markdown."""
        return training_table(document)

    @cached_property
    def config(self) -> Any:
        """The configuration that all models share."""
        return self.study.setting()

    @cached_property
    def data(self) -> Sequence[Path]:
        """The files of the data, made if missing."""
        return self.environment.files(self.config)

    def make(self) -> None:
        """Train what is missing, play, write the results."""
        kept, study = self.kept(), self.study
        _ = self.data  # before several processes try to make it
        document: Document = {}
        measured_models = study.chosen(self.options.models)
        for label, runs in study.run_all(self.options, measured_models).items():
            measured = {label: self.of_runs(runs) | training_of(runs)}
            for control, changes in self.controls(label).items():
                measured[control] = self.of_control(runs, **changes) | provenance(runs)
            command = study.key(label)
            for name, entry in measured.items():
                document[name] = with_seeds(entry_of(kept, name, command), entry) | {"command": command}
        replaced = {name for name in kept if model_of(study, name) in measured_models}
        for name in sorted(replaced - document.keys()):
            print(f"note: '{name}' is not on this page any more, and its entry is removed")
        kept = {name: entry for name, entry in kept.items() if name not in replaced}
        document |= self.others(kept)
        document = merged(kept, document, by_model(study, {**kept, **document}))
        self.write(document)
        print(self.table(document))

    def write(self, document: Document) -> None:
        """Write the JSON file, the picture and the generated part of the page."""
        self.draw(document, self.options.results_dir / f"{self.name}.png")
        text = "\n\n".join(self.paragraphs(document)) + "\n"
        write_results(self.name, self.environment.name, document, text, self.options)

    @classmethod
    def main(cls, argv: Sequence[str] | None = None) -> None:
        """Make the page that the flags (None: the command line) ask for."""
        with exit_on_user_error():
            description = f"Make the results page of {cls.environment.name}."
            cls(parse_options(cls.options_type, argv=argv, prog="reproduce.py", description=description)).make()


def mean_cell(entry: Mapping[str, Any], column: str) -> str:
    """Mean and standard error: over seeds; for a single seed, or a player without a model, over episodes.

    The list `entry["COLUMN_error"]` has the errors over episodes.
    """
    values = entry.get(column)
    return seed_cell(entry, column, 0) if values and len(values) == 1 else cell(values, 1)


def seed_cell(entry: Mapping[str, Any], column: str, index: int) -> str:
    """One seed's value, with the standard error over episodes if known."""
    errors = entry.get(f"{column}_error")
    return f"{entry[column][index]:.1f}" + (f" ± {errors[index]:.1f}" if errors else "")


def bar(entry: Mapping[str, Any], column: str) -> tuple[float, float]:
    """Mean and standard error, as in `mean_cell`."""
    values = entry[column]
    return mean_and_error(values) if len(values) > 1 else (values[0], entry[f"{column}_error"][0])
