"""Flags for how slowly a memory forgets before it is trained."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from RATE_model.errors import UserError
from RATE_model.memories.mamba import MambaCell, MambaConfig
from RATE_model.memories.mlstm import MLSTMCell, MLSTMConfig
from RATE_model.memories.shm import SHMCell, SHMConfig

SIZES: dict[str, Any] = {"d_model": 16, "context_length": 5}


def what_remains(cell: torch.nn.Module, steps: int = 200) -> float:
    """The share of a difference between two states that is left after some steps."""
    torch.manual_seed(1)
    x = torch.randn(1, 1, SIZES["d_model"]).expand(2, steps, -1)
    state = cell.initial(2, torch.device("cpu"))
    before = torch.randn_like(state[0])
    with torch.no_grad():
        after = cell(x, (before, *state[1:]), None)[1][0]
    return float((after[0] - after[1]).norm() / (before[0] - before[1]).norm())


def test_small_step_sizes_forget_slowly():
    torch.manual_seed(0)
    usual, slow = (MambaCell(MambaConfig(**SIZES, delta_min=smallest)) for smallest in (1e-3, 1e-6))
    assert what_remains(slow) > 2 * what_remains(usual)
    smallest = F.softplus(slow.delta.bias).min()
    assert 1e-6 <= smallest < 1e-4


def test_large_forget_biases_forget_slowly():
    torch.manual_seed(0)
    usual, slow = (MLSTMCell(MLSTMConfig(**SIZES, forget_bias=bias)) for bias in (6.0, 14.0))
    assert what_remains(usual) < 0.5 and what_remains(slow) > 0.8


def test_without_calibration_nothing_is_forgotten():
    torch.manual_seed(0)
    usual, slow = (SHMCell(SHMConfig(**SIZES, calibration=factor)) for factor in (1.0, 0.0))
    assert what_remains(slow) == pytest.approx(1, abs=1e-4) and abs(what_remains(usual) - 1) > 0.01


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (MambaConfig(**SIZES, delta_min=0.0), "--mamba_delta_min 0.0"),
        (MLSTMConfig(**SIZES, forget_bias=-1.0), "--mlstm_forget_bias -1.0"),
        (SHMConfig(**SIZES, calibration=float("nan")), "--shm_calibration nan"),
    ],
)
def test_wrong_values_are_refused(config, flag):
    with pytest.raises(UserError, match=flag):
        config.validate()
