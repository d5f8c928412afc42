"""The forms of attention: the same losses, gradients and logits, but for rounding."""

import gc
import weakref
from unittest import mock

import numpy as np
import pytest
import torch
import torch._dynamo.config as dynamo
from torch._dynamo.utils import counters

from RATE_model.memories.contract import StepOptions, Steps
from RATE_model.memories.rate import blocks, stepper
from RATE_model.memories.rate.attention import fold_together
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.memories.rate.memory import RATE

K, D = 13, 12  # 39 tokens and 3 + 3 of memory: pieces that end at 32 columns and where a segment does


def memory(**changes) -> RATE:
    torch.manual_seed(0)
    sizes = dict(n_layer=2, n_head=2, d_model=D, d_head=6, d_inner=20, context_length=K, num_mem_tokens=3)
    model = RATE(RATEConfig(**sizes | dict(n_head_ca=2, skip_dec_ffn=True) | changes))
    model.initialise()
    return model


def steps(model: RATE, batch: int, length: int) -> Steps:
    torch.manual_seed(1)
    rtg, observations, actions = (torch.randn(batch, length, D, requires_grad=True) for _ in range(3))
    parts = {"observations": observations, "previous_actions": actions, "actions": actions}
    return Steps(**parts, rtg=rtg if model.config.conditioned else None)


def passed(model: RATE, form: str, valid: torch.Tensor, precision: torch.dtype = torch.float32):
    """Hidden states and all gradients, by name."""
    model.attention = form
    model.zero_grad()
    given = steps(model, *valid.shape)
    torch.manual_seed(2)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        hidden, _ = model(given, valid, model.initial(len(valid)))
    (hidden.float().sin() * valid[..., None]).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    found |= {"observations": given.observations.grad, "actions": given.actions.grad}
    return hidden.detach().float(), found


@pytest.mark.parametrize("form", ["blocks", "whole", "fused"])
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(mem_len=50),
        dict(num_mem_tokens=0, n_head_ca=0, mem_len=33),
        dict(arch="GTrXL", conditioned=False, skip_dec_ffn=False),
    ],
    ids=["tokens", "cache", "cache alone", "gated, no returns"],
)
def test_forms_are_equal_but_for_rounding(changes, form, monkeypatch):
    monkeypatch.setitem(blocks._SCORES, torch.float32, 2000)  # two blocks of two trajectories
    model = memory(**changes)
    valid = torch.ones(4, 2 * K + 5, dtype=torch.bool)
    valid[2, K + 3 :] = valid[3, 4:] = False
    (hidden, grads), (expected, wanted) = passed(model, form, valid), passed(model, "shared", valid)
    assert (hidden - expected)[valid].abs().max() < 1e-5
    assert grads.keys() == wanted.keys()
    for name, grad in grads.items():
        scale = max(1.0, float(wanted[name].abs().max()))
        assert float((grad - wanted[name]).abs().max()) < 1e-5 * scale, name


@pytest.mark.parametrize("form", ["blocks", "whole", "fused"])
def test_forms_are_near_in_bfloat16(form):
    model, valid = memory(), torch.ones(4, 2 * K, dtype=torch.bool)
    hidden, grads = passed(model, form, valid, torch.bfloat16)
    exact, wanted = passed(model, "shared", valid)
    assert (hidden - exact).abs().mean() < 0.02
    for name, grad in grads.items():
        assert grad.dtype == torch.float32 and (grad - wanted[name]).norm() < 0.1 * wanted[name].norm() + 1e-3, name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=str)
def test_layers_folded_together_are_those_folded_alone(precision):
    """Their tensors, and the gradients of all weights and biases."""

    def folded(together: bool) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        model = memory()
        attentions, biases = [layer.attention for layer in model.layers], (model.content_bias, model.position_bias)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            found = fold_together(attentions, *biases) if together else [a.fold(*biases) for a in attentions]
        tensors = [t for one in found for t in vars(one).values() if isinstance(t, torch.Tensor)]
        weights = [*biases, *(weight for attention in attentions for weight in attention.weights())]
        return tensors, list(torch.autograd.grad(sum(t.float().sin().sum() for t in tensors), weights))

    close = 1e-5 if precision == torch.float32 else 0.05
    for found, expected in zip(folded(True), folded(False), strict=True):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=close, atol=close)


