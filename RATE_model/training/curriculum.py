"""Curricula: when training moves on to longer trajectories, and when it ends.

A stage is a number of segments. A position (stage, epoch, batch) and the curriculum's state suffice to resume.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from RATE_model.errors import UserError


def parse_stages(texts: Sequence[str], last: int, *, flag: str) -> list[tuple[int, int]]:
    """Parse stages written as SEGMENTS:EPOCHS, such as 1:40, into (segments, epochs).

    Raises:
        UserError: the text has another form, or the segments do not increase from stage to stage up to `last`; the
            message names the flag.
    """
    stages = []
    for text in texts:
        match = re.fullmatch(r"(\d+):(\d+)", text, re.ASCII)
        stage = (int(match[1]), int(match[2])) if match else (0, 0)
        if not min(stage):
            raise UserError(f"--{flag} {text}: must be SEGMENTS:EPOCHS, such as 1:40, both at least 1")
        stages.append(stage)
    segments = [*(segments for segments, _ in stages), last]
    if any(one >= other for one, other in zip(segments, segments[1:], strict=False)):
        raise UserError(
            f"--{flag} {' '.join(texts)}: the segments must increase from stage to stage and stay below the "
            f"last stage's {last}"
        )
    return stages


@dataclass
class FixedStages:
    """Every stage lasts its number of `epochs`; a single stage means training without a curriculum."""

    stages: Sequence[int]
    epochs: Sequence[int]
    index: int = 0
    epochs_done: int = 0

    @property
    def segments(self) -> int:
        """Segments of the current stage."""
        return self.stages[self.index]

    @property
    def last_stage(self) -> int:
        """Segments of the last stage."""
        return self.stages[-1]

    @property
    def epochs_of_stage(self) -> int | None:
        """Epochs of the current stage."""
        return self.epochs[self.index]

    @property
    def finished(self) -> bool:
        """Whether all stages are done."""
        return self.index == len(self.stages) - 1 and self.epochs_done >= self.epochs[-1]

    @property
    def annealing(self) -> bool:
        """Whether the learning rate should start to decay now; here its schedule is fixed in advance."""
        return False

    def after_batch(self, metrics: Mapping[str, Tensor]) -> None:
        """Does nothing: stages end by epochs."""

    def after_epoch(self) -> None:
        """Count an epoch; move on after a stage's last one. The last stage keeps counting, as epochs may be added."""
        self.epochs_done += 1
        if self.epochs_done >= self.epochs[self.index] and self.index + 1 < len(self.stages):
            self.index, self.epochs_done = self.index + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """The changing state."""
        return {"index": self.index, "epochs_done": self.epochs_done}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        self.index, self.epochs_done = state["index"], state["epochs_done"]


@dataclass
class AdaptiveStages:
    """A stage ends when solved (`metric` was 1 for `streak` batches in a row), or unsolved after `max_batches`.

    After `total_limit` batches in all, the remaining stages are skipped. After the last stage the learning rate is
    annealed over `anneal_batches` batches; without that, runs sometimes lost what they had learned about lengths beyond
    the training data. `solved` says whether all stages were solved.
    """

    stages: Sequence[int]
    metric: str
    streak: int
    anneal_batches: int
    max_batches: int
    total_limit: int | None = None
    index: int = 0
    row: int = 0
    batches_done: int = 0
    total_done: int = 0
    anneal_left: int | None = None
    solved: bool = True

    @property
    def segments(self) -> int:
        """Segments of the current stage."""
        return self.stages[self.index]

    @property
    def last_stage(self) -> int:
        """Segments of the last stage."""
        return self.stages[-1]

    @property
    def epochs_of_stage(self) -> int | None:
        """None: stages do not end by epochs."""
        return None

    @property
    def finished(self) -> bool:
        """Whether annealing is done."""
        return self.anneal_left == 0

    @property
    def annealing(self) -> bool:
        """Whether the learning rate should decay."""
        return self.anneal_left is not None

    def after_batch(self, metrics: Mapping[str, Tensor]) -> None:
        """Count one batch with these scalar metrics."""
        if self.anneal_left is not None:
            self.anneal_left -= 1
            return
        self.batches_done += 1
        self.total_done += 1
        self.row = self.row + 1 if metrics[self.metric] == 1 else 0
        over = self.total_limit is not None and self.total_done >= self.total_limit
        if self.row < self.streak and self.batches_done < self.max_batches and not over:
            return
        last = len(self.stages) - 1
        self.solved &= self.row >= self.streak and (self.index == last or not over)
        self.row = self.batches_done = 0
        if self.index < last and not over:
            self.index += 1
        else:
            self.index, self.anneal_left = last, self.anneal_batches

    def after_epoch(self) -> None:
        """Does nothing: stages end by batches."""

    def state_dict(self) -> dict[str, Any]:
        """The changing state."""
        names = ("index", "row", "batches_done", "total_done", "anneal_left", "solved")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state_dict()`."""
        for name, value in state.items():
            setattr(self, name, value)
