"""Results pages of returns in several tasks: every model and seed, compared with the data and untrained players."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.pages.entries import keep_seeds
from RATE_model.pages.page_file import read_results, write_results
from RATE_model.pages.run_results import final_results, provenance
from RATE_model.pages.study import Study, StudyOptions
from RATE_model.pages.tables import cell, origin, seed_table, table

Entry = Mapping[str, Any]


def of_returns(returns: np.ndarray) -> dict[str, Any]:
    """The entry of a player without seeds, such as the data's, from its returns (E,)."""
    return {"return": [float(returns.mean())], "return_std": float(np.std(returns)), "episodes": len(returns)}


@dataclass(frozen=True, kw_only=True)
class Part:
    """One task of a page, such as a game.

    Attributes:
        name: prefix of the labels of its entries.
        study: its runs.
        others: returns the entries of the data and of untrained players, by label; see `of_returns`.
        command: makes its data, as indented Markdown code. Empty if the study's own commands do.
        ratio: whether returns are shown as multiples of the data's mean; for tasks whose returns are never negative.
    """

    name: str
    study: Study
    others: Callable[[], Mapping[str, Entry]]
    command: str = ""
    ratio: bool = True


@dataclass(frozen=True, kw_only=True)
class ReturnsPage:
    """One page.

    Attributes:
        name, title: of the results files, and of a new page.
        seeds: the default of `--seeds`.
        parts: the tasks.
        data: label of the data's entry.
        text: the first line, with placeholders {seeds} and {origin}.
        asked: describes a target return, with a placeholder {}.
        unit, digits: the unit of returns, and their decimals.
        kept: what to keep of the eval/final.json of every seed: its name in an entry -> its name there. Includes
            `return`. Or a function of all of them that returns the lists to keep.
        columns: further columns of a task's table: a heading -> the cell, from the task's name and an entry.
        shown: columns of the table of seeds: a heading -> a key of an entry, and decimals.
    """

    name: str
    title: str
    seeds: tuple[int, ...]
    parts: Sequence[Part]
    data: str
    text: str
    asked: str
    unit: str
    digits: int
    kept: Mapping[str, str] | Callable[[Sequence[Entry]], dict[str, Any]]
    columns: Mapping[str, Callable[[str, Entry], str]]
    shown: Mapping[str, tuple[str, int]]

    def main(self, argv: Sequence[str] | None = None) -> None:
        """Make the data, train missing runs, collect all figures, write the results."""
        with exit_on_user_error():
            options = parse_options(
                StudyOptions,
                argv=argv,
                prog="reproduce.py",
                description=f"Make results/{self.name}.*",
                defaults={"seeds": self.seeds},
            )
            keep_seeds(self.name, read_results(self.name, options), options)
            for part in self.parts:  # before the first is trained
                part.study.check_runs(options)
            document: dict[str, Entry] = {}
            for part in self.parts:
                found = {
                    **part.others(),
                    **{label: self.of_runs(runs) for label, runs in part.study.run_all(options).items()},
                }
                document |= {f"{part.name}, {label}": entry for label, entry in found.items()}
            self.write(document, options)
            for part in self.parts:
                print(f"{part.name}\n{self.returns_table(document, part)}")

    def of_runs(self, runs: Sequence[Path]) -> Entry:
        """Figures of every seed, the cost of training, and where they come from."""
        results, kept = final_results(runs), self.kept
        found = kept(results) if callable(kept) else _lists(results, kept)
        found |= _lists(results, {name: name for name in ("train_seconds", "optimizer_steps")})
        return {**found, "target_return": results[0]["target_return"], **provenance(runs)}

    def returns_table(self, document: Mapping[str, Entry], part: Part) -> str:
        """One task: mean and standard error over seeds, as Markdown."""
        beginning = f"{part.name}, "
        entries = {label: entry for label, entry in document.items() if label.startswith(beginning)}
        (of_data,) = entries[beginning + self.data]["return"]
        rows = [
            [
                label.removeprefix(beginning),
                cell(entry["return"], self.digits),
                *([f"{np.mean(entry['return']) / of_data:.2f}" if of_data > 0 else ""] if part.ratio else []),
                *(column(part.name, entry) for column in self.columns.values()),
            ]
            for label, entry in entries.items()
        ]
        ratio = ["times the data's mean"] if part.ratio else []
        return table(["", self.unit, *ratio, *self.columns], rows)

    def write(self, document: Mapping[str, Entry], options: StudyOptions) -> None:
        """Write the JSON file and the generated part of the page."""
        paragraphs = [self.text.format(seeds=", ".join(map(str, options.seeds)), origin=origin(document))]
        for part in self.parts:
            data = document[f"{part.name}, {self.data}"]
            label = next(iter(part.study.models))
            asked = self.asked.format(document[f"{part.name}, {label}"]["target_return"])
            mean, deviation = (f"{value:.{self.digits}f}" for value in (data["return"][0], data["return_std"]))
            paragraphs += [
                f"{part.name}, asked for {asked}; the data has {data['episodes']} episodes with returns of {mean} ± "
                f"{deviation} (standard deviation):",
                self.returns_table(document, part),
            ]
        shown: dict[str, Callable[[Any, int], str]] = {
            heading: lambda entry, index, key=key, digits=digits: f"{entry[key][index]:.{digits}f}"
            for heading, (key, digits) in self.shown.items()
        }
        commands = [text for part in self.parts for text in (part.command, part.study.commands(options.seeds)) if text]
        paragraphs += ["Every seed:", seed_table(document, options.seeds, shown)]
        paragraphs += ["Commands:", "\n".join(commands) + "\n"]
        write_results(self.name, self.title, document, "\n\n".join(paragraphs), options)


def _lists(results: Sequence[Entry], names: Mapping[str, str]) -> dict[str, Any]:
    """The values of every seed, by their new names."""
    return {name: [result[old] for result in results] for name, old in names.items()}
