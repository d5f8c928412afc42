"""Learning-rate schedules and weight decay."""

import math
from dataclasses import replace

import pytest
import torch

from RATE_model.spec import EnvironmentSpec
from RATE_model.training.optimization import Schedule, decay_over, make_optimizer
from tests.small_models import CONTINUOUS, VECTOR, small_model

IMAGE = EnvironmentSpec(observation_shape=(2, 36, 36), num_actions=3)


def course(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.factor(step) for step in range(steps)]


@pytest.mark.parametrize("shape", ["linear", "cosine"])
@pytest.mark.parametrize(("total", "warmup"), [(50, 10), (50, 0), (4, 1), (3, 1)])
def test_the_rate_warms_up_and_decays_to_the_end_factor(shape, total, warmup):
    schedule = decay_over(total, warmup_steps=warmup, end_factor=0.1, shape=shape)
    factors = course(schedule, total + 20)
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert max(factors) == 1.0
    assert factors[total - 1] == pytest.approx(0.1)
    assert factors[total:] == pytest.approx([0.1] * 20)  # more steps than were planned
    behind = factors[max(warmup - 1, 0) :]
    assert all(later <= earlier for earlier, later in zip(behind, behind[1:], strict=False))


def test_decay_shapes():
    linear = course(decay_over(111, warmup_steps=10, end_factor=0.2, shape="linear"), 111)
    cosine = course(decay_over(111, warmup_steps=10, end_factor=0.2, shape="cosine"), 111)
    assert linear[10] == cosine[10] == 1.0
    assert linear[60] == pytest.approx(0.6) and cosine[60] == pytest.approx(0.6)
    assert linear[35] == pytest.approx(0.8)
    assert cosine[35] == pytest.approx(0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi / 4)))
    constant = course(decay_over(111, warmup_steps=10, end_factor=0.2, shape="constant"), 111)
    assert constant[:10] == linear[:10] and set(constant[10:]) == {1.0}


def test_run_shorter_than_warm_up_ends_at_the_peak_rate():
    factors = course(decay_over(20, warmup_steps=100, end_factor=0.1, shape="linear"), 20)
    assert factors == pytest.approx([(step + 1) / 20 for step in range(20)])


def test_annealing_starts_once_on_request():
    schedule = Schedule(5, None, 10, 0.0)
    assert course(schedule, 100)[5:] == [1.0] * 95
    schedule.start_decay(40)
    schedule.start_decay(45)
    assert course(schedule, 60)[38:] == pytest.approx([1, 1] + [1 - step / 10 for step in range(10)] + [0] * 10)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_annealing_during_the_warm_up_ends_the_rise(shape):
    schedule = Schedule(100, None, 50, 0.0, shape)
    schedule.start_decay(30)
    factors = course(schedule, 90)
    assert factors[30] == pytest.approx(0.31)
    assert all(later <= earlier for earlier, later in zip(factors[30:], factors[31:], strict=False))
    assert factors[79] > 0 and factors[80:] == [0.0] * 10


VALVE = {f"memory.valve.{name}.weight" for name in ("query", "key", "value", "output")}


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS, IMAGE], ids=["vector", "continuous", "image"])
def test_only_matrices_decay(spec):
    model = small_model(spec=spec, arch="GTrXL")
    optimizer = make_optimizer(model, learning_rate=1e-3, betas=(0.8, 0.9), weight_decay=0.3)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = {group["weight_decay"]: {names[id(p)] for p in group["params"]} for group in optimizer.param_groups}
    assert groups.keys() == {0.3, 0.0}
    assert groups[0.3] | groups[0.0] == set(names.values()) and not groups[0.3] & groups[0.0]
    decayed, kept = groups[0.3], groups[0.0]
    assert decayed >= VALVE | {"head.project.weight"}
    undecayed = ("content_bias", "position_bias", "memory_tokens", "layers.0.norm1.weight", "layers.1.gate1.bias")
    assert {f"memory.{name}" for name in undecayed} <= kept
    assert all(name.endswith("weight") for name in decayed) and not any("norm" in name for name in decayed)
    embedding = {name for name in names.values() if name.startswith("encoder.action") and name.endswith("weight")}
    assert embedding and (embedding <= decayed if spec.continuous else embedding <= kept)
    if spec.is_image:
        assert sum("convolutions" in name for name in decayed) == 3
    assert all(group["lr"] == 1e-3 and group["betas"] == (0.8, 0.9) for group in optimizer.param_groups)


def test_decay_shrinks_only_matrices_without_a_gradient():
    model = small_model(spec=replace(VECTOR))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = make_optimizer(model, learning_rate=0.5, betas=(0.9, 0.95), weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    torch.testing.assert_close(after["memory.valve.query.weight"], before["memory.valve.query.weight"] * 0.95)
    assert torch.equal(after["memory.memory_tokens"], before["memory.memory_tokens"])
