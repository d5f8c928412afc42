"""Roll out a model in vectorised environments."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import nn

from RATE_model.agent import Agent
from RATE_model.system import distributed
from RATE_model.system.interrupts import stop_if_asked
from RATE_model.system.processes import available_cores
from RATE_model.system.progress import progress_bar

# An actor drops finished rows once at most this share of its rows is still running.
_COMPACT = 0.95

# Limit for evaluating cases side by side, in bytes; more would exceed the caches and slow every step down.
_MEMORY_BUDGET = 2**26


# Longer than a step of many environments takes.
_SECONDS_PER_STEP = 5.0


class BatchActor(Protocol):
    """Acts in B environments at once: an `Actor`, or a player without a model."""

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """Actions `(B, ...)` for observations `(B, ...)`, given the rewards `(B,)` of the previous actions."""
        ...

    def keep(self, rows: np.ndarray) -> None:
        """Continue with a subset of rows, `(b,)` indices."""
        ...

    def finite(self) -> np.ndarray:
        """Which rows decided by finite numbers at the last step, `(B,)` bool, or `()` for all of them."""
        return np.ones((), dtype=bool)


class PlayerWrapper(BatchActor):
    """A player around another one; subclasses change what it is shown or what it does."""

    def __init__(self, player: BatchActor) -> None:
        self._player = player

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """See `BatchActor`."""
        return self._player.act(observations, rewards)

    def keep(self, rows: np.ndarray) -> None:
        """See `BatchActor`."""
        self._player.keep(rows)

    def finite(self) -> np.ndarray:
        """See `BatchActor`."""
        return self._player.finite()


@dataclass(frozen=True)
class Memoryless(BatchActor):
    """A player whose actions `(B, ...)` are a function of the current observations `(B, ...)`: a `BatchActor`."""

    choose: Callable[[np.ndarray], np.ndarray]

    def act(self, observations: np.ndarray, rewards: np.ndarray) -> np.ndarray:
        """See `BatchActor`."""
        return self.choose(observations)

    def keep(self, rows: np.ndarray) -> None:
        """Nothing is remembered of rows."""


@dataclass(frozen=True)
class Episodes:
    """The results of B episodes."""

    returns: np.ndarray  # (B,) float64, sum of rewards
    lengths: np.ndarray  # (B,) int64, steps
    last_rewards: np.ndarray  # (B,) float64, reward of the last step

    @classmethod
    def joined(cls, parts: Sequence[Episodes]) -> Episodes:
        """Concatenate episodes."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    def part(self, rows: slice | np.ndarray) -> Episodes:
        """A subset of the episodes."""
        return Episodes(*(getattr(self, field.name)[rows] for field in fields(self)))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set torch's number of threads per operation inside, and restore it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in eval mode inside, and restore its mode afterwards, even after an error."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def group_cases(model: Agent, cases: Sequence[int], episodes: int) -> Iterator[list[int]]:
    """Group different cases (lengths, sizes, ...) of this many episodes each into those worth acting in at once, in
    order."""
    at_once = max(1, _MEMORY_BUDGET // (episodes * model.memory.bytes_per_row()))
    return (list(cases[start : start + at_once]) for start in range(0, len(cases), at_once))


def rollout(
    actor: BatchActor,
    environments: VectorEnv,
    *,
    seeds: np.ndarray,
    max_steps: int,
    options: dict[str, Any] | None = None,
    compact: bool = True,
    description: str = "acting",
) -> Episodes:
    """Play one episode in every environment, all at once. With several processes each plays a share.

    Args:
        actor: freshly made or reset, with one row per environment.
        environments: must not reset themselves (`AutoresetMode.DISABLED`), and ignore actions once finished.
        seeds: `(B,)` one per episode.
        max_steps: step limit per episode.
        options: for the environments' reset.
        compact: drop the rows of finished episodes; False if a `transform_memory` compares rows.
        description: of the progress bar.

    Raises:
        Interrupted: a signal asked to stop; see `system.interrupts`.
        ValueError: the environments reset themselves, so a second episode would start with the first one's memory.
    """
    given = {"seeds": seeds, "max_steps": max_steps, "options": options, "compact": compact, "description": description}
    return _merged(distributed.run_in_all(lambda: _play(actor, environments, **given)))


def _merged(parts: Sequence[Episodes]) -> Episodes:
    """Combine the shares of all processes."""
    if len(parts) == 1:
        return parts[0]
    return Episodes(*(np.sum([getattr(part, field.name) for part in parts], axis=0) for field in fields(Episodes)))


def _play(
    actor: BatchActor,
    environments: VectorEnv,
    *,
    seeds: np.ndarray,
    max_steps: int,
    options: dict[str, Any] | None,
    compact: bool,
    description: str,
) -> Episodes:
    """Play this process's share of a rollout; the entries of other episodes are zero."""
    if environments.metadata.get("autoreset_mode") != AutoresetMode.DISABLED:
        raise ValueError("rollout needs environments with AutoresetMode.DISABLED")
    count = environments.num_envs
    returns, lengths, last = np.zeros(count), np.zeros(count, dtype=np.int64), np.zeros(count)
    rewards, overflowed = np.zeros(count), 0
    rows = np.arange(count)  # the environments that still have a row in the actor
    actions: np.ndarray | None = None
    if not (running := distributed.episode_mask(count)).all():
        if not running.any():
            return Episodes(returns, lengths, last)
        rows, options = np.flatnonzero(running), {**(options or {}), "reset_mask": running.copy()}
        actor.keep(rows)
    # Gymnasium's base class declares a single seed; vector environments take one per environment.
    observations, _ = environments.reset(seed=seeds, options=options)  # pyright: ignore[reportArgumentType]
    with progress_bar(total=max_steps, desc=description, unit="step") as bar:
        for _ in range(max_steps):
            stop_if_asked()
            chosen = actor.act(observations[rows], rewards[rows])
            actions = np.zeros((count, *chosen.shape[1:]), chosen.dtype) if actions is None else actions
            actions[rows] = chosen
            observations, rewards, terminated, truncated, _ = environments.step(actions)
            returns += np.where(running, rewards, 0.0)
            last = np.where(running, rewards, last)
            lengths += running
            ended = terminated | truncated
            overflowed += _overflowed(actor, (running & ended)[rows])
            running &= ~ended
            bar.update()
            if not running.any():
                break
            kept = running[rows]
            if compact and kept.mean() <= _COMPACT:
                actor.keep(np.flatnonzero(kept))
                rows = rows[kept]
    overflowed += _overflowed(actor, running[rows])
    if overflowed:
        print(
            f"warning: {description}: the agent's outputs were not finite at the end of {overflowed} of {count} "
            "episodes (its memory overflowed), so its last actions there mean nothing",
            file=sys.stderr,
            flush=True,
        )
    return Episodes(returns, lengths, last)


def _overflowed(actor: BatchActor, rows: np.ndarray) -> int:
    """How many of these rows, `(B,)` bool, the actor decided by numbers that are not finite at the last step.

    A memory that is not stable may overflow in episodes longer than those of training.
    """
    return int((rows & ~actor.finite()).sum()) if rows.any() else 0


def rollout_alternating(
    actors: Sequence[BatchActor],
    environments: Sequence[VectorEnv],
    *,
    seeds: Sequence[np.ndarray],
    max_steps: int,
    description: str = "acting",
) -> Episodes:
    """`rollout` in several groups of environments: while the actor serves one group, the processes of the others work.

    Args:
        actors, environments, seeds: of each group, as for `rollout`. The environments step in separate processes and
            are closed afterwards.
        max_steps, description: see `rollout`.

    Returns:
        The episodes of all groups, in order.
    """

    def play(group: int) -> Episodes:
        given = {"seeds": seeds[group], "max_steps": max_steps, "description": description}
        return _play(actors[group], environments[group], options=None, compact=True, **given)

    return _merged(distributed.run_in_all(lambda: _play_groups(play, environments)))


def _play_groups(play: Callable[[int], Episodes], environments: Sequence[VectorEnv]) -> Episodes:
    """See `rollout_alternating`."""
    groups = len(environments)
    # Idle torch threads would take cores from those processes.
    with torch_threads(max(1, available_cores() // (2 * groups))), ThreadPoolExecutor(groups) as pool:
        played = [pool.submit(play, group) for group in range(groups)]
        try:
            done, _ = wait(played, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        except (
            KeyboardInterrupt
        ):  # all rollouts stop at their next step, so that none reads from a pipe that is being closed
            wait(played, timeout=_SECONDS_PER_STEP)
            raise
        finally:
            for environment in environments:  # this also ends the other rollouts if one failed
                environment.close()
    return Episodes.joined([future.result() for future in played])


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard error of the mean; NaN as the error of a single value."""
    values = np.asarray(values, dtype=np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
    return float(values.mean()), float(error)


def error_entry(name: str, values: np.ndarray) -> dict[str, float]:
    """The standard error of the mean of values `(n,)`, by this name; empty for a single value."""
    return {name: mean_and_error(values)[1]} if len(values) > 1 else {}


def format_mean_and_error(mean: float, error: float | None, digits: int = 2) -> str:
    """A mean and its standard error, as 8.25 ± 0.81; the mean alone without an error."""
    return f"{mean:.{digits}f}" + ("" if error is None or np.isnan(error) else f" ± {error:.{digits}f}")
