"""Collecting Minigrid-Memory trajectories with the expert, on all cores.

Seeds count up from ``FIRST_SEED``, far above those of any evaluation. Episodes are played in processes of their own and
judged here in the order of their seeds: those of a wished length (and success) are kept until each of the four kinds,
key or ball to remember, at the northern or the southern arm, has its quarter. So the file does not depend on the number
of processes. What comes from them is small: encoded views, of which there are a few dozen, not pictures.

A process that plays first imports the script that started it: `collect_traj.py` does without torch, so its processes do
as well; those of a training that collects its data load torch too, some seconds each.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from MinigridMemory.MinigridMemory_src.env import ENV_ID, OBSERVATION_SHAPE, MinigridMemoryEnv, frames_of_views
from MinigridMemory.MinigridMemory_src.expert import Flaws, Played, play
from RATE_model.acting.driver import DriverChoice, driver_attributes
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.locks import making
from RATE_model.system.processes import available_cores, in_order
from RATE_model.system.progress import progress_bar

FIRST_SEED = 1_000_000
BLOCK = 50  # episodes that a process plays at once
BATCH_STEPS = 2000  # steps drawn and written at once, about 40 MB
# This many episodes in a row without one to keep: the wish cannot be met, or only in hours. The rarest kind of the
# published selections is one in 45.
PATIENCE = 5000
CUES, ARMS = ("key", "ball"), ("north", "south")
KINDS = tuple(itertools.product(CUES, ARMS))

FAILED, SHORT, LONG, SURPLUS = "failed", "too short", "too long", "of a kind already complete"


@dataclass(frozen=True)
class Selection:
    """Which episodes to collect."""

    size: int  # of the mazes
    random_length: bool  # whether the corridor's end is drawn
    min_steps: int  # of episodes kept
    max_steps: int  # of episodes kept
    cap: int  # time limit, in steps
    flaws: Flaws  # of the expert
    trajectories: int  # how many to keep
    driver: DriverChoice | None = None  # the agent that moves in the expert's place

    @property
    def keep_failures(self) -> bool:
        """Failed episodes are kept if the expert was told to fail or an agent drives; those spoilt by noise are not."""
        return self.flaws.wrong_arm > 0 or self.flaws.guess > 0 or self.driver is not None

    @property
    def first_seed(self) -> int:
        """Of the episodes that are played, which count up from it."""
        return FIRST_SEED if self.driver is None else self.driver.first_seed

    def refusal(self, episode: Played) -> str | None:
        """Why an episode is not kept; None if it may be."""
        if not episode.success and not self.keep_failures:
            return FAILED
        if episode.steps < self.min_steps:
            return SHORT
        return LONG if episode.steps > self.max_steps else None


@dataclass
class Tally:
    """What became of the episodes played."""

    room: dict[tuple[str, str], int]  # of each kind, how many are still wanted
    dropped: Counter[str] = field(default_factory=Counter)
    played: int = 0
    kept: int = 0
    successes: int = 0
    dropped_in_a_row: int = 0  # episodes dropped since the last one that was kept
    lengths: tuple[int, int] = (0, 0)  # shortest and longest episode played, in steps

    @classmethod
    def of(cls, trajectories: int) -> Tally:
        """Room for this many, divided evenly."""
        share, rest = divmod(trajectories, len(KINDS))
        return cls({kind: share + (number < rest) for number, kind in enumerate(KINDS)})

    def judge(self, episode: Played, selection: Selection) -> bool:
        """Count an episode; whether it is kept. Raises UserError when none has been kept for long."""
        kind = (episode.cue, episode.arm)
        reason = selection.refusal(episode) or (None if self.room[kind] else SURPLUS)
        shortest, longest = self.lengths if self.played else (episode.steps, episode.steps)
        self.lengths = min(shortest, episode.steps), max(longest, episode.steps)
        self.played += 1
        self.successes += episode.success
        if reason is None:
            self.room[kind] -= 1
            self.kept += 1
            self.dropped_in_a_row = 0
            return True
        self.dropped[reason] += 1
        self.dropped_in_a_row += 1
        if self.dropped_in_a_row >= PATIENCE:
            raise UserError(self._hopeless(selection))
        return False

    def summary(self) -> str:
        """How many were dropped, by reason."""
        return ", ".join(f"{count} {reason}" for reason, count in self.dropped.most_common()) or "none"

    def _hopeless(self, selection: Selection) -> str:
        wanted = f"{selection.min_steps} to {selection.max_steps}"
        return (
            f"collected {self.kept} of {selection.trajectories} episodes and gave up: none of the last {PATIENCE} "
            f"could be kept; {self.played} played, dropped: {self.summary()}.\nEpisodes to keep have {wanted} steps; "
            f"those played had {self.lengths[0]} to {self.lengths[1]}. See --min_steps, --max_steps, --cap and --noise."
        )


def generate(selection: Selection, path: Path, *, overwrite: bool = False, workers: int | None = None) -> Path:
    """Collect a file of trajectories; see `DataMaker.make`. Fewer processes play for few episodes."""
    with making(path, overwrite=overwrite) as wanted:
        if wanted:
            _make(selection, path, workers)
    return path


def _make(selection: Selection, path: Path, workers: int | None) -> None:
    """See `generate`."""
    MinigridMemoryEnv(selection.size)  # a missing package shows here, not in a process
    workers = workers or max(1, min(available_cores(), selection.trajectories // (5 * BLOCK)))
    tally, episodes = _collect(selection, workers)
    with TrajectoryWriter(
        path,
        observation_shape=OBSERVATION_SHAPE,
        observation_dtype="uint8",
        index_frames=True,
        attributes=_attributes(selection, tally),
    ) as writer:
        with progress_bar(total=len(episodes), desc="writing", unit="episode") as bar:
            for batch in _batches(episodes):
                _write(writer, batch)
                bar.update(len(batch))


def _attributes(selection: Selection, tally: Tally) -> dict[str, object]:
    """What the file says of how it was made."""
    options = {name: value for name, value in asdict(selection).items() if name not in ("flaws", "driver")}
    return {
        "environment": ENV_ID,
        "generator": "scripted expert that sees the 3x3 view",
        **options,
        **driver_attributes(selection.driver),
        **asdict(selection.flaws),
        "keep_failures": selection.keep_failures,
        "first_seed": selection.first_seed,
        "last_seed": selection.first_seed + tally.played - 1,
        "played": tally.played,
        "acceptance": tally.kept / tally.played,
        "dropped": dict(tally.dropped),
        "expert_success": tally.successes / tally.played,
    }


def _collect(selection: Selection, workers: int) -> tuple[Tally, list[Played]]:
    """Play and judge until there are enough; 10,000 episodes of 40 steps take some 15 MB."""
    tally, kept = Tally.of(selection.trajectories), []
    episodes = _played(selection, workers)
    with closing(episodes), progress_bar(total=selection.trajectories, desc="collecting", unit="episode") as bar:
        while len(kept) < selection.trajectories:
            episode = next(episodes)
            if tally.judge(episode, selection):
                kept.append(episode)
                bar.update()
    return tally, kept


def _batches(episodes: list[Played]) -> Iterator[list[Played]]:
    """Consecutive episodes, as many as have BATCH_STEPS steps together when padded, or one that has more."""
    batch: list[Played] = []
    for episode in episodes:
        if batch and (len(batch) + 1) * max(episode.steps, *(other.steps for other in batch)) > BATCH_STEPS:
            yield batch
            batch = []
        batch.append(episode)
    if batch:
        yield batch


def _write(writer: TrajectoryWriter, episodes: list[Played]) -> None:
    """Append a batch of episodes, padded by their last step."""
    lengths = np.array([episode.steps for episode in episodes])
    longest = lengths.max()

    def padded(values: np.ndarray) -> np.ndarray:
        return np.pad(values, [(0, longest - len(values))] + [(0, 0)] * (values.ndim - 1), mode="edge")

    rewards = np.zeros((len(episodes), longest), dtype=np.float32)
    rewards[np.arange(len(episodes)), lengths - 1] = [episode.reward for episode in episodes]

    def constant(values: list[int]) -> np.ndarray:
        return np.repeat(np.array(values)[:, None], longest, axis=1)

    writer.add_episodes(
        frames_of_views(np.stack([padded(episode.views) for episode in episodes])),
        np.stack([padded(episode.actions) for episode in episodes]),
        rewards,
        lengths,
        np.array([episode.terminated for episode in episodes]),
        {
            "seed": constant([episode.seed for episode in episodes]),
            "cue": constant([CUES.index(episode.cue) for episode in episodes]).astype(np.uint8),
            "arm": constant([ARMS.index(episode.arm) for episode in episodes]).astype(np.uint8),
            "agent_pos": np.stack([padded(episode.places) for episode in episodes]),
            "agent_dir": np.stack([padded(episode.headings) for episode in episodes]),
            "expert_action": np.stack([padded(episode.best) for episode in episodes]),
        },
    )


def _played(selection: Selection, workers: int) -> Generator[Played]:
    """Episodes of the seeds from FIRST_SEED on, in this order, without end. Close it to stop the processes."""
    work = functools.partial(
        play,
        selection.size,
        random_length=selection.random_length,
        max_steps=selection.cap,
        flaws=selection.flaws,
        driver=selection.driver,
    )
    blocks = (range(first, first + BLOCK) for first in itertools.count(selection.first_seed, BLOCK))
    with closing(in_order(work, blocks, workers)) as results:
        for episodes in results:
            yield from episodes
