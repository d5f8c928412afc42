"""Acting on the last K steps with a memory, and resetting the target return, compared with slow references."""

import numpy as np
import pytest
import torch
from torch import Tensor

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import knock_out_memory
from RATE_model.agent import Agent
from tests.small_models import CONTINUOUS, VECTOR, Inputs, K, one_segment, random_inputs, small_model

STEPS = 4 * K + 2
# A model with memory tokens, an MRV and a cache, without one of them, and without any.
MODES = ("RATE", "RATEM", "RMT", "TrXL", "DT")


def in_windows(model: Agent, inputs: Inputs, *, forget: bool = False) -> Tensor:
    """Logits (B, T, A): at step t, of the last K steps after the memory of the last multiple of K."""
    size, memory, logits = model.memory.config.context_length, model.initial(len(inputs[2])).memory, []
    for step in range(inputs[2].shape[1]):
        if step and step % size == 0 and not forget:
            behind = [tensor[:, step - size : step] for tensor in inputs]
            _, memory = one_segment(model, behind, memory)
        window = [tensor[:, max(0, step - size + 1) : step + 1] for tensor in inputs]
        logits.append(one_segment(model, window, memory)[0][:, -1])
    return torch.stack(logits, dim=1)


def acted(actor: Actor, inputs: Inputs) -> Tensor:
    """Logits of an actor on recorded trajectories, (B, T, A)."""
    observations, actions, rtg = inputs
    rewards = -np.diff(rtg.numpy(), axis=1, prepend=0)
    logits = []
    for step in range(rtg.shape[1]):
        logits.append(actor.observe(observations[:, step], rewards[:, step]))
        actor.take(actions[:, step])
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
@torch.no_grad()
def test_a_window_slides_while_memory_is_passed_on(mode, spec):
    model = small_model(mode, spec=spec)
    inputs = random_inputs(3, STEPS + 2 * (model.memory.config.context_length - K), spec=spec)
    actor = Actor(model, 3, inputs[2][:, 0], window=True)
    torch.testing.assert_close(acted(actor, inputs), in_windows(model, inputs), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["RATE", "DT"])
@torch.no_grad()
def test_a_slide_longer_than_the_window_clears_it(mode):
    model = small_model(mode)
    inputs, size = random_inputs(2, STEPS), model.memory.config.context_length
    found = [
        acted(Actor(model, 2, inputs[2][:, 0], window=True, slide=slide), inputs) for slide in (size, size + 1, 99)
    ]
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
    torch.testing.assert_close(found[2], found[0], rtol=0, atol=0)
    fewer = acted(Actor(model, 2, inputs[2][:, 0], window=True, slide=1), inputs)
    assert not torch.allclose(fewer, found[0]), "the slide must tell"


@pytest.mark.parametrize("arch", ["TrXL-I", "GTrXL"])
@torch.no_grad()
def test_blocks_that_cache_other_states_than_they_attend_to(arch):
    model, inputs = small_model(arch=arch), random_inputs(2, STEPS)
    found = acted(Actor(model, 2, inputs[2][:, 0], window=True), inputs)
    torch.testing.assert_close(found, in_windows(model, inputs), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_window_is_not_a_segment_and_needs_its_memory():
    """Otherwise the test above would prove nothing."""
    model, inputs = small_model(), random_inputs(3, STEPS)
    windows = in_windows(model, inputs)
    segments = acted(Actor(model, 3, inputs[2][:, 0]), inputs)
    torch.testing.assert_close(segments[:, :K], windows[:, :K], rtol=1e-4, atol=1e-5)
    differences = (segments - windows).abs().amax(-1)
    ends = np.arange(STEPS) % K == K - 1  # there the window is the segment
    assert differences[:, ends].max() < 1e-4 and differences[:, K:][:, ~ends[K:]].min() > 1e-3
    without = in_windows(model, inputs, forget=True)
    assert (without - windows)[:, K:].abs().amax(-1).min() > 1e-3
    knocked_out = Actor(model, 3, inputs[2][:, 0], window=True, transform_memory=knock_out_memory)
    torch.testing.assert_close(acted(knocked_out, inputs), without, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_of_a_window_start_and_end_at_different_times():
    model, inputs = small_model(), random_inputs(3, STEPS)
    alone = in_windows(model, inputs)
    actor = Actor(model, 3, inputs[2][:, 0], window=True)
    first = K + 1  # the second row starts over here, with the trajectory that it began with
    acted(actor, tuple(tensor[:, :first] for tensor in inputs))
    actor.reset(np.array([1]))
    late = [torch.stack([t[0, first:], t[1, : STEPS - first], t[2, first:]]) for t in inputs]
    rewards = np.stack(
        [-np.diff(r.numpy(), prepend=r0) for r, r0 in zip(late[2], inputs[2][:, first - 1], strict=True)]
    )
    for step in range(STEPS - first):
        if step == K:
            actor.keep(np.array([2, 1]))
            late, rewards = [tensor[[2, 1]] for tensor in late], rewards[[2, 1]]
        found = actor.observe(late[0][:, step], rewards[:, step])
        actor.take(late[1][:, step])
        expected = [alone[0, first + step], alone[1, step], alone[2, first + step]]
        expected = torch.stack(expected if step < K else [expected[2], expected[1]])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [False, True])
@torch.no_grad()
def test_the_target_is_reset_whenever_memory_is_passed_on(window):
    model, (observations, actions, _) = small_model(spec=CONTINUOUS), random_inputs(2, STEPS, spec=CONTINUOUS)
    targets, rewards = torch.tensor([3.0, -1.0]), torch.rand(2, STEPS)

    def logits(**options) -> Tensor:
        actor, found = Actor(model, 2, targets, window=window, **options), []
        for step in range(STEPS):
            found.append(actor.observe(observations[:, step], rewards[:, step - 1] if step else None))
            actor.take(actions[:, step])
        return torch.stack(found, dim=1)

    earned = torch.cat([torch.zeros(2, 1), rewards[:, :-1].cumsum(1)], dim=1)
    before = earned[:, [K * (step // K) for step in range(STEPS)]]  # earned by the beginning of its segment
    for options, rtg in (({}, targets[:, None] - earned), ({"reset_target": True}, targets[:, None] - earned + before)):
        told = acted(Actor(model, 2, rtg[:, 0], window=window), (observations, actions, rtg))
        torch.testing.assert_close(logits(**options), told, rtol=1e-4, atol=1e-5)
    assert (logits() - logits(reset_target=True))[:, K:].abs().max() > 1e-3
