"""Initial states of windows: stored by an earlier pass over the episode and refreshed by a burn-in (R2D2)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.mirror import Mirror
from RATE_model.data.selection import strided_windows, whole_episodes
from RATE_model.data.trajectories import TrajectoryFile
from RATE_model.data.writer import TrajectoryWriter
from RATE_model.errors import UserError
from RATE_model.memories import MEMORIES
from RATE_model.spec import EnvironmentSpec
from RATE_model.training import stored_states
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer, accuracy, without_burn_in
from tests.small_models import VECTOR, K, N, small_config

SIZE = N * K
LENGTHS = [5 * K, K, 6 * K - 1]  # of episodes; steps after the short one are of the next
IMAGES = EnvironmentSpec(observation_shape=(1, 36, 36), num_actions=4)
MEMORY_NAMES = ("RATE", "TrXL", "LSTM", "GRU")


def make_data(folder: Path, stride: int = 1, *, spec: EnvironmentSpec = VECTOR, size: int = SIZE, pad="right"):
    """Windows of `size` steps of three random episodes, and the short episode whole."""
    rng = np.random.default_rng(3)
    shape, dtype = spec.observation_shape, "uint8" if spec.is_image else "float32"
    path = folder / "a.h5"
    with TrajectoryWriter(path, observation_shape=shape, observation_dtype=dtype, attributes={}) as writer:
        for steps in LENGTHS:
            observations = rng.integers(1, 200, (steps, *shape)) if spec.is_image else rng.normal(size=(steps, *shape))
            actions = rng.integers(spec.num_actions, size=steps)
            rewards, numbers = rng.normal(size=steps), np.arange(steps)
            infos = {"place": np.stack([rewards, numbers], axis=1), "phase": numbers % 3}
            writer.add_episode(observations.astype(dtype), actions, rewards, terminal=True, infos=infos)
    file = TrajectoryFile(path)
    windows = [strided_windows(0, file, size, stride), whole_episodes(0, file)[file.lengths < size]]
    return WindowDataset([file], np.concatenate(windows), size=size, pad=pad)


def make_agent(name: str = "RATE", *, spec: EnvironmentSpec = VECTOR, **changes) -> Agent:
    """A small agent with this memory, or RATE's mode, without dropout."""
    torch.manual_seed(0)
    if name in ("LSTM", "GRU", "MLP"):
        return Agent(AgentConfig(name, MEMORIES[name].config(d_model=16, context_length=K, **changes)), spec)
    return Agent(AgentConfig("RATE", small_config(name, **changes)), spec)


def make_trainer(model: Agent, data: WindowDataset, *, transform=None, rate: float = 0.0, **options) -> Trainer:
    options = TrainOptions(
        **dict(learning_rate=rate, window_state="stored", weight_decay=0.0, grad_norm_clip=1e6) | options
    )
    trainer = Trainer(model, options, Schedule(0, None, 0, 1.0), metrics=accuracy, transform=transform)
    trainer.begin_stage(data)
    return trainer


def first_states(trainer: Trainer, batch: Batch):
    """The initial states of all windows of a batch."""
    return trainer._first_states(batch, [slice(0, len(batch))])[0]


def episode(data: WindowDataset, start: int, steps: int) -> Batch:
    """The first steps of the episode that starts there, in one window."""
    return data.with_windows(np.array([[0, start, steps]]), size=steps)[0]


