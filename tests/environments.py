"""Flags that make each registered environment small, for the contract suite."""

from pathlib import Path
from typing import Any

import pytest

from RATE_model.environments.contract import Environment
from RATE_model.environments.table import environment, table

MODEL = "--n_layer 1 --n_head 2 --d_model 16 --d_head 8 --nmt 2 --n_head_ca 2 --dropout 0 --mem_len 0".split()
# Flags for small games and data that takes a second, and the package that an environment needs.
SMALL = {
    "tmaze": ("--trajectories 20 --context_length 4 --max_n_final 2 --eval_lengths 9", "--lengths 9 13", None),
    "minigrid_memory": (
        "--size 9 --trajectories 20 --context_length 5 --segments 3 --eval_sizes 7 9 --final_sizes 7 11",
        "--sizes 7 9",
        "minigrid",
    ),
    "vizdoom": (
        "--variant clear --episodes 10 --steps 12 --context_length 3 --segments 4 --episode_timeout 12 --num_workers 0",
        "--variant clear --episode_timeout 12 --baselines false",
        "vizdoom",
    ),
    "memory_maze": (
        "--episodes 10 --steps 12 --context_length 3 --segments 2 --episode_timeout 8",
        "--episode_timeout 8 --workers 1",
        "labmaze",
    ),
    "mujoco": (
        "--env_id 6 --context_length 5 --segments 2 --epoch_batches 2",
        "--env_id 6 --long_prompt false",
        "mujoco",
    ),
    "atari": (
        "--context_length 5 --segments 2 --epoch_batches 2 --max_steps 12",
        "--game Breakout --max_steps 12",
        "ale_py",
    ),
    "tests.stranger.environment": ("--episodes 20", "", None),
}
# Their mazes or games take seconds to start, and a run starts many of them.
SLOW = {"memory_maze"}


def names() -> list[str]:
    """All registered environments, and an external one."""
    return [*table(), "tests.stranger.environment"]


def runs() -> list[Any]:
    """The same, as parameters for tests of whole runs."""
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names()]


def data_flags(name: str, folder: Path) -> list[str]:
    """Flags that keep an environment's data in a folder; makes the data if training would not, or only slowly."""
    if name == "mujoco":
        from MuJoCo.tasks import HOPPER
        from tests import mujoco_runs

        return ["--data_path", str(mujoco_runs.random_play(folder / "data" / "hopper.hdf5", HOPPER))]
    if name == "atari":
        from tests import atari_runs

        return ["--data_path", str(atari_runs.random_play(folder / "data.h5"))]
    if name == "memory_maze":
        from tests import memory_maze_runs

        return ["--data_path", str(memory_maze_runs.write_data(folder / "data.h5"))]
    return ["--data_dir", str(folder / "data")]


def load(name: str) -> Environment:
    """An environment; skips the test if its package is missing."""
    package = SMALL.get(name, ("", "", None))[2]
    if package is not None:
        pytest.importorskip(package)
    return environment(name)
