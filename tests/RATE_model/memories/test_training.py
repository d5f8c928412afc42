"""Every memory learns from a batch; what environments show takes turns, since memories see it embedded."""

from dataclasses import replace
from itertools import cycle

import numpy as np
import pytest
import torch

from Atari.games import GAMES
from Atari.spec import spec_of as atari
from MemoryMaze.MemoryMaze_src.spec import SPEC as MEMORY_MAZE
from MinigridMemory.MinigridMemory_src.spec import SPEC as MINIGRID
from MuJoCo.spec import spec_of as mujoco
from MuJoCo.tasks import ROBOTS
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.memories import MODES
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests.RATE_model.memories.test_contract import STEPS, Case
from tests.small_models import random_inputs
from TMaze_new.TMaze_new_src.spec import SPEC as TMAZE
from VizDoom.VizDoom_src.spec import SPEC as VIZDOOM

SPECS = {
    "T-Maze": TMAZE,
    "ViZDoom": VIZDOOM,
    "Minigrid": MINIGRID,
    "Memory Maze": MEMORY_MAZE,
    "Atari": atari(next(iter(GAMES.values()))),
    "MuJoCo": mujoco(next(iter(ROBOTS.values()))),
}
# The first mode of every memory.
FIRST = list({mode.memory: name for name, mode in reversed(MODES.items())}.values())


def batch_of(spec: EnvironmentSpec) -> Batch:
    """Two random trajectories, the second one shorter."""
    observations, actions, rtg = random_inputs(2, STEPS, spec=spec)
    if spec.is_image:
        observations = (observations * 64 + 128).clamp(0, 255).byte()
    lengths = torch.tensor([STEPS, STEPS - 5])
    return Batch(observations, actions, rtg, torch.arange(STEPS) < lengths[:, None], lengths, torch.arange(2))


@pytest.mark.parametrize(("mode", "environment"), zip(FIRST, cycle(SPECS), strict=False))
def test_it_learns_from_a_batch(mode, environment):
    spec = SPECS[environment]
    if spec.is_image:
        spec = replace(spec, conv_channels=(2, 2, 2))
    agent = Case.of(mode, "rtg").agent(spec).train()
    trainer = Trainer(agent, TrainOptions(warmup_steps=0), Schedule(0, None, 0, 1.0))
    batch = batch_of(spec)
    losses = [trainer.train_batch(batch)["train_loss"].item() for _ in range(4)]
    if agent.memory.trains_encoders:
        assert losses[-1] < losses[0]
    else:  # what is looked up changes faster than what is learned of it
        assert np.isfinite(losses).all()
