"""Pictures of what a model does in Minigrid-Memory: success by size, with and without its memory, and videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from MinigridMemory.MinigridMemory_src.evaluate import SizeResult, expert_play, widest_cap
from RATE_model.acting.video import with_caption
from RATE_model.environments.contract import Evaluation
from RATE_model.plots import plot_success_by_length


def success_curve(evaluation: Evaluation, path: Path) -> Path:
    """Draw success by size with and without memory, under both caps, and the expert's, the ceiling of every method
    under the shorter one."""
    options, cap = evaluation.options, evaluation.options.episode_timeout
    caps = (("expert's cap", widest_cap), (f"{cap} steps", lambda size: cap))
    rates = {
        f"{label}, {name}": {size: SizeResult.of(found, cap_of(size)).success_rate for size, found in by_size.items()}
        for label, by_size in evaluation.conditions().items()
        for name, cap_of in caps
    }
    experts = {size: expert_play(size, evaluation.episodes, options.random_length, options.layouts)
               for size in evaluation.cases}  # fmt: skip
    return plot_success_by_length(
        rates,
        path,
        xlabel=evaluation.environment.axis_label,
        title=f"success by size, {evaluation.episodes} episodes each, by the cap on steps",
        published={
            f"expert, {cap} steps": {size: SizeResult.of(found, cap).success_rate for size, found in experts.items()}
        },
    )


def frame(maze: Any, observation: np.ndarray, caption: Sequence[str]) -> np.ndarray:
    """One frame of a video, (H, W, 3) uint8: the maze above the agent's view, and a caption."""
    above, view = maze.render(), observation.transpose(1, 2, 0)
    width = max(above.shape[1], 320)
    above, view = (np.pad(part, ((0, 8), (0, width - part.shape[1]), (0, 0))) for part in (above, view))
    return with_caption(np.concatenate([above, view]), f"remember the {maze.cue}", *caption)