@pytest.mark.parametrize("bptt_segments", [-1, 0])
@pytest.mark.parametrize("name", MEMORY_NAMES)
def test_stored_states_equal_one_pass_over_the_episode(tmp_path, name, bptt_segments):
    """With windows in order and constant parameters, chains of segments from the first step are exact."""
    data, model = make_data(tmp_path), make_agent(name)
    trainer = make_trainer(model, data, bptt_segments=bptt_segments, accumulate=2)
    for number in range(len(data)):
        trainer.train_batch(data[number])
    checked = 0
    for number, (_, start, _) in enumerate(data.windows):
        begun = int(data.episode_starts(np.array([0]), np.array([start]))[0])
        if begun == start or (start - begun) % K:
            continue
        state = first_states(trainer, data[number])
        whole = episode(data, begun, start - begun)
        _, expected = model(whole.observations, whole.actions, whole.rtg, whole.valid)
        for one, other in zip(state.memory.tensors(), expected.memory.tensors(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
        assert state.started.tolist() == [0] and torch.equal(state.actions, whole.actions[:, -1])
        checked += 1
    assert checked == 2 + 2


@pytest.mark.parametrize("name", ["RATE", "TrXL", "LSTM"])
def test_windows_with_and_without_a_stored_state_in_one_batch(tmp_path, name):
    """Rows are independent: caches of different lengths, and no last action where nothing is stored."""
    data, model = make_data(tmp_path), make_agent(name)
    trainer = make_trainer(model, data)
    for number in (0, 1, K, 2 * K):  # store states after one, two and three segments
        trainer.train_batch(data[number])
    numbers = [2 * K, 0, K, 3, K + 1, len(data) - 1]
    batch = data.__getitems__(numbers)
    state = first_states(trainer, batch)
    assert state.started.tolist() == [0, 2, 4]
    together, _ = model(batch.observations, batch.actions, batch.rtg, batch.valid, state)
    for row, number in enumerate(numbers):
        one = data[number]
        alone, _ = model(one.observations, one.actions, one.rtg, one.valid, first_states(trainer, one))
        torch.testing.assert_close(together[row, one.valid[0]], alone[0, one.valid[0]], rtol=1e-4, atol=1e-5)


def test_the_initial_memory_gets_a_gradient_beside_stored_states(tmp_path):
    data, model = make_data(tmp_path), make_agent("RMT")
    trainer = make_trainer(model, data)
    trainer.train_batch(data[0])
    seen = []
    trainer.optimizer.register_step_pre_hook(lambda *_: seen.append(model.memory.memory_tokens.grad))
    trainer.train_batch(data.__getitems__([0, K]))
    trainer.train_batch(data[K])
    assert seen[0].abs().max() > 0 and (seen[1] is None or not seen[1].any())


def test_parts_of_a_batch_store_the_same(tmp_path):
    data, kept = make_data(tmp_path), []
    for accumulate in (1, 3):
        trainer = make_trainer(make_agent(mem_len=0), data, accumulate=accumulate, bptt_segments=-1)
        for numbers in ([0, K, 5, 1, 2 * K - 1, K - 1], [K, 2 * K - 1, 3, 9, 14, 0]):
            trainer.train_batch(data.__getitems__(numbers))
        kept.append(trainer.state_dict()["stored_states"])
    assert torch.equal(kept[0]["slots"], kept[1]["slots"]) and len(kept[0]["slots"]) > 5
    for one, other in zip(kept[0]["tensors"], kept[1]["tensors"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_mirrored_window_uses_the_state_of_a_mirrored_pass(tmp_path):
    data, model = make_data(tmp_path, K, spec=IMAGES), make_agent("LSTM", spec=IMAGES)
    mirror = Mirror((1, 0, 2, 3))
    trainer = make_trainer(model, data, transform=mirror)
    plain = make_trainer(model, data)
    plain.train_batch(data[0])
    for _ in range(20):  # both variants occur
        trainer.train_batch(data[0])
    as_it_is, mirrored = (
        first_states(trainer, replace(data[1], variants=torch.tensor([variant]))) for variant in (0, 1)
    )
    assert torch.equal(as_it_is.memory.hidden, first_states(plain, data[1]).memory.hidden)
    assert not torch.allclose(as_it_is.memory.hidden, mirrored.memory.hidden)


def test_a_state_after_the_end_of_a_trajectory_is_not_kept(tmp_path):
    """The short episode is padded: no window starts with the state after its padding."""
    data = make_data(tmp_path)
    trainer = make_trainer(make_agent("LSTM"), data)
    trainer.train_batch(data[len(data) - 1])
    assert not len(trainer.state_dict()["stored_states"]["slots"])


# --- burn-in ---


@pytest.mark.parametrize("steps", [1, K, K + 1, SIZE - 1])
def test_a_burn_in_has_no_loss_except_at_episode_starts(tmp_path, steps):
    data = make_data(tmp_path)
    batch = data.__getitems__([0, 3, len(data) - 1])
    learned = without_burn_in(batch, steps).valid
    assert torch.equal(learned[[0, 2]], batch.valid[[0, 2]]) and batch.begins.tolist() == [True, False, True]
    assert learned[1].tolist() == [step >= steps for step in range(SIZE)]
    assert without_burn_in(batch, 0) is batch
    left = data.with_windows(np.array([[0, 2, 7]]))
    left.pad = "left"
    assert without_burn_in(left[0], 3).valid[0].tolist() == [step >= SIZE - 4 for step in range(SIZE)]


@pytest.mark.parametrize("bptt_segments", [-1, 0])
@pytest.mark.parametrize(("name", "steps"), [("RATE", K), ("RATE", K + 1), ("LSTM", K + 1), ("LSTM", 3)])
def test_loss_and_gradient_come_from_after_the_burn_in(tmp_path, name, steps, bptt_segments):
    """They equal a pass without gradients over the burn-in (for RATE, its whole segments) and one over the rest."""
    data, model = make_data(tmp_path), make_agent(name, **({"mem_len": 5} if name == "RATE" else {}))
    batch = data.__getitems__([3, 5, 8])
    trainer = make_trainer(model, data, window_state="initial", burn_in=steps, bptt_segments=bptt_segments)
    seen = []
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    result = trainer.train_batch(batch)
    cut = steps // model.memory.context * model.memory.context

    def part(times: slice):
        return batch.observations[:, times], batch.actions[:, times], batch.rtg[:, times], batch.valid[:, times]

    with torch.no_grad():
        _, state = model(*part(slice(0, cut)))
    logits, _ = model(*part(slice(cut, SIZE)), state)
    loss = torch.nn.functional.cross_entropy(logits[:, steps - cut :].flatten(0, 1), batch.actions[:, steps:].flatten())
    assert float(result["train_loss"]) == pytest.approx(loss.item(), rel=1e-5)
    assert trainer.step == len(seen) == (1 if bptt_segments < 0 else N - steps // K)
    if bptt_segments < 0:
        model.zero_grad()
        loss.backward()
        for parameter, gradient in seen[0].items():
            expected = dict(model.named_parameters())[parameter].grad
            expected = torch.zeros_like(gradient) if expected is None else expected
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)
    right = (logits.argmax(-1)[:, steps - cut :] == batch.actions[:, steps:]).float().mean()
    assert float(result["train_accuracy"]) == pytest.approx(float(right))


def test_gradients_flow_through_all_of_windows_that_start_episodes(tmp_path):
    """Windows with a burn-in beside them get none."""
    data, model = make_data(tmp_path), make_agent("LSTM")
    trainer = make_trainer(model, data, window_state="initial", burn_in=K)
    batch = data.__getitems__([0, 3])
    batch = replace(batch, observations=batch.observations.clone().requires_grad_())
    trainer.train_batch(batch)
    touched = batch.observations.grad.abs().sum(-1) > 0
    assert touched.tolist() == [[True] * SIZE, [step >= K for step in range(SIZE)]]


def test_validation_burns_in_without_stored_states(tmp_path):
    data, model = make_data(tmp_path), make_agent()
    trainer = make_trainer(model, data, burn_in=K)
    before = trainer.validate(iter([data.__getitems__([3, 5])]))
    trainer.train_batch(data.__getitems__([0, 1]))
    assert trainer.validate(iter([data.__getitems__([3, 5])])) == before
    whole = make_trainer(model, data).validate(iter([data.__getitems__([3, 5])]))
    assert whole["validation_loss"] != before["validation_loss"]
    nothing = data.with_windows(np.array([[0, 2, K]]))
    assert trainer.validate(iter([nothing[0], data.__getitems__([3, 5])])) == before, "all of it is burn-in"


# --- checkpoints, stages, limits ---


def batches(data: WindowDataset, count: int) -> list[Batch]:
    rng = np.random.default_rng(1)
    return [data.__getitems__(rng.integers(len(data), size=5).tolist()) for _ in range(count)]


@pytest.mark.parametrize("name", ["RATE", "LSTM"])
def test_training_with_stored_states_continues_bit_for_bit(tmp_path, name):
    data, drawn = make_data(tmp_path), batches(make_data(tmp_path), 10)

    def make(seed: int) -> Trainer:
        model = make_agent(name, dropout=0.1)
        torch.manual_seed(seed)
        return make_trainer(model, data, rate=1e-2, burn_in=2, bptt_segments=0, action_noise=0.3)

    whole, first, second = make(1), make(1), make(2)
    torch.manual_seed(1)
    expected = [float(whole.train_batch(batch)["train_loss"]) for batch in drawn]
    torch.manual_seed(1)
    losses = [float(first.train_batch(batch)["train_loss"]) for batch in drawn[:5]]
    state = first.state_dict()
    torch.save(state, tmp_path / "state.pt")
    second.model.load_state_dict(first.model.state_dict())
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    second.begin_stage(data)
    losses += [float(second.train_batch(batch)["train_loss"]) for batch in drawn[5:]]
    assert losses == expected and len(state["stored_states"]["slots"]) > 3
    without = make(1)
    torch.manual_seed(1)
    assert [float(without.train_batch(batch)["train_loss"]) for batch in drawn[:5]] == expected[:5]
    without.begin_stage(data)
    assert [float(without.train_batch(batch)["train_loss"]) for batch in drawn[5:]] != expected[5:]


def test_saving_right_after_resuming_keeps_the_states(tmp_path):
    data = make_data(tmp_path)
    first = make_trainer(make_agent(), data)
    first.train_batch(data[0])
    second = Trainer(make_agent(), first.options, Schedule(0, None, 0, 1.0))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state_dict()["stored_states"]["slots"], first.state_dict()["stored_states"]["slots"])


def test_a_new_stage_starts_without_stored_states(tmp_path):
    data = make_data(tmp_path)
    trainer = make_trainer(make_agent(), data)
    trainer.train_batch(data[0])
    trainer.end_stage()
    assert trainer.state_dict()["stored_states"] is None
    trainer.begin_stage(data)
    assert first_states(trainer, data[K]) is None


def test_too_many_states_are_refused(tmp_path, monkeypatch):
    data, model = make_data(tmp_path), make_agent()
    monkeypatch.setattr(stored_states, "MAX_BYTES", 10_000)
    with pytest.raises(UserError, match=r"--window_state stored: \d+ states of \d+ bytes would take .* at most"):
        make_trainer(model, data)


def test_windows_padded_on_the_left_are_refused(tmp_path):
    with pytest.raises(UserError, match="--pad left"):
        make_trainer(make_agent(), make_data(tmp_path, pad="left"))
