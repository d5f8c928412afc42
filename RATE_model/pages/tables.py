"""Tables of results, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np

from RATE_model.acting.rollout import format_mean_and_error, mean_and_error


def origin(document: Mapping[str, Mapping[str, Any]]) -> str:
    """The origin of a document's entries: "at commit 0123456789ab on 2026-01-01".

    Entries of older pages have a commit but no date.
    """
    by_days: dict[str, set[str]] = {}
    for entry in document.values():
        if "commit" in entry:
            by_days.setdefault(entry.get("date", "an unrecorded date"), set()).update(entry["commit"])
    phrases = [
        (f"at commit {', '.join(sorted(commit[:12] for commit in known))} " if known else "")
        + (f"from {days}" if " to " in days else f"on {days}")
        for days, known in sorted(by_days.items())
    ]
    return " and ".join(phrases) or f"on {date.today()}"


def training_table(document: Mapping[str, Mapping[str, Any]]) -> str:
    """Per model: size, training cost averaged over seeds, and origin of the figures."""
    rows = [
        [
            label,
            entry["parameters"],
            cell(entry["optimizer_steps"], 0),
            cell(entry["train_seconds"], 0),
            ", ".join(commit[:12] for commit in entry["commit"]),
            entry.get("date", ""),
        ]
        for label, entry in document.items()
        if "train_seconds" in entry
    ]
    return table(["model", "parameters", "optimizer steps", "training, s", "commit", "date"], rows)


def seed_table(
    document: Mapping[str, Mapping[str, Any]],
    seeds: Sequence[int] | None,
    columns: Mapping[str, Callable[[Any, int], str]],
    *,
    heading: str = "model",
) -> str:
    """Training cost and further columns for every seed, as Markdown.

    Args:
        document: entries by label.
        seeds: of all trained entries, in the order of their values; None: each entry's own, also of controls.
        columns: a heading -> the cell, from an entry and the index of a seed.
        heading: of the first column.
    """

    def of_entry(entry: Mapping[str, Any]) -> Sequence[int]:
        if seeds is None:
            return entry.get("seeds", ())
        return seeds if "optimizer_steps" in entry else ()

    def cost(entry: Mapping[str, Any], name: str, index: int) -> str:
        return f"{entry[name][index]:.0f}" if name in entry else ""

    rows = [
        [
            label,
            seed,
            cost(entry, "optimizer_steps", index),
            cost(entry, "train_seconds", index),
            *(column(entry, index) for column in columns.values()),
        ]
        for label, entry in document.items()
        for index, seed in enumerate(of_entry(entry))
    ]
    return table([heading, "seed", "optimizer steps", "training, s", *columns], rows)


def cell(values: Sequence[float] | None, digits: int = 2) -> str:
    """Mean and standard error over seeds; no error for a single value; empty without values."""
    if not values:
        return ""
    return format_mean_and_error(*mean_and_error(np.array(values)), digits)


def table(header: Sequence[Any], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = [list(map(str, header)), ["---"] * len(header), *(list(map(str, row)) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
