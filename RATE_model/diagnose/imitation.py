"""How much an agent copies its past actions, and at which steps of an episode it imitates worse."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from RATE_model.diagnose.recording import Recording

_SMALL = 1e-6  # continuous actions closer than this count as equal


def copying(found: Recording) -> dict[str, Any]:
    """How much predictions depend on past actions and on memory, over all steps except the first of each episode.

    Returns:
        "steps"; "repeats", the share of steps whose target is the last action; and for the model, the model with past
        actions exchanged, with its memory (if any) knocked out, and a player that copies the last action: "loss" and,
        for discrete actions, "accuracy", "where_it_repeats", "where_it_changes". "copies" is the share of steps at
        which the model chooses the last action.
    """
    later = np.flatnonzero(found.step > 0)
    last, targets = found.actions[later - 1], found.targets[later]
    discrete = targets.ndim == 1
    repeats = np.equal(targets, last) if discrete else np.all(np.abs(targets - last) < _SMALL, axis=-1)
    result: dict[str, Any] = {"steps": len(later), "repeats": _mean(repeats)}
    for name, predictions, errors in (
        ("model", found.predictions, found.errors),
        ("past_actions_exchanged", found.exchanged, found.exchanged_errors),
        ("memory_knocked_out", found.forgetful, found.forgetful_errors),
    ):
        if predictions is None or errors is None:
            continue
        result[name] = {"loss": _mean(errors[later])}
        if discrete:
            result[name] |= _accuracies(predictions[later].argmax(-1), targets, repeats)
    if discrete:
        result["copies"] = _mean(np.equal(found.predictions[later].argmax(-1), last))
        result["copying_the_last_action"] = _accuracies(last, targets, repeats)
    else:
        result["copying_the_last_action"] = {"loss": _mean(((targets - last) ** 2).mean(-1))}
    return result


def _accuracies(chosen: np.ndarray, targets: np.ndarray, repeats: np.ndarray) -> dict[str, float | None]:
    right = np.equal(chosen, targets)
    return {
        "accuracy": _mean(right),
        "where_it_repeats": _mean(right[repeats]),
        "where_it_changes": _mean(right[~repeats]),
    }


def by_step(found: Recording) -> list[dict[str, Any]]:
    """Loss and accuracy at steps 1, 2, 3 to 4, 5 to 8, ... of episodes, counted from 1."""
    return _by(found, found.step + 1)


def by_time_since(found: Recording, name: str) -> list[dict[str, Any]]:
    """The same by steps since an array of infos was last nonzero, from 0; earlier steps are left out.

    An array with several numbers per step is nonzero if one of them is.
    """
    event = np.any(np.nan_to_num(found.infos[name]), axis=-1)
    place = np.maximum.accumulate(np.where(event, np.arange(len(event)), -1))
    since = np.arange(len(event)) - place
    inside = (place >= 0) & (since <= found.step)  # the last event belongs to the same episode
    return _by(found, np.where(inside, since, -1))


def _by(found: Recording, number: np.ndarray) -> list[dict[str, Any]]:
    """Loss and accuracy by number, (S,) int64, in bins of doubling size; negative numbers are left out."""
    right = np.equal(found.predictions.argmax(-1), found.targets) if found.targets.ndim == 1 else None
    bins = []
    for first, last in _doubling(int(number.max())):
        inside = (number >= first) & (number <= last)
        if inside.any():
            bins.append(
                {
                    "from": first,
                    "to": last,
                    "steps": int(inside.sum()),
                    "loss": _mean(found.errors[inside]),
                    "accuracy": None if right is None else _mean(right[inside]),
                }
            )
    return bins


def _doubling(largest: int) -> Sequence[tuple[int, int]]:
    """The bins 0, 1, 2, 3 to 4, 5 to 8, ..., as (first, last), until one holds the largest number."""
    bins, first = [(0, 0), (1, 1)], 2
    while first <= largest:
        bins.append((first, 2 * (first - 1)))
        first = 2 * (first - 1) + 1
    return bins


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
