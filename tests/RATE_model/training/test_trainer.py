"""Optimizer steps of a batch: parts, windows, validation, non-finite losses."""

import json
from dataclasses import replace

import pytest
import torch

from RATE_model.agent import Agent
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.mirror import Mirror
from RATE_model.errors import UserError
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.spec import EnvironmentSpec
from RATE_model.training import trainer as trainer_module
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer, TrainingDiverged, accuracy, last_steps_right, optimizer_steps
from tests.small_models import CONTINUOUS, VECTOR, K, N, random_inputs, small_model

Parameters = dict[str, torch.Tensor]


def make_batch(lengths: list[int], *, spec=VECTOR, seed: int = 0, steps: int = N * K) -> Batch:
    """Random trajectories of these lengths, padded on the right."""
    observations, actions, rtg = random_inputs(len(lengths), steps, spec=spec, seed=seed)
    valid = torch.arange(steps) < torch.tensor(lengths)[:, None]
    actions[~valid], rtg[~valid] = 0, 0
    return Batch(observations, actions, rtg, valid, torch.tensor(lengths), torch.arange(len(lengths)) + 100)


def make_trainer(model: Agent, *, directory=None, metrics=None, transform=None, **options) -> Trainer:
    options = TrainOptions(**dict(learning_rate=1e-2, grad_norm_clip=1e6) | options)
    return Trainer(
        model, options, Schedule(0, None, 0, 1.0), metrics=metrics, transform=transform, crash_directory=directory
    )


def parameters(model: Agent) -> Parameters:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def moved(model: Agent, before: Parameters) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def gradients_of_steps(trainer: Trainer) -> list[Parameters]:
    """A list that receives the gradient of every later optimizer step."""
    seen: list[Parameters] = []

    def record(optimizer, args, kwargs) -> None:
        named = trainer.model.named_parameters()
        seen.append({name: p.grad.clone() for name, p in named if p.grad is not None})

    trainer.optimizer.register_step_pre_hook(record)
    return seen


# --- gradient windows ---


@pytest.mark.parametrize(("bptt_segments", "steps"), [(-1, 1), (0, 3), (1, 2), (2, 1), (7, 1)])
def test_a_window_makes_one_optimizer_step(bptt_segments, steps):
    trainer = make_trainer(small_model(), bptt_segments=bptt_segments)
    seen = gradients_of_steps(trainer)
    trainer.train_batch(make_batch([N * K] * 4))
    assert trainer.step == len(seen) == steps == optimizer_steps(trainer.options, K, N * K)


def test_windows_without_a_valid_step_make_none():
    trainer = make_trainer(small_model(), bptt_segments=0)
    seen = gradients_of_steps(trainer)
    metrics = trainer.train_batch(make_batch([K, K - 1]))
    assert len(seen) == 1 and metrics["train_loss"].isfinite()


def test_gradients_flow_through_memory_within_a_window_only():
    """The MRV acts between segments: cut there, it gets no gradient; otherwise every parameter does."""
    batch = make_batch([N * K] * 4)
    for bptt_segments, reached in [(0, [False] * 3), (1, [True, False]), (-1, [True])]:
        model = small_model(n_head_ca=2, mem_len=0)
        trainer, before = make_trainer(model, bptt_segments=bptt_segments, weight_decay=0.0), parameters(model)
        seen = gradients_of_steps(trainer)
        trainer.train_batch(batch)
        # The last window of two segments has one segment only.
        assert [any(name.startswith("memory.valve") for name in step) for step in seen] == reached
        expected = set(before)
        if not any(reached):
            expected -= {name for name in before if name.startswith("memory.valve")}
        # The gradient of a key's bias is zero except for rounding: it adds the same to every score.
        assert expected - moved(model, before) <= {"memory.valve.key.bias"} and moved(model, before) <= expected


