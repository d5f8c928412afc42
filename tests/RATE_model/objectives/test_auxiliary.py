"""Auxiliary objectives: their effect on memory, on action learning, and resuming."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from RATE_model.acting.actor import Actor
from RATE_model.agent import Agent
from RATE_model.cli.settings import TrainOptions
from RATE_model.data.batch import Batch
from RATE_model.data.dataset import WindowDataset
from RATE_model.data.mirror import Mirror
from RATE_model.errors import UserError
from RATE_model.objectives.auxiliary import Auxiliary, check_transform
from RATE_model.objectives.privileged import Privileged, with_infos
from RATE_model.training.optimization import Schedule
from RATE_model.training.trainer import Trainer
from tests.RATE_model.training.test_stored_states import make_data
from tests.small_models import VECTOR, K, small_model

NAMES = ("next_latent", "return", "infos/place", "infos/phase")


@pytest.fixture
def data(tmp_path) -> WindowDataset:
    return make_data(tmp_path).with_infos(["place", "phase"])


def make_trainer(data: WindowDataset, names=NAMES, *, rate: float = 1e-2, seed: int = 0, **options) -> Trainer:
    model = small_model("RATE", seed=seed, mem_len=0)
    options = TrainOptions(aux=names, learning_rate=rate, **options)
    auxiliary = Auxiliary.of(options.aux, options.aux_weight, model, data) if names else None
    return Trainer(model, options, Schedule(0, None, 0, 1.0), auxiliary=auxiliary)


def whole(data: WindowDataset) -> Batch:
    return data.__getitems__(range(len(data)))


def parameters(module: torch.nn.Module | None) -> dict[str, torch.Tensor]:
    assert module is not None
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_heads_begin_with_the_mean_of_the_data(data):
    metrics = make_trainer(data, rate=1e-9).train_batch(data.__getitems__([len(data) - 1]))  # a whole short episode
    assert metrics["train_aux_phase"] == pytest.approx(math.log(3), rel=1e-5)
    everything = with_infos(data.with_windows(np.array([[0, 0, data.files[0].num_steps]]), size=100), ["place"],
                            flag="aux")  # fmt: skip
    metrics = make_trainer(everything, ("infos/place", "return"), rate=1e-9).train_batch(everything[0])
    assert metrics["train_aux_place"] == pytest.approx(1, rel=1e-4)
    assert metrics["train_aux_return"] == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_auxiliary_losses_train_memory(data, name, monkeypatch):
    """Without the action loss, gradients of a late window's prediction reach the encoder and the valve."""
    monkeypatch.setattr("RATE_model.training.trainer.cloning_loss", lambda spec, logits, *_: 0 * logits.sum())
    trainer = make_trainer(data, (name,), weight_decay=0.0)
    trainer.train_batch(whole(data))  # heads begin at zero
    before = parameters(trainer.model)
    trainer.train_batch(whole(data))
    moved = {each for each, value in parameters(trainer.model).items() if not torch.equal(value, before[each])}
    assert {"encoder.observation.weight", "memory.memory_tokens"} <= moved
    assert any(each.startswith("memory.valve") for each in moved) and "head.project.weight" not in moved


def test_objectives_are_learned(data):
    trainer = make_trainer(data, ("infos/phase",))
    first, *_, last = [float(trainer.train_batch(whole(data))["train_aux_phase"]) for _ in range(40)]
    assert last < 0.7 * first


def test_heads_do_not_change_random_draws(data):
    """Heads do not use torch's global generator, which dropout and noise use."""
    states = []
    for names in ((), NAMES):
        make_trainer(data, names)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


@pytest.mark.parametrize("options", [{}, {"bptt_segments": 0}, {"burn_in": K}])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(data, options):
    results = []
    for accumulate in (1, 3):
        trainer = make_trainer(data, accumulate=accumulate, rate=1e-3, **options)
        metrics = trainer.train_batch(whole(data))
        results.append((metrics, parameters(trainer.model), parameters(trainer.auxiliary)))
    (metrics, *modules), (parts, *others) = results
    for name in metrics:
        assert float(metrics[name]) == pytest.approx(float(parts[name]), rel=1e-4), name
    for module, other in zip(modules, others, strict=True):
        for name, value in module.items():
            torch.testing.assert_close(value, other[name], rtol=1e-3, atol=1e-5, msg=name)


def test_resumed_training_is_bit_exact(data):
    trainer = make_trainer(data, bptt_segments=0)
    trainer.train_batch(whole(data))
    weights, state = parameters(trainer.model), trainer.state_dict()
    state = torch.load(_saved(state), weights_only=True)
    expected = trainer.train_batch(whole(data))
    other = make_trainer(data, bptt_segments=0, seed=1)
    other.model.load_state_dict(weights)
    other.load_state_dict(state)
    assert {name: float(value) for name, value in other.train_batch(whole(data)).items()} == {
        name: float(value) for name, value in expected.items()
    }
    assert all(torch.equal(value, parameters(trainer.auxiliary)[name]) for name, value in
               parameters(other.auxiliary).items())  # fmt: skip


