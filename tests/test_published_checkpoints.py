"""A published checkpoint of each environment: converted, evaluated and recorded on video."""

import json
from pathlib import Path

import pytest
import torch

from Atari import inference_atari
from MemoryMaze.MemoryMaze_src import inference_mem_maze
from MinigridMemory.MinigridMemory_src import inference_minigridmemory
from MuJoCo import inference_mujoco
from MuJoCo.tasks import HOPPER
from RATE_model.original.__main__ import main as convert
from tests import reference
from tests.mujoco_files import write_d4rl
from TMaze_new.TMaze_new_src import inference_tmaze
from VizDoom.VizDoom_src import inference_vizdoom

# Published name of an environment -> inference script, and flags for few steps and, if possible, one video.
INFERENCES = {
    "tmaze": (inference_tmaze, "--lengths 9 30 --episodes 2"),
    "doom": (
        inference_vizdoom, "--episodes 4 --episode_timeout 3 --baselines false --video 2",
    ),
    "minigrid_memory": (inference_minigridmemory, "--sizes 7 --episodes 2 --video 1"),
    "minigrid_memory, main": (inference_minigridmemory, "--sizes 7 --episodes 2"),
    "memory_maze": (inference_mem_maze, "--episodes 1 --episode_timeout 3 --video 1"),
    "atari": (inference_atari, "--game Breakout --episodes 1 --max_steps 3 --video 1"),
    "mujoco": (inference_mujoco, "--env_id 6 --episodes 1 --video 1"),
    "mujoco_tanh": (inference_mujoco, "--env_id 6 --episodes 1 --long_prompt false"),
}  # fmt: skip


def published(path: Path, env: str) -> Path:
    """A checkpoint with random weights, of the branch that has this environment."""
    weights = reference.random_weights(reference.make_meta(env=env), 0)
    if env not in ("minigrid_memory, main", "mujoco_tanh"):
        weights["crit.out_layers.0.weight"] = torch.zeros(7, 16)
    torch.save(weights, path)
    return path


@pytest.mark.parametrize("env", INFERENCES)
def test_a_published_checkpoint_is_evaluated(tmp_path, monkeypatch, env):
    monkeypatch.chdir(tmp_path)  # videos go here
    script, flags = INFERENCES[env]
    command = [published(tmp_path / "published.pth", env), "--output", tmp_path / "converted"]
    if "mujoco" in env:
        command += ["--normalisation", write_d4rl(tmp_path / "data.hdf5", HOPPER)]
    convert(list(map(str, command)))
    arguments = ["--checkpoint", tmp_path / "converted", "--output", tmp_path / "results.json", *flags.split()]
    script.main([*map(str, arguments), "--device", "cpu"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["checkpoint"] == str(tmp_path / "converted") and results["results"]
    assert bool([*tmp_path.rglob("*.mp4")]) == ("--video" in flags)