@pytest.mark.parametrize("bptt_segments", [0, 1])
def test_every_window_starts_with_the_memory_of_the_previous_one(bptt_segments):
    """The gradients equal those of a simple loop over windows, each with the current parameters."""
    batch, size = make_batch([N * K, N * K, K + 1]), K * (bptt_segments + 1)
    trainer = make_trainer(small_model(), bptt_segments=bptt_segments)
    seen = gradients_of_steps(trainer)
    loss = trainer.train_batch(batch)["train_loss"]
    model = small_model().train()
    optimizer = make_trainer(model).optimizer
    memory, total = None, 0.0
    for start, gradients in zip(range(0, N * K, size), seen, strict=True):
        window = slice(start, start + size)
        valid = batch.valid[:, window]
        inputs = (batch.observations[:, window], batch.actions[:, window], batch.rtg[:, window])
        logits, memory = model(*inputs, valid, memory)
        window_loss = torch.nn.functional.cross_entropy(logits[valid], batch.actions[:, window][valid])
        optimizer.zero_grad()
        window_loss.backward()
        total += window_loss.item() * int(valid.sum())
        assert gradients.keys() == {name for name, p in model.named_parameters() if p.grad is not None}
        for name, parameter in model.named_parameters():
            if name in gradients:
                torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-6)
        optimizer.step()
    assert float(loss) == pytest.approx(total / int(batch.valid.sum()), rel=1e-5)


# --- gradient accumulation ---


@pytest.mark.parametrize("lengths", [[12, 12, 12, 12, 12, 12, 12], [12, 3, 7, 5, 9, 1, 12], [3, 2, 1, 12, 12, 9, 5]])
@pytest.mark.parametrize("bptt_segments", [-1, 0])
def test_gradient_accumulation_makes_the_same_step(lengths, bptt_segments):
    """Also if the parts have unequal numbers of valid steps, or one has none in a window."""
    results = []
    for accumulate in (1, 3, 100):
        trainer = make_trainer(small_model(), accumulate=accumulate, bptt_segments=bptt_segments, metrics=accuracy)
        seen = gradients_of_steps(trainer)
        results.append((seen, trainer.train_batch(make_batch(lengths))))
    (seen, metrics), *others = results
    for other_seen, other_metrics in others:
        assert len(seen) == len(other_seen) == (3 if bptt_segments == 0 else 1)
        assert [step.keys() for step in seen] == [step.keys() for step in other_seen]
        # After a step the parameters differ by rounding, which Adam amplifies: only the first can be compared.
        for name, gradient in seen[0].items():
            torch.testing.assert_close(gradient, other_seen[0][name], rtol=1e-3, atol=1e-5)
        if len(seen) == 1:
            torch.testing.assert_close(metrics["train_accuracy"], other_metrics["train_accuracy"])
        torch.testing.assert_close(metrics["train_loss"], other_metrics["train_loss"], rtol=1e-3, atol=1e-4)


def test_the_gradient_is_clipped_and_its_unclipped_norm_reported():
    trainer = make_trainer(small_model(), grad_norm_clip=0.01)
    seen = gradients_of_steps(trainer)
    metrics = trainer.train_batch(make_batch([12] * 3))
    assert metrics["grad_norm"] > 0.1
    norm = torch.stack([gradient.square().sum() for gradient in seen[0].values()]).sum().sqrt()
    assert float(norm) == pytest.approx(0.01, rel=1e-3)


def test_the_learning_rate_follows_the_schedule_step_by_step():
    model = small_model()
    trainer = Trainer(model, TrainOptions(learning_rate=0.1, bptt_segments=0), Schedule(4, 4, 4, 0.5))
    rates = []
    trainer.optimizer.register_step_pre_hook(lambda o, a, k: rates.append([g["lr"] for g in o.param_groups]))
    reported = [float(trainer.train_batch(make_batch([12] * 2))["lr"]) for _ in range(3)]
    expected = [0.025, 0.05, 0.075, 0.1, 0.1, 0.0875, 0.075, 0.0625, 0.05]
    assert rates == [pytest.approx([rate] * 2) for rate in expected]
    assert reported == pytest.approx(expected[2::3])


