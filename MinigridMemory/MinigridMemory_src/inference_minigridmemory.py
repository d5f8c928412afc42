"""Evaluate a checkpoint on Minigrid-Memory in mazes of any size.

    python3 MinigridMemory/MinigridMemory_src/inference_minigridmemory.py --checkpoint RUN_DIR --sizes 41 91 501

Prints success within the published 96 steps (`--episode_timeout`), under a cap that the expert always meets, and the
expert's own within the former.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # makes the repository importable
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

from MinigridMemory.MinigridMemory_src import evaluate as protocol
from MinigridMemory.MinigridMemory_src.env import PUBLISHED_CAP, check_size
from MinigridMemory.MinigridMemory_src.layouts import Layouts
from MinigridMemory.MinigridMemory_src.pictures import knock_out, record_videos, success_curve
from MinigridMemory.MinigridMemory_src.spec import SPEC
from RATE_model.acting.rollout import Episodes
from RATE_model.agent import Agent
from RATE_model.cli.inference import InferenceOptions, fill_from_run
from RATE_model.cli.limits import MAX_SEED, MAX_STEPS, at_least, at_most
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options
from RATE_model.errors import UserError

SCRIPT = "python3 MinigridMemory/MinigridMemory_src/inference_minigridmemory.py"
# What is played, and asked for, where no run tells.
PUBLISHED = {
    "target_return": protocol.TARGET_RETURN,
    "layouts": "published",
    "episode_timeout": PUBLISHED_CAP,
    "use_argmax": False,
}


@dataclass(frozen=True)
class Options:
    """Flags of this script; those of `PUBLISHED` are filled from what the run recorded."""

    common: InferenceOptions = field(default_factory=InferenceOptions)
    # Sizes of the mazes; odd, at least 7
    sizes: tuple[int, ...] = protocol.SIZES + protocol.LARGE_SIZES
    # Episodes per size
    episodes: int = 100
    # Corridors of random length; false: the longest that fit
    random_length: Boolean = True
    # Return that the agent is asked for; none = the run's (0.96 for a converted checkpoint)
    target_return: float | None = None
    # Mazes: own, those of the installed Minigrid for the seeds 0, 1, ...; published, those of the published evaluation
    # for these seeds; none = the run's (published for a converted checkpoint)
    layouts: Layouts | None = None
    # Steps after which an episode counts as failed: 96 in the paper's code; in the authors' newer code 500 for RATE and
    # LSDT, 100 for other models; none = the run's (96 for a converted checkpoint)
    episode_timeout: int | None = None
    # Take the most probable action; false: draw from the predicted distribution (published); none = as in the run
    # (false for a converted checkpoint)
    use_argmax: Boolean | None = None
    # Seed of those draws
    seed: int = 0
    # Also record so many episodes of every size as MP4 files, into --pictures or the working directory
    video: int = 0

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        if not self.sizes:
            raise UserError("--sizes is empty: give at least one size")
        for size in self.sizes:
            check_size(size, flag="sizes")
        protocol.check_episodes(episodes=self.episodes)
        at_least(0, video=self.video, seed=self.seed)
        at_most(protocol.MAX_EPISODES, video=self.video)
        at_most(MAX_SEED, seed=self.seed)
        at_least(1, episode_timeout=self.episode_timeout)
        at_most(MAX_STEPS, episode_timeout=self.episode_timeout)

    @property
    def acting(self) -> dict[str, Any]:
        """What `play` takes, of filled options."""
        return {
            "episodes": self.episodes,
            "random_length": self.random_length,
            "target_return": self.target_return,
            "greedy": self.use_argmax,
            "seed": self.seed,
            "slide": self.common.slide,
            "precision": self.common.precision,
            "layouts": self.layouts,
            "cap": self.episode_timeout,
        }


def show(played: dict[int, Episodes], options: Options) -> dict[int, dict[str, float]]:
    """Print one line per size; returns the same figures, under the names that eval/*.json and metrics have."""
    cap = options.episode_timeout
    print(f"{'':>6}{f'within {cap} steps':>30}{'expert cap':>20}{'expert':>10}")
    print(f"{'size':>6}{'success':>10}{'steps':>10}{'return':>10}{'success':>10}{'steps':>10}{'success':>10}")
    results = {}
    for size, episodes in played.items():
        capped, wide = (protocol.SizeResult.of(episodes, steps) for steps in (cap, protocol.widest_cap(size)))
        of_expert = protocol.expert_play(size, options.episodes, options.random_length, options.layouts)
        results[size] = {
            "success_rate": capped.success_rate,
            "mean_steps": float(capped.lengths.mean()),
            "mean_return": float(capped.returns.mean()),
            "success_rate_expert_cap": wide.success_rate,
            "mean_steps_expert_cap": float(wide.lengths.mean()),
            "expert_success_rate": protocol.SizeResult.of(of_expert, cap).success_rate,
        }
        success, steps, mean_return, wide_success, wide_steps, expert = results[size].values()
        print(
            f"{size:6d}{success:10.2f}{steps:10.1f}{mean_return:10.2f}{wide_success:10.2f}{wide_steps:10.1f}{expert:10.2f}"
        )
    return results


def draw(model: Agent, played: dict[int, Episodes], options: Options) -> None:
    """Curves and videos, where asked for."""
    folder = options.common.pictures or Path()
    if options.common.pictures is not None:
        intact = None if options.common.knock_out else played
        rates = knock_out(model, options.sizes, intact=intact, **options.acting)
        path = folder / "success_by_size.png"
        success_curve(
            rates,
            path,
            episodes=options.episodes,
            random_length=options.random_length,
            layouts=options.layouts,
            cap=options.episode_timeout,
        )
        print(f"pictures: {path}")
    for size in played if options.video else ():
        paths = record_videos(
            model,
            size,
            protocol.evaluation_seeds(options.video).tolist(),
            folder,
            target_return=options.target_return,
            greedy=options.use_argmax,
            random_length=options.random_length,
            slide=options.common.slide,
            transform_memory=options.common.transform_memory,
            precision=options.common.precision,
            layouts=options.layouts,
            cap=options.episode_timeout,
        )
        print("videos: " + " ".join(map(str, paths)))


def evaluate(options: Options) -> dict[int, dict[str, float]]:
    """Success by size, of filled options; prints a table."""
    path, model = options.common.load(SPEC)
    print(
        f"{path}: {options.episodes} episodes per size in {options.layouts} layouts"
        f"{', memory knocked out' if options.common.knock_out else ''}"
    )
    started = time.perf_counter()
    played = protocol.play(model, options.sizes, transform_memory=options.common.transform_memory, **options.acting)
    results = show(played, options)
    print(f"{time.perf_counter() - started:.1f} s")
    draw(model, played, options)
    return results


def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate what the flags ask for."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog=SCRIPT, description="Evaluate a checkpoint on Minigrid-Memory."
        )
        options = fill_from_run(options, PUBLISHED, before=protocol.BEFORE)
        results = evaluate(options)
        asked = {name: getattr(options, name) for name in PUBLISHED}
        options.common.write(episodes=options.episodes, **asked, results=results)


if __name__ == "__main__":
    main()
