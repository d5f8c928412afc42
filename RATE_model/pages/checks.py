"""Checks of a page's entries: whether they have their figures, of the right types, one per seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from RATE_model.environments.contract import Case
from RATE_model.errors import UserError


def check_figures(
    entry: Any,
    place: str,
    *,
    of_seeds: Sequence[str],
    rates: Mapping[str, Sequence[Case]],
    alone: Sequence[str],
) -> None:
    """Raise a UserError unless an entry has its figures and its origin.

    Args:
        entry: the entry.
        place: the beginning of a message.
        of_seeds: lists of one number per seed, besides the seeds themselves.
        rates: such lists of numbers from 0 to 1, by case; without cases a single list.
        alone: numbers.
    """
    entry = entry if isinstance(entry, Mapping) else {}
    require_figures(entry, place, (*rates, "seeds", *of_seeds, *alone, "commit", "date"))
    check_entry(entry, place)
    found = {name: entry[name] for name in of_seeds}
    for name, cases in rates.items():
        by_case = entry[name] if isinstance(entry[name], Mapping) else {}
        found |= {f"{name} {case}": by_case.get(str(case)) for case in cases} or {name: entry[name]}
    for name, values in found.items():
        if not isinstance(values, list):
            raise UserError(f"{place}: '{name}' is {values!r}; must be a list of numbers")
        if name not in of_seeds and not all(_is_number(value) and 0 <= value <= 1 for value in values):
            raise UserError(f"{place}: '{name}' is {values}; rates are from 0 to 1")
    if wrong := [name for name in alone if not _is_number(entry[name])]:
        raise UserError(f"{place}: '{wrong[0]}' is {entry[wrong[0]]!r}; must be a number")


def require_figures(entry: Mapping[str, Any], place: str, names: Iterable[str]) -> None:
    """Raise a UserError for the first of these names that an entry lacks; `place` begins the message."""
    if missing := [name for name in names if name not in entry]:
        raise UserError(f"{place} has no '{missing[0]}'; restore the file, or remove this entry")


def check_entry(entry: Mapping[str, Any], place: str) -> None:
    """Raise a UserError unless an entry's fields have the types that pages hold, and its lists a value per seed."""
    seeds, commits, day = (entry.get(name, default) for name, default in (("seeds", [0]), ("commit", []), ("date", "")))
    if not _is_list_of(int, seeds) or not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"{place}: 'seeds' is {seeds!r}; must be different seeds, at least one")
    if not _is_list_of(str, commits) or not isinstance(day, str) or not isinstance(entry.get("command", ""), str):
        raise UserError(f"{place}: 'commit' must be a list of texts, 'date' a text and 'command' a text")
    count = len(seeds) if "seeds" in entry else None
    for name, values in entry.items():
        if name not in ("seeds", "commit", "date", "command"):
            _check_field(values, place, name, count)


def _check_field(found: Any, place: str, name: str, count: int | None) -> None:
    """Raise a UserError unless a field is a number, a list of numbers, lists of them, or all of that by case."""
    if isinstance(found, Mapping):
        for case, values in found.items():
            _check_field(values, place, f"{name} {case}", count)
    elif isinstance(found, list):
        if not found or not all(_is_number(value) or _is_list_of(float, value) for value in found):
            raise UserError(f"{place}: '{name}' is {found!r:.200}; must be a list of numbers")
        if count is not None and len(found) != count:
            raise UserError(f"{place} has {count} seeds, but {len(found)} values of '{name}'")
    elif not _is_number(found):
        raise UserError(f"{place}: '{name}' is {found!r:.200}; must be a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _is_list_of(kind: type, found: Any) -> bool:
    """Whether this is a list of integers (int), finite numbers (float) or texts (str)."""
    return isinstance(found, list) and all(_is_number(x) if kind is float else type(x) is kind for x in found)