def test_padding_changes_nothing():
    """Padding is in neither loss nor gradient nor metrics."""
    batch = make_batch([12, 5, 1])
    noisy = make_batch([12, 5, 1])
    noisy.observations[~noisy.valid] = 1e4
    noisy.rtg[~noisy.valid] = 1e4
    noisy.actions[~noisy.valid] = 3
    results = []
    for each in (batch, noisy):
        trainer = make_trainer(small_model(), metrics=accuracy)
        results.append((trainer.train_batch(each), parameters(trainer.model)))
    (metrics, after), (noisy_metrics, noisy_after) = results
    torch.testing.assert_close(metrics, noisy_metrics)
    torch.testing.assert_close(after, noisy_after)


def test_the_model_is_trained_with_dropout_and_learns():
    model = small_model(dropout=0.1)
    trainer, batch = make_trainer(model), make_batch([12] * 8)
    model.eval()
    losses = [float(trainer.train_batch(batch)["train_loss"]) for _ in range(40)]
    assert model.training and losses[-1] < 0.8 * losses[0]


# --- validation ---


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
def test_validation_loss_is_the_mean_over_all_valid_steps(spec):
    model = small_model(spec=spec)
    trainer = make_trainer(model, metrics=lambda logits, batch: {"train_first": logits[0, 0, 0]})
    batches = [make_batch([12, 12, 12], spec=spec), make_batch([1], spec=spec, seed=1)]
    result = trainer.validate(iter(batches))
    with torch.no_grad():
        steps, firsts = [], []
        for batch in batches:
            logits, _ = model(batch.observations, batch.actions, batch.rtg, batch.valid)
            wanted = batch.actions[batch.valid]
            if spec.continuous:
                steps.append((logits[batch.valid] - wanted).square().mean(-1))
            else:
                steps.append(torch.nn.functional.cross_entropy(logits[batch.valid], wanted, reduction="none"))
            firsts.append(float(logits[0, 0, 0]))
    assert result["validation_loss"] == pytest.approx(float(torch.cat(steps).mean()), rel=1e-5)
    assert result["validation_loss"] != pytest.approx(float(sum(s.mean() for s in steps) / 2), rel=1e-3)
    assert result["validation_first"] == pytest.approx((3 * firsts[0] + firsts[1]) / 4, rel=1e-5)
    assert result.keys() == {"validation_loss", "validation_first"}


def test_validation_changes_nothing_and_has_no_dropout():
    model = small_model(dropout=0.5)
    trainer, before, state = make_trainer(model), parameters(model), torch.get_rng_state()
    losses = {trainer.validate(iter([make_batch([12] * 3)]))["validation_loss"] for _ in range(3)}
    assert len(losses) == 1 and torch.equal(torch.get_rng_state(), state)
    assert not moved(model, before) and all(p.grad is None for p in model.parameters())


# --- non-finite losses ---


def spoil_reward(batch: Batch, trainer: Trainer) -> None:
    batch.rtg[1, 2 * K] = float("nan")


def spoil_gradient(batch: Batch, trainer: Trainer) -> None:
    trainer.model.head.project.weight.register_hook(lambda gradient: gradient * float("inf"))


@pytest.mark.parametrize("spoil", [spoil_reward, spoil_gradient])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_stops_before_non_finite_values_do_damage(tmp_path, spoil, accumulate):
    model = small_model()
    trainer = make_trainer(model, directory=tmp_path, accumulate=accumulate)
    trainer.train_batch(make_batch([12] * 4))
    before, step, state = parameters(model), trainer.step, str(trainer.optimizer.state_dict())
    batch = make_batch([12] * 4, seed=1)
    spoil(batch, trainer)
    with pytest.raises(TrainingDiverged, match="step 1;.*crash_step_1.json$"):
        trainer.train_batch(batch)
    assert not moved(model, before) and trainer.step == step and str(trainer.optimizer.state_dict()) == state
    assert json.loads((tmp_path / "crash_step_1.json").read_text()) == {"step": 1, "windows": [100, 101, 102, 103]}


