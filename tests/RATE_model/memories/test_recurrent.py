"""LSTM and GRU: what the contract's tests do not know of."""

import pytest
import torch
from torch import nn

from RATE_model.errors import UserError
from RATE_model.memories.recurrent import GRU, LSTM, RecurrentConfig
from tests.RATE_model.memories.test_contract import Case, inputs_of, logits_of
from tests.small_models import VECTOR


@torch.no_grad()
def kept(memory, network: nn.Module) -> float:
    """Of a difference between two states, after a step."""
    found = []
    for state in (torch.zeros(2, 1, 4), torch.full((2, 1, 4), 0.01)):
        end = network(torch.zeros(1, 1, 4), (torch.zeros_like(state), state) if memory is LSTM else state)[1]
        found.append(end[1] if memory is LSTM else end)
    return float((found[1] - found[0]).abs()[0].min() / 0.01)


def cells(memory, forget_bias: float) -> nn.Module:
    torch.manual_seed(0)
    network = memory(RecurrentConfig(d_model=4, context_length=2, hidden=4, layers=2, forget_bias=forget_bias))
    network.initialise()
    return network.cells


@pytest.mark.parametrize("memory", [LSTM, GRU])
def test_forget_bias_keeps_the_state(memory):
    usual, keeping = cells(memory, 0.0), cells(memory, 20.0)
    assert kept(memory, keeping) > 0.99 and kept(memory, usual) < 0.9
    differing = [
        (name, int((one != other).sum()))
        for (name, one), (_, other) in zip(usual.named_parameters(), keeping.named_parameters(), strict=True)
        if not torch.equal(one, other)
    ]
    assert differing == [("bias_ih_l0", 4), ("bias_ih_l1", 4)]


def test_a_forget_bias_out_of_range_is_refused():
    with pytest.raises(UserError, match="--forget_bias nan"):
        RecurrentConfig(d_model=4, context_length=2, forget_bias=float("nan")).validate()


@pytest.mark.parametrize("mode", ["LSTM", "GRU", "AMRL"])
def test_cudnn_is_left_out_where_it_has_no_gradients(mode):
    """In evaluation mode, with gradients; see `RATE_model.diagnose.retention`."""
    agent, uses = Case.of(mode, "rtg").agent(), []
    agent.memory.cells.register_forward_pre_hook(lambda *_: uses.append(torch.backends.cudnn.enabled))
    inputs = inputs_of(VECTOR, 2)
    for training, gradients in ((False, True), (False, False), (True, True)):
        with torch.set_grad_enabled(gradients):
            logits_of(agent.train(training), inputs)
    assert uses == [False, True, True]
