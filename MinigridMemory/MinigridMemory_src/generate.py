"""Collecting Minigrid-Memory trajectories with the expert, on all cores.

Seeds count up from ``FIRST_SEED``, far above those of any evaluation. Worker processes play the episodes; this process
checks them in the order of their seeds and keeps those of the requested length (and success) until each of the four
kinds, key or ball to remember, at the northern or the southern arm, has its quarter. So the file does not depend on the
number of workers. They send little data: encoded views, of which there are a few dozen, not pictures.

A worker first imports the script that started it: `collect_traj.py` does not need torch, so its workers do not load it;
those of a training run that collects its data do, which takes some seconds each.
"""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from MinigridMemory.MinigridMemory_src.env import ENV_ID, OBSERVATION_SHAPE, MinigridMemoryEnv, frames_of_views
from MinigridMemory.MinigridMemory_src.expert import Flaws, Played, play
from RATE_model.acting.driver import DriverChoice, driver_attributes, generator_of
from RATE_model.cli.limits import MAX_STEPS
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.system.locks import making
from RATE_model.system.processes import available_cores, in_order
from RATE_model.system.progress import progress_bar

FIRST_SEED = 1_000_000
BLOCK = 50  # episodes that a worker plays at a time
BATCH_STEPS = 2000  # padded steps rendered and written at a time, about 40 MB
# Give up after this many dropped episodes in a row: the selection is impossible or would take hours. The rarest kind
# in the published selections is one in 45.
PATIENCE = 5000
CUES, ARMS = ("key", "ball"), ("north", "south")
KINDS = tuple(itertools.product(CUES, ARMS))

FAILED, SHORT, LONG, SURPLUS = "failed", "too short", "too long", "of a kind already complete"


@dataclass(frozen=True)
class Selection:
    """Which episodes to collect."""

    size: int  # rows and columns of the mazes
    random_length: bool  # draw the end of the corridor
    min_steps: int  # shortest episodes to keep
    max_steps: int  # longest episodes to keep
    cap: int  # time limit, in steps
    flaws: Flaws  # of the expert
    trajectories: int  # how many to keep
    driver: DriverChoice | None = None  # the agent that moves instead of the expert

    @property
    def keep_failures(self) -> bool:
        """Whether to keep failures: if the expert fails on purpose or an agent drives, but not those due to noise."""
        return self.flaws.wrong_arm > 0 or self.flaws.guess > 0 or self.driver is not None

    @property
    def first_seed(self) -> int:
        """The first seed; the others count up from it."""
        return FIRST_SEED if self.driver is None else self.driver.first_seed

    def refusal(self, episode: Played) -> str | None:
        """Why an episode is dropped; None if it may be kept."""
        if not episode.success and not self.keep_failures:
            return FAILED
        if episode.steps < self.min_steps:
            return SHORT
        return LONG if episode.steps > self.max_steps else None


class Tally:
    """Counts of the episodes played, kept and dropped.

    Attributes:
        room: episodes still needed, by kind; the kinds share them evenly.
        played, kept, successes: numbers of episodes.
        dropped: episodes dropped, by reason.
        lengths: the shortest and the longest episode played, in steps.
    """

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        share, rest = divmod(selection.trajectories, len(KINDS))
        self.room = {kind: share + (number < rest) for number, kind in enumerate(KINDS)}
        self.dropped: Counter[str] = Counter()
        self.played = self.kept = self.successes = 0
        self.lengths = (MAX_STEPS, 0)  # until an episode is played
        self._dropped_in_a_row = 0

    def judge(self, episode: Played) -> bool:
        """Count an episode; whether to keep it. Raises UserError after too many dropped in a row."""
        kind = (episode.cue, episode.arm)
        reason = self._selection.refusal(episode) or (None if self.room[kind] else SURPLUS)
        self.lengths = min(self.lengths[0], episode.steps), max(self.lengths[1], episode.steps)
        self.played += 1
        self.successes += episode.success
        if reason is None:
            self.room[kind] -= 1
            self.kept += 1
            self._dropped_in_a_row = 0
            return True
        self.dropped[reason] += 1
        self._dropped_in_a_row += 1
        if self._dropped_in_a_row >= PATIENCE:
            raise UserError(self._hopeless())
        return False

    def _hopeless(self) -> str:
        selection, dropped = self._selection, ", ".join(f"{n} {reason}" for reason, n in self.dropped.most_common())
        return (
            f"collected {self.kept} of {selection.trajectories} episodes and gave up: none of the last {PATIENCE} "
            f"could be kept; {self.played} played, dropped: {dropped}.\nEpisodes to keep have {selection.min_steps} to "
            f"{selection.max_steps} steps; those played had {self.lengths[0]} to {self.lengths[1]}. See --min_steps, "
            "--max_steps, --cap and --noise."
        )