def test_divergence_is_reported_without_a_directory():
    trainer = make_trainer(small_model())
    batch = make_batch([12] * 2)
    batch.rtg[0, 0] = float("inf")
    with pytest.raises(UserError, match="not finite at optimizer step 0$"):
        trainer.train_batch(batch)


def test_a_pending_flag_is_read_before_saving():
    """As on a GPU, where a step's flag is read one step later."""
    trainer = make_trainer(small_model())
    trainer._unchecked = (torch.tensor(False), 7, {"segments": 2}, torch.tensor([1]))
    with pytest.raises(TrainingDiverged, match="step 7"):
        trainer.check_finite()
    trainer.check_finite()


# --- state ---


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_training_continues_from_its_state(precision):
    def run(trainer: Trainer, seeds: range) -> None:
        for seed in seeds:
            trainer.train_batch(make_batch([12, 7, 3], seed=seed))

    def make(seed: int) -> Trainer:
        trainer = make_trainer(small_model(dropout=0.2, seed=seed), bptt_segments=0, precision=precision)
        torch.manual_seed(seed)
        return trainer

    whole = make(0)
    run(whole, range(4))
    first = make(0)
    run(first, range(2))
    first.schedule.start_decay(3)
    weights, state = parameters(first.model), first.state_dict()
    torch.rand(100)
    second = make(1)
    second.model.load_state_dict(weights)
    second.load_state_dict(state)
    assert second.schedule.decay_start == 3
    run(second, range(2, 4))
    assert second.step == whole.step == 12 and not moved(second.model, parameters(whole.model))


def test_accuracy_counts_valid_steps_only():
    batch = make_batch([2, 1], steps=3)
    logits = torch.nn.functional.one_hot(batch.actions, 4).float()
    logits[0, 0] = torch.roll(logits[0, 0], 1)
    logits[0, 2] = torch.roll(logits[0, 2], 1)  # padding
    assert float(accuracy(logits, batch)["train_accuracy"].mean) == pytest.approx(2 / 3)


def test_optimizer_steps_of_a_batch():
    cases = {(-1, 90): 1, (0, 90): 3, (0, 91): 4, (1, 90): 2, (2, 90): 1, (0, 30): 1}
    for (bptt_segments, steps), expected in cases.items():
        assert optimizer_steps(TrainOptions(bptt_segments=bptt_segments), 30, steps) == expected


