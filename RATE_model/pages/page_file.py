"""The files of a page of results: NAME.json, and NAME.md, whose generated part is between two marks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from RATE_model.errors import UserError, error_reason
from RATE_model.pages.checks import check_entry
from RATE_model.pages.study import StudyOptions
from RATE_model.system.atomic import atomic_write_json, atomic_write_text

# Marks around the generated part of a results page.
BEGIN, END = "<!-- reproduce.py: begin -->", "<!-- reproduce.py: end -->"


def read_page(path: Path, *, flag: str = "") -> dict[str, Any]:
    """The entries of a page's JSON file, by label.

    Args:
        path: the file.
        flag: what named the file, to start a message with.

    Raises:
        UserError: the file cannot be read, or does not hold entries.
    """
    place = f"{flag} {path}".lstrip()
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{place}: cannot be read: {error_reason(error)}") from None
    except ValueError as error:
        raise UserError(f"{place}: is damaged, or not JSON ({error}); restore it or remove it") from None
    if not isinstance(document, dict):
        raise UserError(f"{place}: holds {type(document).__name__}; it must be the JSON file of a page of results")
    if wrong := [label for label, entry in document.items() if not isinstance(entry, dict)]:
        raise UserError(f"{place}: '{wrong[0]}' is not an entry of a page of results; remove it")
    return document


def read_results(name: str, options: StudyOptions) -> dict[str, Any]:
    """The entries of NAME.json; none if there is no such file.

    Raises:
        UserError: a file of the page is damaged or a folder. A page reads this before it trains anything.
    """
    path = options.results_dir / f"{name}.json"
    for file in (path, path.with_suffix(".md"), path.with_suffix(".png")):
        if file.is_dir():
            raise UserError(f"{file} is a folder, but a file of this page; move it away, or give another --results_dir")
    _handwritten(path.with_suffix(".md"), "")
    document = read_page(path) if path.exists() else {}
    for label, entry in document.items():
        check_entry(entry, f"{path}: '{label}'")
    return document


def write_results(name: str, title: str, document: Mapping[str, Any], text: str, options: StudyOptions) -> None:
    """Write NAME.json and the part of NAME.md between the two marks; hand-written text around it is kept.

    Raises:
        UserError: the page cannot be read, or its marks are not a pair; nothing is written.
    """
    options.results_dir.mkdir(parents=True, exist_ok=True)
    page = options.results_dir / f"{name}.md"
    before, after = _handwritten(page, title)
    atomic_write_json(options.results_dir / f"{name}.json", document, indent=1)
    atomic_write_text(page, f"{before}{BEGIN}\n\n{text}\n{END}{after}")


def _handwritten(page: Path, title: str) -> tuple[str, str]:
    """What stands before and after the generated part of a page."""
    try:
        old = page.read_text(encoding="utf-8") if page.exists() else f"# {title}\n\n{BEGIN}\n{END}\n"
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{page}: cannot be read ({error}); move it away") from None
    before, _, rest = old.partition(BEGIN)
    _, _, after = rest.partition(END)
    counts = {mark: old.count(mark) for mark in (BEGIN, END)}
    if set(counts.values()) not in ({0}, {1}) or old.find(END) < old.find(BEGIN):
        raise UserError(
            f"{page}: has '{BEGIN}' {counts[BEGIN]} times and '{END}' {counts[END]} times; must have each once, at "
            "the beginning and the end of the generated part"
        )
    return before, after