def generate(selection: Selection, path: Path, *, overwrite: bool = False, workers: int | None = None) -> Path:
    """Collect a file of trajectories; see `DataMaker.make`. Few episodes use fewer processes."""
    with making(path, overwrite=overwrite) as wanted:
        if not wanted:
            return path
        MinigridMemoryEnv(selection.size)  # fail here, not in a worker, if a package is missing
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
                count = max(1, BATCH_STEPS // max(episode.steps for episode in episodes))
                for first in range(0, len(episodes), count):
                    batch = episodes[first : first + count]
                    _write(writer, batch)
                    bar.update(len(batch))
    return path


def _attributes(selection: Selection, tally: Tally) -> dict[str, object]:
    """The file's attributes: how it was made."""
    options = {name: value for name, value in asdict(selection).items() if name not in ("flaws", "driver")}
    return {
        "environment": ENV_ID,
        "generator": generator_of(selection.driver, "scripted expert that sees the 3x3 view"),
        **options,
        **driver_attributes(selection.driver),
        **asdict(selection.flaws),
        "keep_failures": selection.keep_failures,
        "first_seed": selection.first_seed,
        "last_seed": selection.first_seed + tally.played - 1,
        "played": tally.played,
        "acceptance": tally.kept / tally.played,
        "dropped": dict(tally.dropped),
        "expert_success" if selection.driver is None else "driver_success": tally.successes / tally.played,
    }


def _collect(selection: Selection, workers: int) -> tuple[Tally, list[Played]]:
    """Play and check episodes until there are enough; 10,000 episodes of 40 steps take about 15 MB."""
    tally, kept = Tally(selection), []
    episodes = _played(selection, workers)
    with closing(episodes), progress_bar(total=selection.trajectories, desc="collecting", unit="episode") as bar:
        while len(kept) < selection.trajectories:
            episode = next(episodes)
            if tally.judge(episode):
                kept.append(episode)
                bar.update()
    return tally, kept


def _write(writer: TrajectoryWriter, episodes: list[Played]) -> None:
    """Append a batch of episodes, padded with their last step."""
    lengths = np.array([episode.steps for episode in episodes])
    longest = lengths.max()

    def padded(name: str) -> np.ndarray:
        arrays = [getattr(episode, name) for episode in episodes]
        return np.stack([values[np.minimum(np.arange(longest), len(values) - 1)] for values in arrays])

    def constant(values: list[int], kind: type) -> np.ndarray:
        return np.repeat(np.array(values, dtype=kind)[:, None], longest, axis=1)

    rewards = np.zeros((len(episodes), longest), dtype=np.float32)
    rewards[np.arange(len(episodes)), lengths - 1] = [episode.reward for episode in episodes]
    infos = {
        "seed": constant([episode.seed for episode in episodes], np.int64),
        "cue": constant([CUES.index(episode.cue) for episode in episodes], np.uint8),
        "arm": constant([ARMS.index(episode.arm) for episode in episodes], np.uint8),
        "agent_pos": padded("places"),
        "agent_dir": padded("headings"),
        "expert_action": padded("best"),
    }
    terminals = np.array([episode.terminated for episode in episodes])
    writer.add_episodes(frames_of_views(padded("views")), padded("actions"), rewards, lengths, terminals, infos)


def _played(selection: Selection, workers: int) -> Generator[Played]:
    """Endless episodes of the seeds from FIRST_SEED, in order. Close the generator to stop the workers."""
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