def test_last_steps_ignore_padding_and_earlier_steps():
    """Errors before them or in padding do not count; a shorter trajectory must be right as a whole."""
    lengths = [12, 5, 2, 8, 1]
    batch = make_batch(lengths)
    right = torch.nn.functional.one_hot(batch.actions, 4).float()
    wrong = torch.nn.functional.one_hot((batch.actions + 1) % 4, 4).float()

    def share(*places: tuple[int, int], count: int = 3) -> float:
        logits = right.clone()
        logits[~batch.valid] = wrong[~batch.valid]
        for row, step in places:
            logits[row, step] = wrong[row, step]
        return float(last_steps_right(logits, batch, count))

    assert share() == share((0, 8), (1, 1), (3, 0)) == 1
    for place in ((0, 9), (0, 11), (1, 2), (1, 4), (2, 0), (2, 1), (4, 0)):
        assert share(place) == pytest.approx(0.8), place
    assert share((0, 11), (0, 10), (2, 0)) == pytest.approx(0.6)
    assert share((0, 10), count=1) == 1 and share((0, 11), count=1) == pytest.approx(0.8)


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
@pytest.mark.parametrize("noise", [0.0, 0.5, 1.0])
def test_some_past_actions_are_replaced_by_random_ones(spec, noise, monkeypatch):
    torch.manual_seed(0)
    model = small_model(spec=spec)
    trainer = make_trainer(model, action_noise=noise)
    batch = make_batch([N * K] * 64, spec=spec)
    shown, targets = [], []
    encode = model.encoder.encode_actions
    monkeypatch.setattr(model.encoder, "encode_actions", lambda actions: shown.append(actions) or encode(actions))
    monkeypatch.setattr(
        trainer_module,
        "cloning_loss",
        lambda s, p, actions, v: targets.append(actions) or cloning_loss(s, p, actions, v),
    )
    trainer.train_batch(batch)
    assert torch.equal(torch.cat(targets), batch.actions)
    other = torch.cat(shown, dim=1) != batch.actions
    share = (other.any(-1) if spec.continuous else other).float().mean().item()
    expected = noise if spec.continuous else noise * (1 - 1 / spec.num_actions)
    assert share == pytest.approx(expected, abs=0.07) and (share > 0) == (noise > 0)
    shown.clear()
    trainer.validate(iter([batch]))
    assert torch.equal(torch.cat(shown, dim=1), batch.actions), "as when acting"


def test_labels_are_targets_and_actions_are_inputs(monkeypatch):
    batch = make_batch([N * K] * 4)
    labels = (batch.actions + 1) % VECTOR.num_actions
    shown, targets = [], []
    trainer = make_trainer(small_model(), bptt_segments=0, accumulate=2)
    trainer.model.register_forward_pre_hook(lambda model, args: shown.append(args[1]))

    def recorded(spec, predictions, actions, valid):
        targets.append(actions)
        return cloning_loss(spec, predictions, actions, valid)

    monkeypatch.setattr(trainer_module, "cloning_loss", recorded)
    labelled = replace(batch, labels=labels)
    trainer.train_batch(labelled)
    for seen, expected in ((shown, batch.actions), (targets, labels)):
        rows = [torch.cat(seen[part::2], dim=1) for part in range(2)]  # both parts of each window in turn
        assert len(seen) == 2 * N and torch.equal(torch.cat(rows), expected)
        seen.clear()
    trainer.validate(iter([labelled]))
    assert torch.equal(torch.cat(shown), batch.actions) and torch.equal(torch.cat(targets), labels)


def test_metrics_compare_with_the_targets():
    batch = make_batch([3, 5])
    labels = (batch.actions + 1) % VECTOR.num_actions
    logits = torch.nn.functional.one_hot(labels, VECTOR.num_actions).float()
    for learned, right in ((batch, 0.0), (replace(batch, labels=labels), 1.0)):
        assert accuracy(logits, learned)["train_accuracy"].mean == last_steps_right(logits, learned, 1) == right


def test_trajectories_are_mirrored_at_random():
    spec, mirror, seen = EnvironmentSpec(observation_shape=(2, 36, 36), num_actions=3), (1, 0, 2), []
    batch = make_batch([N * K] * 16, spec=spec)
    batch = replace(batch, labels=(batch.actions + 1) % 3)
    trainer = make_trainer(
        small_model(spec=spec),
        transform=Mirror(mirror),
        metrics=lambda logits, batch: seen.append(batch) or accuracy(logits, batch),
    )
    trainer.train_batch(batch)
    flipped, mapped = batch.observations.flip(-1), torch.tensor(mirror)
    (shown,) = seen
    kinds = set()
    for row in range(16):
        as_it_is = torch.equal(shown.observations[row], batch.observations[row])
        kinds.add(as_it_is)
        assert as_it_is or torch.equal(shown.observations[row], flipped[row])
        for now, before in ((shown.actions, batch.actions), (shown.labels, batch.labels)):
            assert torch.equal(now[row], before[row] if as_it_is else mapped[before[row]])
    assert kinds == {True, False}
