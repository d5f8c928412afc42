"""ELMUR's update against its equations, written out in NumPy."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from RATE_model.errors import UserError
from RATE_model.memories.elmur import ELMURCell, ELMURConfig, ELMURState
from tests.written_out import attended, mlp, norm

K, SLOTS, D, HEADS = 3, 2, 4, 2
CPU = torch.device("cpu")


def cell(**changes) -> ELMURCell:
    torch.manual_seed(0)
    made = ELMURCell(
        ELMURConfig(d_model=D, context_length=K, heads=HEADS, inner=6, slots=SLOTS, blend=0.75, **changes)
    ).double()
    with torch.no_grad():
        for parameter in made.parameters():  # biases and norms begin at 0 and 1, where a mistake would not show
            parameter.normal_(std=0.7)
    return made


def step(layer: ELMURCell, state: ELMURState) -> tuple[torch.Tensor, ELMURState, dict]:
    """A segment of random inputs."""
    tensors = tuple(getattr(state, field.name) for field in fields(state))
    outputs, after, seen = layer(torch.randn(1, K, D, dtype=torch.float64), tensors, None)
    return outputs, ELMURState(*after), seen


def slots_after(layer: ELMURCell, slots: np.ndarray, tokens: np.ndarray, ages: list[list[int]]) -> np.ndarray:
    """u of every slot: tok2mem, then the feed-forward network. `ages`: by slot, of every token (K of them)."""
    bias = layer.write_bias.detach().numpy()
    mixed = [
        attended(layer.write, slot, list(tokens), lambda head, step, index=index: bias[head, ages[index][step]])
        for index, slot in enumerate(slots)
    ]
    u = norm(layer.norms[3], slots + np.array(mixed) @ layer.write.output.weight.detach().numpy().T)
    return norm(layer.norms[4], u + mlp(layer.forward_slot, u))


@torch.no_grad()
def test_a_segment_fills_empty_slots_and_then_blends_into_the_oldest():
    layer = cell()
    state = layer.begin(1, CPU)
    slots, empty = layer.initial_slots.numpy(), 31
    # Ages of the slots at the steps of each segment: the last bucket where they are empty.
    ages = [
        [[empty] * 3, [empty] * 3],
        [[0, 1, 2], [empty] * 3],
        [[3, 4, 5], [0, 1, 2]],
    ]
    for segment, chosen in enumerate([0, 1, 0]):
        outputs, state, seen = step(layer, state)
        u = slots_after(layer, slots, outputs[0].numpy(), ages[segment])
        share = 1.0 if segment < 2 else 0.75
        slots = slots.copy()
        slots[chosen] = share * u[chosen] + (1 - share) * slots[chosen]
        np.testing.assert_allclose(state.contents[0].numpy(), slots, atol=1e-12)
        assert state.anchors[0, chosen] == (segment + 1) * K and state.time[0] == (segment + 1) * K
        assert seen["slots read"].shape == (1, K, SLOTS)
    assert state.anchors[0].tolist() == [9, 6]


@torch.no_grad()
def test_slot_content_fades_with_every_write():
    """(1 - lambda)^k after k writes of the slot, and of nothing else: other slots stay bit for bit."""
    layer = cell()
    state = layer.begin(1, CPU)
    for _ in range(2):
        _, state, _ = step(layer, state)
    marked = torch.zeros_like(state.contents)
    marked[0, 0] = 1000.0
    before = replace(state, contents=state.contents + marked)
    _, after, _ = step(layer, before)
    assert torch.equal(after.contents[0, 1], before.contents[0, 1])
    assert 200 < float(after.contents[0, 0].mean()) < 300  # a quarter of 1000 and what was written


def test_ages_far_beyond_any_training_have_a_bias():
    layer = cell()
    state = layer.begin(2, CPU)
    anchors, time = torch.zeros(2, SLOTS, dtype=torch.int64), torch.tensor([10**7, 10**6])
    old = replace(state, anchors=anchors, time=time)
    assert (layer.age(old, torch.arange(K)[None]) == 30).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots": 0}, "--elmur_slots 0"),
        ({"heads": 3}, "--elmur_heads 3 does not divide --d_model 4: choose one of 1, 2, 4"),
        ({"blend": 0.0}, "--elmur_blend 0.0"),
        ({"layers": 0}, "--elmur_layers 0"),
    ],
)
def test_sizes_that_cannot_be_built_are_refused(changes, words):
    with pytest.raises(UserError, match=words):
        ELMURConfig(**{"d_model": 4, "context_length": 2} | changes).validate()
