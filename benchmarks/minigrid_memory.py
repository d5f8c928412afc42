"""Minigrid-Memory: time of environment steps, of a training batch with and without deduplicated images, and of acting.

    python benchmarks/minigrid_memory.py
    python benchmarks/minigrid_memory.py --threads 1 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import numpy as np
import torch

from benchmarks import common
from MinigridMemory.MinigridMemory_src.dataset import DATA, DataOptions
from MinigridMemory.MinigridMemory_src.env import SPEC, TILE, MinigridMemoryEnv
from MinigridMemory.MinigridMemory_src.environment import ENVIRONMENT, Mazes
from RATE_model.acting.rollout import evaluating
from RATE_model.agent import Agent
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.batch import Batch
from RATE_model.environments.contract import Evaluation
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer

# The published RATE, with enough segments for every episode of size 31.
PUBLISHED = "--nmt 15 --mem_len 180 --n_head_ca 1 --skip_dec_ffn --segments 6 --dropout 0 --dropatt 0".split()


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Episodes of the data
    trajectories: int = 500
    # Episodes of a training batch
    batch_size: int = 64
    # Environment steps per timing
    steps: int = 2000
    # Parallel episodes in mazes of size 41
    episodes: int = 100
    # Timed rounds; in each, everything runs once
    rounds: int = 3
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, steps=self.steps, episodes=self.episodes, rounds=self.rounds)
        at_least(100, trajectories=self.trajectories)
        at_least(0, threads=self.threads)
        common.check_output(self.output)


def walk(steps: int, *, draw: bool) -> Callable[[], None]:
    """Random steps in a maze of size 41; with `draw`, Minigrid draws every picture, as its wrappers do."""
    maze = MinigridMemoryEnv(41, max_steps=10**9)
    rng = np.random.default_rng(0)

    def run() -> None:
        maze.reset(seed=0)
        for action in rng.choice(3, size=steps, p=(0.15, 0.15, 0.7)):
            _, _, over, _, _ = maze.step(int(action))
            if draw:
                maze._maze.get_frame(tile_size=TILE, agent_pov=True).transpose(2, 0, 1).copy()
            if over:
                maze.reset(seed=0)

    return run


def train_batch(batch: Batch) -> tuple[Trainer, Callable[[], None]]:
    """The published model and one optimizer step of it on this batch."""
    config = ENVIRONMENT.read_config(PUBLISHED)
    torch.manual_seed(0)
    trainer = Trainer(Agent(config.agent_config(), SPEC), config.train, Schedule(1, None, 0, 1.0))
    return trainer, lambda: _discard(trainer.train_batch(batch))


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds, and the contents of a batch."""
    config = ENVIRONMENT.read_config(PUBLISHED)
    size = config.task.segments * config.task.context_length
    with tempfile.TemporaryDirectory() as folder:
        data = DataOptions(trajectories=options.trajectories, data_dir=Path(folder))
        training, _ = DATA.whole_windows([DATA.ensure(data)], size=size)
        batch = training.__getitems__(
            np.random.default_rng(0).permutation(len(training))[: options.batch_size].tolist()
        )
    dense = replace(batch, observations=batch.observations.dense())
    (_, once), (trainer, each) = train_batch(batch), train_batch(dense)
    difference = _difference(batch, dense)
    model = trainer.model

    mazes = Mazes(use_argmax=True, layouts="own")

    def act() -> None:
        with evaluating(model):
            Evaluation(ENVIRONMENT, model, mazes, (0.96,), cases=(41,), episodes=options.episodes).play()

    walks = {
        "environment": walk(options.steps, draw=False),
        "environment, every picture drawn": walk(options.steps, draw=True),
    }
    batches = {"batch": once, "batch, every image encoded": each}
    seconds = common.interleave(walks | batches | {"episodes": act}, rounds=options.rounds)
    return {
        "difference": difference,
        "images": len(batch.observations.images),
        "steps_of_batch": int(batch.valid.sum()),
        "times_faster": {
            "environment": common.ratio(seconds["environment, every picture drawn"], seconds["environment"]),
            "batch": common.ratio(seconds["batch, every image encoded"], seconds["batch"]),
        },
        "cases": {name: common.summary(values) for name, values in seconds.items()},
    }


def _difference(batch: Batch, dense: Batch) -> float:
    """Largest difference of the logits between the two batches; raises RuntimeError if it exceeds rounding errors."""
    (trainer, _) = train_batch(batch)
    with evaluating(trainer.model), torch.no_grad():
        logits = [trainer.model(b.observations, b.actions, b.rtg, b.valid)[0] for b in (batch, dense)]
    return common.check_agreement("logits of images kept once", float((logits[0] - logits[1]).abs().max()), 1e-4)


def _discard(result: object) -> None:
    """Drop the result: `interleave` would take a returned number for seconds."""


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options, cases, faster = result["options"], result["cases"], result["times_faster"]
    per_second = {name: options["steps"] / cases[name]["median_s"] for name in cases if name.startswith("environment")}
    rows = [[name, f"{value:,.0f} steps/s", ""] for name, value in per_second.items()]
    rows += [[name, f"{cases[name]['median_s']:.2f} s", ""] for name in cases if name not in per_second]
    for row in rows:
        row[2] = f"{faster[row[0]]:.1f}" if row[0] in faster else ""
    return "\n\n".join(
        [
            common.machine_line(result["machine"], {}),
            f"A batch of {options['batch_size']} episodes has {result['steps_of_batch']} steps, with "
            f"{result['images']} different images. {options['episodes']} parallel mazes of size 41.",
            common.table(["", "median", "times faster"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Check, time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/minigrid_memory.py", description="Speed on Minigrid-Memory."
        )
        common.set_threads(options.threads)
        machine = common.machine_facts()
        result = {
            "benchmark": "minigrid_memory",
            "machine": machine,
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "minigrid_memory", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