def _saved(state):
    import io

    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return buffer


def test_validation_measures_objectives(data):
    found = make_trainer(data).validate(iter([whole(data)]))
    assert {f"validation_aux_{name.removeprefix('infos/')}" for name in NAMES} <= set(found)


def test_unknown_targets_have_no_loss():
    numbers = Privileged.of("x", np.array([[0.0], [2.0], [np.nan]], dtype=np.float32), flag="aux")
    rows = torch.tensor([[0.0], [float("nan")], [float("inf")]])
    assert numbers.scores(torch.zeros(3, 1), rows).errors.tolist() == [[1.0], [0.0], [0.0]]
    assert numbers.inputs(rows).tolist() == [[-1.0], [0.0], [0.0]]
    classes = Privileged.of("x", np.array([[3], [7]]), flag="aux")
    found = classes.scores(torch.zeros(3, 2), torch.tensor([[7], [5], [9]]))
    assert found.known.tolist() == [[True], [False], [False]] and found.errors[1:].sum() == 0
    assert classes.inputs(torch.tensor([[7], [5]])).tolist() == [[0, 1], [0, 0]]


def refusals(data: WindowDataset) -> dict[str, Callable[[], object]]:
    seeds = np.arange(1000)[:, None]
    return {
        "--aux infos/nothing": lambda: with_infos(data, ["nothing"], flag="aux"),
        "infos/phase .one number., infos/place .2.": lambda: with_infos(data, ["nothing"], flag="aux"),
        "--aux infos/seed: has 1000 different": lambda: Privileged.of("seed", seeds, flag="aux"),
        "--aux velocity": TrainOptions(aux=("return,velocity",)).validate,
        "twice": TrainOptions(aux=("return", "return")).validate,
        "3 weights for 2": TrainOptions(aux=("return,next_latent",), aux_weight=(1, 2, 3)).validate,
        "--aux_weight nan": TrainOptions(aux=("return",), aux_weight=(math.nan,)).validate,
        "--aux_weight 1e.39": TrainOptions(aux=("return",), aux_weight=(1e39,)).validate,
        "has no effect without --aux": TrainOptions(aux_weight=(3.0,)).validate,
        "--oracle phase": TrainOptions(oracle=("phase",)).validate,
        "correct in both: infos/phase": lambda: check_transform(["infos/place"], Mirror((0,), ("phase",)), flag="aux"),
    }


@pytest.mark.parametrize("message", refusals(None))  # type: ignore[arg-type]
def test_wrong_objectives_are_named(data, message):
    with pytest.raises(UserError, match=message):
        refusals(data)[message]()


def test_mirror_invariant_arrays_are_allowed():
    check_transform(["infos/phase", "return"], Mirror((0,), ("phase",)), flag="aux")


def test_mirror_changes_the_sign_of_left_and_right(data):
    mirror = Mirror((0, 2, 1, 3), ("phase",), {"place": (1.0, -1.0)})
    check_transform(["infos/phase", "infos/place"], mirror, flag="aux")
    batch = whole(data)
    assert batch.infos is not None
    torch.manual_seed(0)
    turned = mirror(batch)
    assert turned.infos is not None and turned.variants is not None and len(set(turned.variants.tolist())) == 2
    for row, variant in enumerate(turned.variants.tolist()):
        factors = torch.tensor([1.0, -1.0 if variant else 1.0])
        torch.testing.assert_close(turned.infos["place"][row], batch.infos["place"][row] * factors)
    assert torch.equal(turned.infos["phase"], batch.infos["phase"])


# --- oracles ---


def make_oracle(data: WindowDataset) -> Agent:
    seen = [Privileged.of(name, data.info(name), flag="oracle") for name in ("place", "phase")]
    model = small_model("RMT", spec=replace(VECTOR, oracle=tuple(each.kind for each in seen)))
    for array, learned in zip(model.encoder.oracle.arrays, seen, strict=True):
        array.load_state_dict(learned.state_dict())
    return model


def test_oracle_uses_its_arrays(data):
    model, batch = make_oracle(data), whole(data)
    assert batch.infos is not None
    inputs = (batch.observations, batch.actions, batch.rtg, batch.valid)
    logits, _ = model(*inputs, infos=batch.infos)
    other, _ = model(*inputs, infos={**batch.infos, "phase": (batch.infos["phase"] + 1) % 3})
    assert (logits - other)[batch.valid].abs().max() > 1e-3
    pieces, _ = model(*inputs, infos=batch.infos, borders=[K, 2 * K])
    torch.testing.assert_close(pieces[batch.valid], logits[batch.valid])


def test_an_oracle_does_not_play_untold(data):
    actor = Actor(make_oracle(data), 1, 0.0)
    with pytest.raises(UserError, match="oracle.*place, phase"):
        actor.act(np.zeros((1, *VECTOR.observation_shape), dtype=np.float32))
