"""The entries of a page, by label: which are kept, measured again or joined, and in which order.

An entry holds figures, lists with one value per seed, the seeds, and the command, commits and date that they come from.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from RATE_model.errors import UserError
from RATE_model.pages.checks import require_figures
from RATE_model.pages.page_file import read_page, read_results
from RATE_model.pages.run_results import span_of_days
from RATE_model.pages.study import VALUES, PageOptions, Study, StudyOptions


def merged(kept: Mapping[str, Any], measured: Mapping[str, Any], order: Sequence[str]) -> dict[str, Any]:
    """Kept and newly measured entries, in the order of these labels; new ones override kept ones."""
    entries = {**kept, **measured}
    return {label: entries[label] for label in sorted(entries, key=lambda label: _place(label, order))}


def entry_of(document: Mapping[str, Any], label: str, key: str) -> dict[str, Any]:
    """An entry of a page's document; empty if there is none, or if another command, or other values of flags, made it.

    Args:
        document: entries by label. Those of older pages without a command, or without values, count as made by these.
        key: the command and values; see `Study.key`.
    """
    entry = document.get(label, {})
    made, by = (text.partition(VALUES) for text in (entry.get("command", key), key))
    return entry if made[0] == by[0] and made[2] in ("", by[2]) else {}


def keep_seeds(name: str, replaced: Mapping[str, Any], options: StudyOptions, *, made: str = "") -> None:
    """Raise a UserError if entries of NAME.json that are measured again have seeds that are not.

    Args:
        name, options: the page.
        replaced: the entries by label.
        made: says how they came about.
    """
    for label, entry in replaced.items():
        if set(had := entry.get("seeds", ())) - set(options.seeds):
            every = sorted({*had, *options.seeds})
            asked, has, need = (
                " ".join(map(str, seeds)) for seeds in (options.seeds, had, range(every[0], every[-1] + 1))
            )
            raise UserError(
                f"--seeds {asked}: {options.results_dir / name}.json has seeds {has} of {label}{made}, and they "
                f"would be lost; give --seeds {need}, or another --results_dir"
            )


def keep_outdated(name: str, document: Mapping[str, Any], keys: Mapping[str, str], options: StudyOptions) -> None:
    """As `keep_seeds`, for the entries that other commands made than these, which are given by label."""
    replaced = {
        label: document[label]
        for label, key in keys.items()
        if label in document and not entry_of(document, label, key)
    }
    keep_seeds(name, replaced, options, made=", made by another command")


def refuse_outdated(name: str, kept: Mapping[str, Any], study: Study, options: StudyOptions) -> None:
    """Raise a UserError for the first entry of NAME.json that is kept, but was made by another command than today's.

    A page prints today's commands. `kept` are entries by label, with those of controls and of players without a model.
    """
    keys = {model: study.key(model) for model in study.models}
    for label in kept:
        model = model_of(study, label)
        if model is not None and not entry_of(kept, label, keys[model]):
            raise UserError(
                f"{options.results_dir / name}.json: '{label}' was made by another command than today's; name "
                f"{shlex.quote(model)} in --models, too"
            )


def kept_entries(name: str, study: Study, options: PageOptions, figures: Sequence[str] = ()) -> dict[str, Any]:
    """The entries of NAME.json that are not measured again, on a page whose models all have the same seeds.

    Without `--models` there are none. `figures` are what each must have.

    Raises:
        UserError: `--models` names an unknown model, the page is damaged or lacks figures, or it has other seeds.
    """
    chosen, path = study.chosen(options.models), options.results_dir / f"{name}.json"
    page = read_results(name, options)
    again = {label: entry for label, entry in page.items() if not options.models or model_of(study, label) in chosen}
    keep_seeds(name, again, options)
    kept = {label: entry for label, entry in page.items() if label not in again}
    refuse_outdated(name, kept, study, options)
    asked = " ".join(map(str, options.seeds))
    for label, entry in kept.items():
        require_figures(entry, f"{path}: '{label}'", figures)
        if (has := " ".join(map(str, entry.get("seeds", options.seeds)))) != asked:
            raise UserError(
                f"--seeds {asked}: {path} has seeds {has} of {label}; give these, or measure all models (without "
                "--models)"
            )
    return kept


def missing_seeds(entry: Mapping[str, Any], seeds: Sequence[int]) -> list[int]:
    """The seeds without figures in an entry."""
    return [seed for seed in seeds if seed not in entry.get("seeds", ())]


def with_seeds(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """An entry with the seeds of two entries of one command; for seeds in both, the new figures count.

    Either may be empty. Lists have one value per seed, and are left out if an entry lacks them; what is not measured
    per seed is that of the entry with the lowest one.
    """
    places = {seed: (entry, index) for entry in (old, new) for index, seed in enumerate(entry.get("seeds", ()))}
    sources = [places[seed] for seed in sorted(places)]

    def joined(fields: list[Any]) -> Any:
        """A field of the entry, from that field of every seed's source."""
        if isinstance(fields[0], Mapping):
            return {case: joined([field[case] for field in fields]) for case in fields[0]}
        if isinstance(fields[0], list):
            return [field[index] for field, (_, index) in zip(fields, sources, strict=True)]
        return fields[0]

    first = {**old, **new, **sources[0][0]}
    entries = [entry for entry in (old, new) if entry]
    known = [
        name
        for name, field in first.items()
        if name != "commit" and (not isinstance(field, list | Mapping) or all(name in entry for entry, _ in sources))
    ]
    dates = [entry["date"] for entry in entries if "date" in entry]  # older pages have none
    return {
        **{name: joined([entry.get(name, first[name]) for entry, _ in sources]) for name in known},
        "commit": sorted({commit for entry in entries for commit in entry["commit"]}),
    } | ({"date": span_of_days(dates)} if dates else {})


