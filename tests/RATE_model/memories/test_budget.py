"""`--budget`: memories of equal size."""

import pytest

from RATE_model.agent import Agent
from RATE_model.cli.settings import ModelOptions
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES, MODES
from RATE_model.memories.budget import BUDGETS, width_for
from RATE_model.memories.none import MLP, MLPConfig
from tests.small_models import VECTOR


@pytest.mark.parametrize("mode", [mode for mode in MODES if MEMORIES[MODES[mode].memory].memory.trains_encoders])
def test_a_memory_has_as_many_parameters_as_asked_for(mode):
    config = ModelOptions(model_mode=mode, budget="0.1M").agent_config(context_length=10, segments=3)
    found = sum(parameter.numel() for parameter in Agent(config, VECTOR).memory.parameters())
    assert abs(found - BUDGETS["0.1M"]) <= 0.1 * BUDGETS["0.1M"]


def test_a_memory_that_cannot_says_the_nearest_it_can():
    with pytest.raises(UserError, match="cannot have 100,000 parameters within 10%; the nearest is 2,760"):
        width_for("0.1M", "MLP", MLP, lambda width: MLPConfig(d_model=min(width, 30), context_length=10))


def test_the_width_is_either_given_or_chosen():
    options = ModelOptions(model_mode="LSTM", budget="2M", d_model=32)
    with pytest.raises(UserError, match="--d_model 32: --budget 2M chooses the width"):
        options.check_typed({"d_model", "budget"})
    options.check_typed({"budget"})