def test_dropped_attention_has_the_gradient_of_what_it_computed():
    model, valid = memory(dropatt=0.4, n_layer=1).double(), torch.ones(3, K, dtype=torch.bool)
    model.attention = "blocks"
    given = steps(model, 3, K)

    def loss(shift: float) -> torch.Tensor:
        torch.manual_seed(3)
        moved = Steps(
            observations=given.observations.double() + shift,
            previous_actions=given.previous_actions.double(),
            actions=given.actions.double(),
            rtg=given.rtg.double(),
        )
        return model(moved, valid, model.initial(3))[0].sin().sum()

    value = loss(0.0)
    value.backward()
    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float(slope) == pytest.approx(float(given.observations.grad.sum()), rel=1e-3)
    model.eval()
    assert float(loss(0.0)) != pytest.approx(float(value), rel=1e-6)


def test_large_batches_on_a_cpu_are_computed_in_blocks():
    model = memory()
    assert model._form(1) == "shared" and model._form(10**4) == "blocks"
    assert memory(mem_len=5)._form(10**4) == "shared"
    model.compile()
    assert model._form(10**4) == "shared"


def test_long_segments_on_a_gpu_are_computed_without_keeping_scores():
    model = memory().to("meta")  # any device but a CPU
    assert model._form(10**3) == "whole" and model._form(10**5) == "fused"


def test_layers_share_compiled_code_and_never_run_without():
    """With a cache, shapes differ while it fills, and there are twice as many with evaluation."""
    compiler, limits = torch.compile, {"fail_on_recompile_limit_hit": True, "recompile_limit": 8}
    model, plain = (memory(mem_len=50, n_layer=3) for _ in range(2))
    valid = torch.ones(2, 4 * K, dtype=torch.bool)
    torch.compiler.reset()
    counters.clear()
    with dynamo.patch(**limits):
        with mock.patch("torch.compile", lambda layer: compiler(layer, backend="eager", fullgraph=True)):
            model.compile()
        for training in (True, False):
            (hidden, grads), (expected, wanted) = (passed(m.train(training), "whole", valid) for m in (model, plain))
            assert torch.equal(hidden, expected)
            assert all(torch.equal(grads[name], grad) for name, grad in wanted.items())
    assert counters["stats"]["unique_graphs"] < 2 * 4 * 3  # fewer than one for every mode, segment and layer
    torch.compiler.reset()


def acted(model: RATE, least: int, monkeypatch) -> torch.Tensor:
    """Hidden states of 20 rows over three segments; from the second on, one row is a step ahead."""
    monkeypatch.setattr(stepper, "_ROWS_BY_DISTANCE", least)
    torch.manual_seed(1)
    found = []
    with torch.inference_mode():
        acting = model.stepper(20, StepOptions(), torch.float32)
        acting.reset(np.arange(20))
        for step in range(2 * K + 5):
            if step == K + 3:
                acting.reset(np.array([7]))
            acting.pass_on()
            rtg, observations, actions = (torch.randn(20, 1, D) for _ in range(3))
            found.append(acting.append(rtg if model.config.conditioned else None, observations))
            acting.record(actions)
    return torch.stack(found)


@pytest.mark.parametrize(
    "changes",
    [dict(), dict(mem_len=50), dict(arch="GTrXL", conditioned=False, mem_len=7)],
    ids=["tokens", "cache", "gated, no returns"],
)
def test_acting_by_distance_is_equal_but_for_rounding(changes, monkeypatch):
    model = memory(**changes).eval()
    computed = []
    attention = blocks.ActingAttention.__call__
    monkeypatch.setattr(blocks.ActingAttention, "__call__", lambda *a: computed.append(a) or attention(*a))
    expected = acted(model, 21, monkeypatch)
    assert not computed
    assert (acted(model, 20, monkeypatch) - expected).abs().max() < 1e-5
    assert computed


def test_buffers_of_acting_are_freed_at_once():
    """Not when the garbage collector next looks for cycles: an evaluation makes many steppers."""
    gc.disable()
    try:
        with torch.inference_mode():
            acting = memory().eval().stepper(20, StepOptions(), torch.float32)
            acting.reset(np.arange(20))
            acting.pass_on()
        stays = weakref.ref(acting)
        del acting
        assert stays() is None
    finally:
        gc.enable()