def join_pages(
    document: Mapping[str, Any],
    files: Sequence[Path],
    keys: Mapping[str, str],
    check_entry: Callable[[str, Any, str], None],
) -> dict[str, Any]:
    """Add the seeds in the JSON files of other machines' pages to a document.

    For seeds in several, the document's figures count, then those of the first file. Entries of the document that other
    commands made are replaced.

    Args:
        document: entries by label.
        files: `--join`.
        keys: the labels of all entries in the order of the page, and the commands that make them; see `Study.key`.
        check_entry: raises a UserError for an entry without all that the page needs, from its label, itself and the
            beginning of a message; see `check_figures`.

    Raises:
        UserError: a file cannot be read, has an entry of another command, or lacks seeds of an entry that it replaces.
    """
    joined = dict(document)
    for file in files:
        found = read_page(file, flag="--join")
        if not found:
            raise UserError(f"--join {file}: has no figures; give another file")
        for name in found:
            place = f"--join {file}: '{name}'"
            if name not in keys or not (entry := entry_of(found, name, keys[name])):
                raise UserError(f"{place} was made by another command than today's; remove it")
            check_entry(name, entry, place)
            outdated = name in joined and not entry_of(joined, name, keys[name])
            if outdated and set(joined[name]["seeds"]) - set(entry["seeds"]):
                raise UserError(f"{place} would replace seeds that another command made; give another --results_dir")
            both = with_seeds(entry, entry_of(joined, name, keys[name])) | {"command": keys[name]}
            joined = merged(joined, {name: both}, list(keys))
    return joined


def check_entries(
    name: str,
    document: Mapping[str, Any],
    keys: Mapping[str, str],
    check_entry: Callable[[str, Any, str], None],
    options: StudyOptions,
) -> None:
    """Raise a UserError for the first entry of NAME.json that today's commands made and that lacks figures.

    For `document`, `keys` and `check_entry` see `join_pages`.
    """
    for label, key in keys.items():
        if entry := entry_of(document, label, key):
            check_entry(label, entry, f"{options.results_dir / name}.json: '{label}'")


def by_model(study: Study, labels: Iterable[str]) -> list[str]:
    """Labels sorted by model, each followed by its controls ("MODEL, CONTROL"); labels without a model come last."""
    models = list(study.models)
    return sorted(labels, key=lambda label: _place(model_of(study, label) or label, models))


def model_of(study: Study, label: str) -> str | None:
    """The model of a label, "MODEL" or "MODEL, CONTROL"; None for players without a model."""
    owners = [model for model in study.models if f"{label}, ".startswith(f"{model}, ")]
    return max(owners, key=len) if owners else None


def _place(label: str, order: Sequence[str]) -> int:
    """The position of a label; unknown ones come last."""
    return order.index(label) if label in order else len(order)
