"""Time and memory of one training batch, for the published and the fast setting of every environment.

    python benchmarks/settings.py
    python benchmarks/settings.py --environments tmaze mujoco --output FILE.json

Each setting trains in a separate process, on random trajectories without padding of the setting's longest length;
Minigrid-Memory, whose few distinct pictures are encoded once per batch, on episodes of its expert. Memory is the peak
of the whole process, including PyTorch.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

import torch

from benchmarks import common
from RATE_model.agent import Agent
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import check_choice, exit_on_user_error, parse_options, to_flat_dict
from RATE_model.data.batch import Batch
from RATE_model.data.frames import FrameStack
from RATE_model.environments.contract import Environment
from RATE_model.environments.table import environment as environment_named
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer


@dataclass(frozen=True)
class Setting:
    """One setting of an environment."""

    environment: str
    name: str
    flags: tuple[str, ...]
    frames: int = 0  # pictures stacked in an observation, stored once
    real: tuple[str, ...] = field(default=())  # flags to make data, instead of random trajectories


_VALVE = ("--mrv_act", "relu", "--skip_dec_ffn")
SETTINGS = (
    Setting("tmaze", "published", ("--nmt", "5", "--mem_len", "0", "--n_head_ca", "4", *_VALVE)),
    Setting("tmaze", "fast", ("--config", "TMaze_new/TMaze_new_src/config_fast.yaml")),
    Setting(
        "minigrid_memory",
        "published",
        ("--nmt", "15", "--mem_len", "180", "--n_head_ca", "1", *_VALVE),
        real=("--trajectories", "400"),
    ),
    Setting(
        "minigrid_memory",
        "fast",
        ("--config", "MinigridMemory/MinigridMemory_src/config_fast.yaml"),
        real=("--trajectories", "100"),
    ),
    Setting("vizdoom", "published", ("--nmt", "5", "--mem_len", "300", "--n_head_ca", "2", *_VALVE)),
    Setting("vizdoom", "fast", ("--config", "VizDoom/VizDoom_src/config_fast.yaml")),
    Setting("memory_maze", "published", ("--nmt", "5", "--mem_len", "300", "--n_head_ca", "2", *_VALVE)),
    Setting("memory_maze", "fast", ("--config", "MemoryMaze/MemoryMaze_src/config_fast.yaml")),
    Setting("atari", "published", ("--num_mem_tokens", "15", "--mem_len", "360", "--n_head_ca", "1", *_VALVE), 4),
    Setting("atari", "fast", ("--config", "Atari/config_fast.yaml"), 4),
    Setting("mujoco", "published", ("--num_mem_tokens", "5", "--n_head_ca", "1", *_VALVE)),
    Setting("mujoco", "fast", ("--config", "MuJoCo/config_fast.yaml")),
)


@dataclass(frozen=True)
class Options:
    """What to measure."""

    # Environments, as in pyproject.toml; empty: all
    environments: tuple[str, ...] = ()
    # Batches of each setting; the fastest counts
    batches: int = 2
    # Threads of torch; 0 = torch's default
    threads: int = 1
    # Write the figures to this JSON file
    output: Path | None = None

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        at_least(1, batches=self.batches)
        at_least(0, threads=self.threads)
        known = sorted({setting.environment for setting in SETTINGS})
        for name in self.environments:
            check_choice(known, environments=name)
        common.check_output(self.output)


def random_batch(spec: EnvironmentSpec, rows: int, steps: int, frames: int) -> Batch:
    """Random trajectories without padding."""
    generator = torch.Generator().manual_seed(0)
    observations: Any
    if frames:
        single = (rows, steps + frames - 1, 1, *spec.observation_shape[1:])
        observations = FrameStack(torch.randint(256, single, generator=generator, dtype=torch.uint8), frames)
    elif spec.is_image:
        shape = (rows, steps, *spec.observation_shape)
        observations = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
    else:
        observations = torch.randn((rows, steps, *spec.observation_shape), generator=generator)
    continuous = torch.rand(rows, steps, spec.num_actions, generator=generator)
    actions = continuous if spec.continuous else torch.randint(spec.num_actions, (rows, steps), generator=generator)
    valid, lengths = torch.ones(rows, steps, dtype=torch.bool), torch.full((rows,), steps)
    return Batch(
        observations, actions, torch.rand(rows, steps, generator=generator), valid, lengths, torch.arange(rows)
    )


def real_batch(environment: Environment, config: Any) -> Batch:
    """A batch of a configuration's data, from its longest stage."""
    training, _ = environment.load(config).windows(config.segments)
    return training.__getitems__(list(range(config.train.batch_size)))


def measure(setting: Setting, batches: int, threads: int) -> dict[str, float]:
    """CPU seconds of a batch and peak memory of the process; run in a separate process."""
    torch.set_num_threads(threads or torch.get_num_threads())
    environment: Environment = environment_named(setting.environment)
    with tempfile.TemporaryDirectory() as folder:
        made = (*setting.real, "--data_dir", folder) if setting.real else ()
        config = environment.read_config([*setting.flags, *made])
        spec = environment.spec(to_flat_dict(config))
        steps = config.segments * config.context_length
        if setting.real:
            batch = real_batch(environment, config)
        else:
            batch = random_batch(spec, config.train.batch_size, steps, setting.frames)
        torch.manual_seed(0)
        trainer = Trainer(Agent(config.agent_config(), spec), config.train, Schedule(1, None, 0, 1.0))
        seconds = min(_seconds(lambda: trainer.train_batch(batch)) for _ in range(batches))
    found = {"seconds": seconds, "trajectories": config.train.batch_size, "steps": steps}
    memory = common.memory_mib()
    return found | ({} if memory is None else {"peak_mib": memory[1]})


def _seconds(run: Callable[[], object]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table and write the figures."""
    with exit_on_user_error():
        options = parse_options(Options, argv=argv, prog="python benchmarks/settings.py", description=__doc__)
        found = {}
        for setting in SETTINGS:
            if not options.environments or setting.environment in options.environments:
                name = f"{setting.environment}, {setting.name}"
                found[name] = common.in_fresh_process(measure, setting, options.batches, options.threads)
                print(f"{name}: {found[name]}", flush=True)
        rows = [
            (
                name,
                f"{it['trajectories']} x {it['steps']}",
                f"{it['seconds']:.2g}",
                f"{it.get('peak_mib', 0) / 1024:.1f}",
            )
            for name, it in found.items()
        ]
        table = common.table(("setting", "batch", "CPU s", "GiB"), rows)
        machine = common.machine_facts() | {"torch_threads": options.threads}
        text = f"{common.machine_line(machine, {})}\n\n{table}"
        common.publish(
            "settings", text, {"machine": machine, "settings": found}, output=options.output, update_readme=False
        )


if __name__ == "__main__":
    main()
