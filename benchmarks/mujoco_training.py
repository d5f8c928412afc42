"""MuJoCo: time of a training batch of the published setting, and of acting in an evaluation's episodes.

    python benchmarks/mujoco_training.py
    python benchmarks/mujoco_training.py --batch_size 512 --rounds 3 --output FILE.json

See benchmarks/README.md for what is measured and how to read it.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch

from benchmarks import common
from benchmarks.flops import training_flops
from benchmarks.train_step import WINDOWS
from MuJoCo.dataset import spec_of
from MuJoCo.environment import ENVIRONMENT, Play
from MuJoCo.tasks import HALFCHEETAH
from RATE_model.acting.evaluation import Acting, play_cases
from RATE_model.acting.rollout import evaluating
from RATE_model.agent import Agent
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import Boolean, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.batch import Batch
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer

PUBLISHED = ("--env_id", "0", "--skip_dec_ffn")
SPEC = spec_of(HALFCHEETAH)  # all its episodes have 1000 steps, even with an untrained model
PROMPTS = {False: "prompt 1", True: "prompt K"}


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Windows of a training batch
    batch_size: int = 4096
    # Windows that are computed at a time
    part: int = 256
    # Parallel episodes
    episodes: int = 10
    # Timed rounds; in each, everything runs once
    rounds: int = 1
    # Size of the matrices whose product measures the machine's speed
    matrix_size: int = common.MATRIX_SIZE
    # Threads of torch; 0 = torch's default
    threads: int = 0
    # Write the figures to this JSON file
    output: Path | None = None
    # Put the figures into benchmarks/README.md
    update_readme: Boolean = False

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batch_size=self.batch_size, part=self.part, episodes=self.episodes, rounds=self.rounds)
        at_least(1, matrix_size=self.matrix_size)
        at_least(0, threads=self.threads)
        common.check_output(self.output)


def make_batch(size: int, steps: int) -> Batch:
    """Random windows without padding."""
    generator = torch.Generator().manual_seed(0)
    return Batch(
        observations=torch.randn(size, steps, *SPEC.observation_shape, generator=generator),
        actions=torch.rand(size, steps, SPEC.num_actions, generator=generator) * 2 - 1,
        rtg=torch.rand(size, steps, generator=generator) * 5000,
        valid=torch.ones(size, steps, dtype=torch.bool),
        lengths=torch.full((size,), steps),
        indices=torch.arange(size),
    )


def measure(options: Options) -> dict[str, Any]:
    """All timings in seconds, operations of the batches, and the speed of matrix products."""
    config = ENVIRONMENT.read_config(PUBLISHED)
    agent_config, segments = config.agent_config(), config.task.segments
    batch = make_batch(options.batch_size, segments * config.task.context_length)
    candidates: dict[str, Callable[[], float | None]] = {}
    flops = {}
    for bptt_segments, window in WINDOWS.items():
        torch.manual_seed(0)
        train = replace(
            config.train, bptt_segments=bptt_segments, accumulate=max(1, options.batch_size // options.part)
        )
        trainer = Trainer(Agent(agent_config, SPEC), train, Schedule(1, None, 0, 1.0))
        name = f"batch, gradients through {window}"
        candidates[name] = _training(trainer, batch)
        flops[name] = training_flops(
            agent_config.sizes, SPEC, batch_size=options.batch_size, segments=segments, bptt_segments=bptt_segments
        )
    for window, name in PROMPTS.items():
        candidates[f"episodes, {name}"] = _acting(trainer.model, options.episodes, window)
    candidates["product"] = common.matrix_product("32", options.matrix_size)
    seconds = common.interleave(candidates, rounds=options.rounds)
    speed = common.product_flops(options.matrix_size) / min(seconds.pop("product"))
    cases = {name: common.summary(values) for name, values in seconds.items()}
    for name, count in flops.items():
        cases[name] |= {"flops": count, "share": count / cases[name]["median_s"] / speed}
    return {"cases": cases, "matrix_product_gflops": {"32": speed / 1e9}}


def _training(trainer: Trainer, batch: Batch) -> Callable[[], None]:
    """A candidate that trains on the batch."""

    def run() -> None:
        trainer.train_batch(batch)

    return run


def _acting(model: Agent, episodes: int, window: bool) -> Callable[[], None]:
    """A candidate that acts in HalfCheetah for 1000 steps."""

    robots = partial(ENVIRONMENT.vector, options=Play(env_id=0))
    acting = Acting(target_return=6000.0, window=window)

    def run() -> None:
        with evaluating(model):
            played = play_cases(model, [None], robots, seeds=ENVIRONMENT.seeds(episodes), acting=acting)
        assert (played[None].lengths == 1000).all()

    return run


def format_table(result: dict[str, Any]) -> str:
    """The figures as Markdown."""
    options = result["options"]
    rows = []
    for name, case in result["cases"].items():
        flops, share = (f"{case['flops'] / 1e9:.4g}", f"{case['share']:.0%}") if "flops" in case else ("", "")
        rows.append([name, f"{case['median_s']:.1f}", f"{case['min_s']:.1f}", flops, share])
    return "\n\n".join(
        [
            common.machine_line(result["machine"], result["matrix_product_gflops"]),
            f"{options['batch_size']} windows a batch, {options['part']} at a time; {options['episodes']} episodes of "
            "1000 steps at once.",
            common.table(["", "median s", "min s", "GFLOP", "share"], rows),
        ]
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Time, print."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog="python benchmarks/mujoco_training.py", description="Speed on MuJoCo."
        )
        common.set_threads(options.threads)
        result = {
            "benchmark": "mujoco_training",
            "machine": common.machine_facts(),
            "options": to_flat_dict(options),
            **measure(options),
        }
        common.publish(
            "mujoco_training", format_table(result), result, output=options.output, update_readme=options.update_readme
        )


if __name__ == "__main__":
    main()
