"""Acting with the RATE family, beyond the memory contract: blocks, caches, sliding windows; returns-to-go."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from RATE_model.acting.actor import Actor
from RATE_model.acting.controls import exchange_twins, knock_out_memory, memory_conditions
from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import ARCHS
from RATE_model.memories.rate.state import SegmentState
from RATE_model.spec import EnvironmentSpec
from tests.small_models import (
    CONTINUOUS,
    VECTOR,
    Inputs,
    K,
    N,
    logits_of,
    one_segment,
    random_inputs,
    small_model,
)

IMAGE = EnvironmentSpec(observation_shape=(2, 36, 36), num_actions=3, observation_scale=1 / 255, return_scale=0.1)
TARGET = 3.0
# Float32 sums in another order, through up to six segments.
CLOSE = dict(rtol=1e-3, atol=1e-4)
BLOCKS = [(arch, skip_dec_ffn) for arch in ARCHS for skip_dec_ffn in (False, True)]


@dataclass(frozen=True)
class Recording:
    """B trajectories of T steps, as seen by an agent with the target return `TARGET`."""

    observations: Tensor
    actions: Tensor
    rewards: Tensor

    @property
    def inputs(self) -> Inputs:
        """Inputs of the forward pass."""
        earned = torch.cat([torch.zeros_like(self.rewards[:, :1]), self.rewards.cumsum(1)[:, :-1]], dim=1)
        return self.observations, self.actions, TARGET - earned

    def row(self, row: int) -> "Recording":
        return Recording(*(tensor[row : row + 1] for tensor in (self.observations, self.actions, self.rewards)))


def record(batch: int, steps: int, *, spec: EnvironmentSpec = VECTOR, seed: int = 0) -> Recording:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, steps, *spec.observation_shape)
    if spec.is_image:
        observations = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    else:
        observations = torch.randn(shape, generator=generator)
    if spec.continuous:
        actions = torch.rand(batch, steps, spec.num_actions, generator=generator) * 2 - 1
    else:
        actions = torch.randint(0, spec.num_actions, (batch, steps), generator=generator)
    return Recording(observations, actions, torch.randn(batch, steps, generator=generator))


def play(actor: Actor, recording: Recording) -> Tensor:
    """(B, T, A) logits of an actor that replays the recording."""
    logits = []
    for step in range(recording.rewards.shape[1]):
        rewards = recording.rewards[:, step - 1] if step else None
        logits.append(actor.observe(recording.observations[:, step], rewards))
        actor.take(recording.actions[:, step])
    return torch.stack(logits, dim=1)


def play_from(actor: Actor, recording: Recording, starts: np.ndarray) -> list[list[Tensor]]:
    """Row b replays its recording from the beginning at every time in `starts[b]`, at most T steps of it.

    Returns the logits (episode length, A) of every row's every episode.
    """
    rows, steps = torch.arange(len(starts)), recording.rewards.shape[1]
    seen: list[list[list[Tensor]]] = [[] for _ in rows]
    for now in range(int(starts.max()) + steps):
        new = np.flatnonzero((starts == now).any(axis=1))
        if new.size:
            actor.reset(new)
        for row in new:
            seen[row].append([])
        step = np.array([min(len(episodes[-1]), steps - 1) if episodes else 0 for episodes in seen])
        logits = actor.observe(recording.observations[rows, step], recording.rewards[rows, np.maximum(step - 1, 0)])
        actor.take(recording.actions[rows, step])
        for row, episodes in enumerate(seen):
            if episodes:
                episodes[-1].append(logits[row])
    return [[torch.stack(episode[:steps]) for episode in episodes] for episodes in seen]


# --- equivalence to the forward pass ---


@pytest.mark.parametrize("mode", ["RATE", "DTXL"])
@torch.no_grad()
def test_logits_equal_those_of_forward_as_caches_fill(mode):
    for arch, skip_dec_ffn in BLOCKS:
        for mem_len in (8, 30):
            model = small_model(mode, arch=arch, skip_dec_ffn=skip_dec_ffn, mem_len=mem_len)
            recording = record(3, 11 if model.memory.config.sliding else 5 * K + 3)
            expected = logits_of(model, recording.inputs)
            torch.testing.assert_close(play(Actor(model, 3, TARGET), recording), expected, **CLOSE)


@torch.no_grad()
def test_a_long_segment_is_appended_in_chunks():
    """More tokens than one attention call takes: a window of 42 steps that slides by one."""
    model = small_model("DT", context_length=14)  # a window of 3 * 14 steps
    recording = replace(record(2, 44), rewards=torch.zeros(2, 44))
    logits = play(Actor(model, 2, TARGET), recording)
    window = tuple(tensor[:, 2:] for tensor in recording.inputs)
    torch.testing.assert_close(logits[:, -1], logits_of(model, window)[:, -1], **CLOSE)


@torch.no_grad()
def test_returns_to_go_fall_with_the_rewards_and_are_scaled():
    """With a scale of 0.1 the model sees a tenth of the return-to-go."""
    recording = record(2, 7)
    scaled = small_model(spec=replace(VECTOR, return_scale=0.1))
    plain = small_model()
    observations, actions, rtg = recording.inputs
    expected = logits_of(plain, (observations, actions, rtg * 0.1))
    torch.testing.assert_close(play(Actor(scaled, 2, TARGET), recording), expected, **CLOSE)
    actor = Actor(plain, 2, np.array([3.0, 5.0]))
    apart = play(actor, recording)
    rtg = rtg + torch.tensor([0.0, 2.0])[:, None]
    torch.testing.assert_close(apart, logits_of(plain, (observations, actions, rtg)), **CLOSE)
    # The reward passed with an episode's first observation belongs to the previous episode.
    actor.reset()
    torch.testing.assert_close(actor.observe(observations[:, 0], torch.full((2,), 9.0)), apart[:, 0], **CLOSE)
    actor.reset(target_return=TARGET)
    actor.observe(observations[:, 0])
    torch.testing.assert_close(actor._rtg, torch.full((2,), TARGET))


@torch.no_grad()
def test_returns_to_go_stop_at_floor_or_lower_target():
    model = small_model()
    observations, actions, _ = random_inputs(3, 6)
    rewards, targets = torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0]), torch.tensor([2.2, 9.0, -1.0])
    actor, seen = Actor(model, 3, targets, rtg_floor=0.5), []
    for step in range(6):
        seen.append(actor.observe(observations[:, step], rewards[step - 1].expand(3) if step else None))
        actor.take(actions[:, step])
    free = targets[:, None] - torch.cat([torch.zeros(1), rewards.cumsum(0)])
    rtg = torch.stack([free[0].clamp(min=0.5), free[1], torch.full((6,), -1.0)])
    assert (rtg[0] != free[0]).any()
    torch.testing.assert_close(torch.stack(seen, dim=1), logits_of(model, (observations, actions, rtg)), **CLOSE)
    actor.reset(np.array([True, False, False]), target_return=7.0)
    assert actor._rtg.tolist() == [7.0, 5.5, -1.0]


# --- independent rows ---


@pytest.mark.parametrize("mode", ["RATE", "DTXL"])
@torch.no_grad()
def test_rows_that_start_at_different_times_are_independent(mode):
    """Also when an episode ends exactly with a segment, or one step before or after."""
    for arch in ("TrXL", "GTrXL"):
        model = small_model(mode, arch=arch)
        steps = 2 * K + 3
        lengths = np.array([K, K - 1, K + 1, 2 * K, 3])  # of each row's first episode
        starts = np.stack([np.array([0, 1, 2, 0, 5]), np.array([0, 1, 2, 0, 5]) + lengths], axis=1)
        recording = record(5, steps)
        expected = logits_of(model, recording.inputs)
        seen = play_from(Actor(model, 5, TARGET), recording, starts)
        for row in range(5):
            first, second = seen[row]
            assert len(first) == lengths[row] and len(second) == steps
            torch.testing.assert_close(first, expected[row, : lengths[row]], **CLOSE)
            torch.testing.assert_close(second, expected[row], **CLOSE)


def test_reset_takes_a_mask_and_a_target_for_some_rows():
    model = small_model()
    actor = Actor(model, 3, TARGET)
    recording = record(3, 6)
    first = play(actor, recording)
    actor.reset(np.array([True, False, True]), target_return=torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(actor._rtg[[0, 2]], torch.tensor([3.0, 4.0]))
    again = actor.observe(recording.observations[:, 0])
    torch.testing.assert_close(again[0], first[0, 0], **CLOSE)
    assert (again[1] - first[1, 0]).abs().max() > 1e-3 and (again[2] - first[2, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["RATE", "DTXL"])
@torch.no_grad()
def test_kept_rows_keep_their_state(mode):
    """Rows that are in different segments, with caches of different lengths."""
    model, steps = small_model(mode, mem_len=60), 3 * N * K
    recording, late = record(4, steps), np.array([0, 2])

    def run(*, cut: int) -> Tensor:
        actor, rows, logits = Actor(model, 4, TARGET), np.arange(4), []
        for step in range(steps):
            if step == N * K + 2:
                actor.reset(late)
            if step == cut:
                actor.keep(rows := np.array([3, 2, 0]))
            logits.append(actor.observe(recording.observations[rows, step], recording.rewards[rows, step - 1]))
            actor.take(recording.actions[rows, step])
        return torch.stack([step if len(step) == 3 else step[[3, 2, 0]] for step in logits])

    whole = run(cut=steps)
    for cut in range(N * K + 3, 2 * N * K, 3):
        torch.testing.assert_close(run(cut=cut), whole, **CLOSE)


# --- sliding windows ---


def slid(model: Agent, recording: Recording, slide: int) -> Tensor:
    """Logits (B, T, A) of windows recomputed from scratch at every step; DTXL renews its cache every N*K steps."""
    size, memory = model.memory.config.context_length, model.initial(len(recording.rewards)).memory
    start = since = 0
    logits = []
    for step in range(recording.rewards.shape[1]):
        window = tuple(tensor[:, start:step] for tensor in recording.inputs)
        if step - start == size:
            if model.memory.config.mem_len and since >= size:
                memory, since = one_segment(model, window, memory)[1], 0
            start += slide
        window = tuple(tensor[:, start : step + 1] for tensor in recording.inputs)
        logits.append(one_segment(model, window, memory)[0][:, -1])
        since += 1
    return torch.stack(logits, dim=1)


@pytest.mark.parametrize("slide", [1, K, N * K])
@pytest.mark.parametrize(("mode", "mem_len"), [("DT", 0), ("DTXL", 8), ("DTXL", 50)])
@torch.no_grad()
def test_windows_slide(mode, mem_len, slide):
    for arch in ("TrXL", "TrXL-I"):
        model = small_model(mode, arch=arch, mem_len=mem_len)
        recording = record(2, 3 * N * K + 2)
        expected = slid(model, recording, slide)
        torch.testing.assert_close(play(Actor(model, 2, TARGET, slide=slide), recording), expected, **CLOSE)
        if slide == 1 and not mem_len:  # check that the window has an effect
            whole = Actor(model, 2, TARGET, slide=N * K)
            assert (play(whole, recording)[:, N * K :] - expected[:, N * K :]).abs().max() > 1e-3


@torch.no_grad()
def test_rows_slide_at_different_times():
    model = small_model("DTXL")
    recording = record(3, 2 * N * K + 3)
    expected = slid(model, recording, 1)
    starts = np.array([[0], [3], [N * K]])
    seen = play_from(Actor(model, 3, TARGET), recording, starts)
    for row in range(3):
        torch.testing.assert_close(seen[row][0], expected[row], **CLOSE)


# --- cost ---


@pytest.mark.parametrize(("mode", "steps"), [("RATE", 2 * K + 1), ("DT", N * K + 5)])
def test_an_image_is_encoded_exactly_once(mode, steps):
    model = small_model(mode, spec=IMAGE)
    encoded = []
    model.encoder.observation.register_forward_hook(lambda module, inputs, output: encoded.append(len(inputs[0])))
    play(Actor(model, 2, TARGET), record(2, steps, spec=IMAGE))
    assert encoded == [2] * steps


# --- options ---


def test_greedy_and_sampled_actions():
    model, recording = small_model(), record(200, 1)
    observations = recording.observations[:, 0]
    logits = Actor(model, 200, TARGET).observe(observations)

    def first_actions(**options) -> np.ndarray:
        return Actor(model, 200, TARGET, **options).act(observations)

    greedy = first_actions()
    assert greedy.dtype == np.int64 and (greedy == logits.argmax(-1).numpy()).all()
    drawn = first_actions(greedy=False, seed=1)
    assert (drawn == first_actions(greedy=False, seed=1)).all()
    assert (drawn != first_actions(greedy=False, seed=2)).any()
    expected = logits.softmax(-1).sum(0).numpy()  # of each action, +- about 6
    assert (drawn != greedy).any() and np.abs(np.bincount(drawn, minlength=4) - expected).max() < 30


def test_sampling_does_not_touch_torchs_global_generator():
    actor = Actor(small_model(), 2, TARGET, greedy=False)
    before = torch.get_rng_state()
    actor.act(torch.zeros(2, 4))
    assert torch.equal(torch.get_rng_state(), before)


def test_continuous_actions_are_the_predictions():
    model = small_model(spec=CONTINUOUS)
    observations = torch.randn(2, 5)
    actions = Actor(model, 2, TARGET).act(observations)
    assert actions.dtype == np.float32 and actions.shape == (2, 2) and np.abs(actions).max() <= 1
    np.testing.assert_array_equal(actions, Actor(model, 2, TARGET).observe(observations).numpy())


def test_twins_are_exchanged_half_of_the_time_by_seed():
    rows = torch.arange(2000)
    memory = SegmentState(rows.float().view(-1, 1, 1), (), torch.zeros(2000, dtype=torch.int64))

    def exchanged(seed: int) -> Tensor:
        transform = exchange_twins(seed)
        return torch.stack([transform(memory, memory).tokens.flatten().long() for _ in range(2)])

    first, second = exchanged(3)
    assert set((first // 2 - rows // 2).tolist()) == {0} and set((first - rows).tolist()) == {-1, 0, 1}
    assert 0.45 < (first != rows).float().mean() < 0.55 and not torch.equal(first, second)
    assert torch.equal(exchanged(3)[1], second) and not torch.equal(exchanged(4)[1], second)


def test_memory_conditions_of_models_with_and_without_memory():
    knocked_out = {"memory intact": None, "memory knocked out": knock_out_memory}
    for mode in ("RATE", "RMT", "TrXL", "DTXL"):
        assert memory_conditions(small_model(mode)) == knocked_out
    for model in (small_model("DT"), small_model("TrXL", mem_len=0)):
        assert memory_conditions(model) == {"no memory": None}


def test_buffers_have_the_requested_precision():
    actor = Actor(small_model(), 4, TARGET, precision="bf16")
    logits = play(actor, record(4, 2))
    assert logits.dtype == torch.float32 and actor._stepper._inputs[0].dtype == torch.bfloat16


def test_invalid_agents_and_options_are_refused():
    with pytest.raises(ValueError, match="training mode.*model.eval"):
        Actor(small_model().train(), 1, TARGET)
    with pytest.raises(ValueError, match="slide 0: must be a whole number, at least 1"):
        Actor(small_model("DT"), 1, TARGET, slide=0)
    for size in (0, -1, None, 1.5):
        with pytest.raises(UserError, match=f"batch_size {size}: must be a number of environments"):
            Actor(small_model(), size, TARGET)
    with pytest.raises(UserError, match="target_return: the type is object"):
        Actor(small_model(), 1, None)
    with pytest.raises(UserError, match="precision 'half': must be one of auto, 32, bf16"):
        Actor(small_model(), 1, TARGET, precision="half")


@pytest.mark.parametrize(
    ("observations", "rewards", "words"),
    [
        (np.zeros((1, 4)), None, r"observations: shape is \(1, 4\); expected \(2, 4\)"),
        (torch.zeros(2, 5), None, r"observations: shape is \(2, 5\); expected \(2, 4\)"),
        (np.full((2, 4), np.nan), None, "observations: a value is NaN"),
        (np.full((2, 4), 1e300), None, "observations: a value is NaN or infinite"),
        (np.zeros((2, 4), complex), None, "observations: the type is complex128"),
        (np.zeros((2, 4)), np.zeros((2, 1)), r"rewards: shape is \(2, 1\); expected \(2,\)"),
        (np.zeros((2, 4)), np.array([0, np.inf]), "rewards: a value is NaN"),
    ],
)
def test_invalid_observations_and_rewards_are_refused(observations, rewards, words):
    actor = Actor(small_model(), 2, TARGET)
    actor.act(np.zeros((2, 4), np.float32), np.full(2, np.nan))  # ignored at the start of an episode
    with pytest.raises(UserError, match=words):
        actor.act(observations, rewards)
    for target in (np.zeros(3), float("nan")):
        with pytest.raises(UserError, match="target_return: "):
            actor.reset(target_return=target)
    actor.observe(np.zeros((2, 4), np.float32))
    with pytest.raises(UserError, match=r"actions: shape is \(1,\); expected \(2,\)"):
        actor.take(np.zeros(1, int))


def test_more_memory_tokens_than_one_attention_call_takes():
    model = small_model(num_mem_tokens=70, context_length=3)
    observations, actions = torch.randn(2, 7, 4), torch.randint(0, 4, (2, 7))
    with torch.no_grad():
        expected, _ = model(observations, actions, torch.ones(2, 7), torch.ones(2, 7, dtype=torch.bool))
    actor = Actor(model, 2, 1.0)
    for step in range(7):
        logits = actor.observe(observations[:, step])
        actor.take(actions[:, step])
        torch.testing.assert_close(logits, expected[:, step], atol=1e-5, rtol=0)
