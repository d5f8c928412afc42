"""Probes, copying check and imitation gap, on hand-made numbers and on a small run."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from RATE_model.data.batch import Batch
from RATE_model.diagnose import recording as module
from RATE_model.diagnose.__main__ import _print_bins, main
from RATE_model.diagnose.imitation import by_step, by_time_since, copying
from RATE_model.diagnose.probes import Probe, Sample, baseline
from RATE_model.diagnose.recording import Recording, record, whole_episodes_of
from RATE_model.diagnose.retention import borders
from RATE_model.environments.find import environment_of
from RATE_model.objectives.privileged import Privileged
from RATE_model.own.api import train
from RATE_model.own.dataset import Dataset
from RATE_model.plots.diagnosis import diagnosis_figure
from tests.RATE_model.own.toys import episodes
from tests.RATE_model.training.test_stored_states import LENGTHS, make_agent, make_data
from tests.small_models import K, random_inputs

# --- probes ---


def samples(width: int, count: int = 300) -> tuple[Sample, Sample]:
    """Features, and an array that is linear in two of them; one of its numbers is sometimes unknown."""
    rng, weights = np.random.default_rng(0), np.zeros((width, 2))
    weights[0, 0], weights[1, 1] = 3.0, -1.0
    features = rng.normal(size=(2 * count, width))
    rows = (features @ weights + 5).astype(np.float32)
    rows[::7, 1] = np.nan
    both = Sample(features.astype(np.float32), rows, np.arange(2 * count) // 10)
    return both[np.arange(count)], both[np.arange(count, 2 * count)]


def test_a_probe_reads_what_is_linear():
    training, held_out = samples(5)
    kind = Privileged.of("x", training.rows, flag="probes")
    score = Probe(kind, training).score(held_out)
    assert float(score.value) > 0.99 and score.low <= score.value <= score.high
    noise = replace(held_out, features=held_out.features[::-1].copy())
    assert float(Probe(kind, training).score(noise).value) < 0.1


def test_number_is_probed_where_others_are_unknown():
    """Like balls that are seen one after another, some never in the same episode."""
    training, held_out = samples(5)
    for each in (training, held_out):
        each.rows[: len(each.rows) // 2, 0] = np.nan
        each.rows[len(each.rows) // 2 :, 1] = np.nan
    score = Probe(Privileged.of("x", training.rows, flag="probes"), training).score(held_out)
    assert float(score.value) > 0.99


def test_a_probe_of_many_features_is_regularised():
    """More features than rows: solved in the space of rows, and the penalty is chosen."""
    training, held_out = samples(400, 200)
    score = Probe(Privileged.of("x", training.rows, flag="probes"), training).score(held_out)
    assert 0.1 < float(score.value) < 1


def test_what_cannot_be_scored_has_no_score():
    training, held_out = samples(5)
    probe = Probe(Privileged.of("x", training.rows, flag="probes"), training)
    alone = probe.score(replace(held_out, episode=np.zeros_like(held_out.episode)))
    assert float(alone.value) > 0.99 and np.isnan(alone.low) and np.isnan(alone.high), "one episode: no interval"
    assert np.isnan(probe.score(replace(held_out, rows=np.full_like(held_out.rows, np.nan))).value)


def test_classes_are_scored_by_accuracy():
    rng = np.random.default_rng(0)
    classes = rng.choice([2, 5, 9], size=(400, 1), p=[0.6, 0.2, 0.2])
    features = np.eye(10)[classes[:, 0]] + rng.normal(scale=0.1, size=(400, 10))
    both = Sample(features.astype(np.float32), classes, np.arange(400) // 10)
    training, held_out = both[np.arange(200)], both[np.arange(200, 400)]
    kind = Privileged.of("x", training.rows, flag="probes")
    assert float(Probe(kind, training).score(held_out).value) == 1
    assert baseline(kind, training.rows, held_out.rows) == pytest.approx(np.mean(held_out.rows == 2))
    unknown = np.concatenate([held_out.rows, np.full((100, 1), 7)])  # a class that does not occur in training
    assert baseline(kind, training.rows, unknown) == pytest.approx(np.mean(held_out.rows == 2))


# --- recording ---


def acted(agent, data, slide: int = 1) -> np.ndarray:
    """Logits of an actor that is shown the steps of the data, (S, A)."""
    found = []
    for row in range(len(data)):
        batch = data.__getitems__([row])
        actor = agent.actor(1, target_return=float(batch.rtg[0, 0]), slide=slide)
        rewards = -np.diff(batch.rtg[0].numpy(), prepend=batch.rtg[0, 0].item())
        for step in range(int(batch.lengths)):
            found.append(actor.observe(batch.observations[:, step].numpy(), rewards[[step]])[0].numpy())
            actor.take(batch.actions[:, step].numpy())
    return np.stack(found)


@pytest.mark.parametrize("name", ["RATE", "TrXL", "DT", "DTXL", "LSTM", "MLP"])
def test_recording_equals_acting(tmp_path, monkeypatch, name):
    agent = make_agent(name).eval()
    data = whole_episodes_of(make_data(tmp_path).with_infos(["phase"]), episodes=9)
    assert data.windows[:, 2].tolist() == LENGTHS
    whole = record(agent, data)
    monkeypatch.setattr(module, "CHUNK", K)
    monkeypatch.setattr(module, "_BATCH_BYTES", 1)  # an episode at a time
    pieces = record(agent, data)
    expected = acted(agent, data)
    for found in (whole, pieces):
        np.testing.assert_allclose(found.predictions, expected, atol=1e-5)
        assert np.bincount(found.episode).tolist() == LENGTHS and found.episodes == len(LENGTHS)
        assert found.infos["phase"][:, 0].tolist() == (found.step % 3).tolist()
    if not agent.memory.has_memory:
        assert whole.state is None and whole.knocked_out is None
        return
    assert whole.state is not None and pieces.state is not None and whole.knocked_out is not None
    # A border before every segment but the first, where an episode has a step after it.
    assert sorted(whole.before.tolist()) == sorted(pieces.before.tolist())
    segment = agent.memory.segment
    assert set(whole.step[whole.before] % segment) == {segment - 1}
    assert len(whole.before) == sum((steps - 1) // segment for steps in LENGTHS)
    order, other = np.argsort(whole.before), np.argsort(pieces.before)
    np.testing.assert_allclose(whole.state[order], pieces.state[other], atol=1e-5)
    first = whole.step < segment
    np.testing.assert_allclose(whole.knocked_out[first], whole.hidden[first], atol=1e-5)
    np.testing.assert_allclose(whole.forgetful_errors[first], whole.errors[first], atol=1e-5)
    assert np.abs(whole.forgetful - whole.predictions)[~first].max() > 1e-4
    assert np.abs(whole.knocked_out - whole.hidden)[~first].max() > 1e-3


@pytest.mark.parametrize("slide", [1, 5, 8])
def test_borders_of_a_sliding_window_are_those_of_acting(slide):
    agent, found = make_agent("DTXL", mem_len=6).eval(), []
    observations, actions, rtg = random_inputs(2, 60)
    valid = torch.ones(2, 60, dtype=torch.bool)
    batch = Batch(observations, actions, rtg, valid, torch.tensor([60, 60]), torch.arange(2))
    with torch.inference_mode():
        module._step_by_step(agent, batch, lambda step, memory: found.append(step) or memory, slide)
    assert found == list(borders(agent.memory, slide, 60)) and len(found) > 2


def test_recording_slides_as_acting_does(tmp_path):
    agent = make_agent("DT").eval()
    data = whole_episodes_of(make_data(tmp_path), episodes=9)
    slid = record(agent, data, slide=2).predictions
    np.testing.assert_allclose(slid, acted(agent, data, slide=2), atol=1e-5)
    assert np.abs(slid - record(agent, data).predictions).max() > 1e-3


# --- copying and imitation ---


def by_hand(**changes) -> Recording:
    """Two episodes of four and two steps."""
    nothing = np.zeros((6, 1), dtype=np.float32)
    targets = np.array([1, 1, 0, 0, 1, 0])
    predictions = np.eye(2, dtype=np.float32)[[1, 1, 1, 0, 1, 1]]
    return Recording(
        **dict(
            episode=np.array([0, 0, 0, 0, 1, 1]), step=np.array([0, 1, 2, 3, 0, 1]), hidden=nothing,
            observation=nothing, infos={"event": np.array([[0], [1], [0], [0], [0], [0]])}, targets=targets,
            actions=targets, predictions=predictions, exchanged=predictions, errors=np.arange(6, dtype=np.float32),
            exchanged_errors=np.ones(6, dtype=np.float32), before=np.zeros(0, dtype=np.int64),
        )
        | changes
    )  # fmt: skip


def test_copying_differs_from_knowing():
    """Steps 1 to 3 of the first episode and step 1 of the second; the action changes at two of the four."""
    found = copying(by_hand())
    assert found["steps"] == 4 and found["repeats"] == 0.5
    assert found["model"] == {"loss": 2.75, "accuracy": 0.5, "where_it_repeats": 1.0, "where_it_changes": 0.0}
    assert found["copying_the_last_action"]["accuracy"] == 0.5 and found["copies"] == 1.0
    assert found["past_actions_exchanged"]["loss"] == 1 and "memory_knocked_out" not in found


def test_predictions_without_memory_show_what_it_is_worth():
    right = np.eye(2, dtype=np.float32)[[1, 1, 0, 0, 1, 0]]
    found = copying(by_hand(predictions=right, forgetful=right[::-1], forgetful_errors=np.full(6, 3, dtype=np.float32)))
    assert found["model"]["accuracy"] == 1
    assert found["memory_knocked_out"] == {"loss": 3, "accuracy": 0.75, "where_it_repeats": 1, "where_it_changes": 0.5}


def test_continuous_actions_are_compared_by_their_error():
    actions = np.array([[0.0], [0.0], [1.0], [1.0], [0.5], [0.0]], dtype=np.float32)
    found = copying(by_hand(targets=actions, actions=actions, predictions=actions, exchanged=actions))
    assert found["copying_the_last_action"] == {"loss": pytest.approx((1 + 0.25) / 4)} and found["repeats"] == 0.5


def test_bins_do_not_depend_on_the_longest_episode():
    """Otherwise the last ones of training and of held-out episodes would not be compared."""
    step = np.array([0, 1, 2, 3, 4, 5])
    longer = by_hand(episode=np.zeros(6, dtype=np.int64), step=step)
    assert [(each["from"], each["to"]) for each in by_step(longer)] == [(1, 1), (2, 2), (3, 4), (5, 8)]


def test_tables_and_pictures_show_what_only_one_side_has(capsys):
    def part(*bins):
        return [{"from": a, "to": b, "steps": 1, "loss": float(b), "accuracy": None} for a, b in bins]

    sides = {"training": part((1, 1), (3, 4)), "held_out": part((2, 2), (3, 4))}
    _print_bins(sides)
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]] == ["1", "2", "3"]
    (axes,) = diagnosis_figure({"probes": {}, "by_step": sides}).axes
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0, 2], [1, 2]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "2", "3-4"]


def test_imitation_is_measured_by_step_and_since_an_event():
    steps = [(each["from"], each["to"], each["steps"], each["loss"]) for each in by_step(by_hand())]
    assert steps == [(1, 1, 2, 2.0), (2, 2, 2, 3.0), (3, 4, 2, 2.5)]
    since = [(each["from"], each["to"], each["steps"]) for each in by_time_since(by_hand(), "event")]
    assert since == [(0, 0, 1), (1, 1, 1), (2, 2, 1)]  # nothing of the second episode, which has no event


# --- the command ---


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Path]:
    """A run on its own data, and that data."""
    folder = tmp_path_factory.mktemp("own")
    made = episodes(20)
    for episode in made:
        episode["infos"] = {"bit": np.full(4, episode["observations"][0, 0] > 0), "seed": np.arange(4)}
    data = Dataset.from_episodes(made).to_hdf5(folder / "data.h5")
    torch.set_num_threads(1)
    flags = {"context_length": 2, "segments": 2, "epochs": 2, "d_model": 16, "batch_size": 8}
    return train(data, memory="LSTM", output_dir=folder / "run", **flags).directory, data


def test_a_run_is_diagnosed(run, capsys):
    directory, data = run
    main([str(directory), "--since", "infos/bit", "--train", f"data='{data}'", "--steps", str(2**70)])
    found = json.loads((directory / "eval" / "diagnosis.json").read_text())
    assert list(found["probes"]) == ["bit"] and found["probes"]["bit"]["measure"] == "accuracy"
    assert {"hidden state", "memory at borders", "memory knocked out"} <= found["probes"]["bit"]["scores"].keys()
    assert found["episodes"] == {"training": 18, "held_out": 2} and "by_time_since" in found
    assert (directory / "plots" / "diagnosis.png").stat().st_size > 1000
    assert "copying: the target action" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--probes", "infos/nothing"], "--probes infos/nothing: .* it has infos/bit .one number., infos/seed"),
        (["--probes", "bit"], "--probes bit: give arrays of the data"),
        (["--since", "bit"], "--since bit"),
        (["--episodes", "1"], "--episodes 1"),
        (["--train", "data"], "--train data: write flag=value"),
        (
            ["--train", "model_mode=MLP"],
            "--train model_mode: the run is examined as it was trained; --train only chooses the data",
        ),
        (["--train", "target_return=7"], "--train target_return: .*for example with data=FILE"),
        (["--train", "learning_rate=1"], "--train learning_rate: the run is examined as it was trained"),
        (["--train", "config=other.yaml"], "--train config: the run is examined as it was trained"),
        (["--train", "traning_share=0.5"], "did you mean"),
    ],
)
def test_wrong_arguments_are_reported(run, capsys, flags, message):
    with pytest.raises(SystemExit):
        main([str(run[0]), "--train", f"data={run[1]}", *flags])
    assert re.search(message, capsys.readouterr().err)


def test_an_array_that_cannot_be_probed_is_named_and_left_out(run, capsys):
    made = episodes(20)
    for episode in made:
        episode["infos"] = {"bit": np.full(4, episode["observations"][0, 0] > 0), "huge": np.full(4, 1e299)}
    data = Dataset.from_episodes(made).to_hdf5(run[1].with_name("huge.h5"))
    main([str(run[0]), "--train", f"data={data}", "--output", str(run[1].with_name("out"))])
    said = capsys.readouterr().out
    assert re.search("note: not probed: .*'infos/huge' has 1e.299", said) and "infos/bit" in said
    with pytest.raises(SystemExit):
        main([str(run[0]), "--train", f"data={data}", "--probes", "infos/huge"])


def test_other_data_is_loaded_again(run):
    """The spec of a user's environment follows from its data, not from that of the previous run."""
    own = environment_of(run[0])
    for size in (2, 5):
        data = Dataset.from_episodes([each | {"observations": np.ones((4, size))} for each in episodes(4)])
        path = data.to_hdf5(run[1].with_name(f"{size}.h5"))
        own.read_config(["--config", str(run[0] / "config.yaml"), "--data", str(path)])
        assert own.spec({}).observation_shape == (size,)
