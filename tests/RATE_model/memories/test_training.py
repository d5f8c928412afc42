"""Every memory learns from a batch; kinds of environments take turns, since memories see embedded steps."""

from itertools import cycle

import numpy as np
import pytest
import torch

from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.memories import MODES
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests.RATE_model.memories.test_contract import IMAGE, STEPS, Case, inputs_of
from tests.small_models import CONTINUOUS, VECTOR

SPECS = {"vector": VECTOR, "images": IMAGE, "continuous": CONTINUOUS}
# The first mode of every memory.
FIRST = list({mode.memory: name for name, mode in reversed(MODES.items())}.values())


def batch_of(spec: EnvironmentSpec) -> Batch:
    """Two random trajectories, the second one shorter."""
    observations, actions, rtg = inputs_of(spec, 2)
    lengths = torch.tensor([STEPS, STEPS - 5])
    return Batch(observations, actions, rtg, torch.arange(STEPS) < lengths[:, None], lengths, torch.arange(2))


@pytest.mark.parametrize(("mode", "kind"), list(zip(FIRST, cycle(SPECS), strict=False)))
def test_it_learns_from_a_batch(mode, kind):
    spec = SPECS[kind]
    agent = Case.of(mode, "rtg").agent(spec).train()
    trainer = Trainer(agent, TrainOptions(warmup_steps=0), Schedule(0, None, 0, 1.0))
    batch = batch_of(spec)
    losses = [trainer.train_batch(batch)["train_loss"].item() for _ in range(4)]
    if agent.memory.trains_encoders:
        assert losses[-1] < losses[0]
    else:  # what is looked up changes faster than what is learned of it
        assert np.isfinite(losses).all()
