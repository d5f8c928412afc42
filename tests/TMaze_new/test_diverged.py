"""Saved values are finite, written files are JSON, and checkpoints are used or refused in one line."""

import hashlib
import io
import json
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from RATE_model.training.checkpoints import find_checkpoint, load_checkpoint
from RATE_model.training.trainer import Trainer
from tests.interruptions import stopped_after
from tests.tmaze_runs import BATCHES_PER_EPOCH, only_run, train
from TMaze_new.TMaze_new_src import inference_tmaze, train_tmaze


@pytest.fixture(autouse=True)
def without_pictures(monkeypatch):
    monkeypatch.setattr(type(train_tmaze.ENVIRONMENT), "draw_run", lambda *arguments: None)


def refused(capsys, *arguments) -> str:
    """The one-line error of a command that refuses to train."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        train(*arguments)
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    assert stop.value.code == 2 and len(errors) == 1 and errors[0].startswith("error: ")
    return errors[0]


def assert_valid(run: Path) -> None:
    """All JSON files are valid JSON, and all checkpoints are finite."""

    def never(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    for path in run.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=never)
    for line in (run / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=never)
    for path in (run / "checkpoints").glob("step_*"):
        assert all(value.isfinite().all() for value in load_checkpoint(path)[0].values())


@pytest.mark.parametrize("flags", [(), ("--epochs", "1", "--epoch_batches", "1"), ("--epoch_batches", "1")])
def test_overflowing_weights_are_not_saved(tmp_path, capsys, flags):
    """At the first steps, the very last one, and the one before a checkpoint."""
    message = refused(capsys, tmp_path, "--learning_rate", "1e39", "--warmup_steps", "0", *flags)
    assert "not finite" in message and "No checkpoint was saved yet" in message and "lower --learning_rate" in message
    assert find_checkpoint(only_run(tmp_path) / "checkpoints") is None
    assert_valid(only_run(tmp_path))


@pytest.mark.parametrize("tokens", ["0", "1"])
def test_the_advice_names_the_warmup_that_counts(tmp_path, capsys, tokens):
    message = refused(capsys, tmp_path, "--learning_rate", "1e39", "--warmup_steps", "0", "--warmup_tokens", tokens)
    assert ("more --warmup_tokens" if tokens == "1" else "more --warmup_steps") in message


def test_overflowing_optimizer_moments_are_not_saved(tmp_path, capsys, monkeypatch):
    validate = Trainer.validate

    def spoil(trainer, batches):
        result = validate(trainer, batches)
        next(iter(trainer.optimizer.state.values()))["exp_avg_sq"].fill_(float("inf"))
        return result

    monkeypatch.setattr(Trainer, "validate", spoil)
    assert "the state of the optimizer are not finite" in refused(capsys, tmp_path)


def test_nonfinite_validation_loss_sets_exit_code(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Trainer, "validate", lambda *_: {"validation_loss": float("nan")})
    message = refused(capsys, tmp_path)
    assert "the final validation loss is not finite" in message
    run = only_run(tmp_path)
    assert json.loads((run / "eval" / "final.json").read_text())["validation_loss"] is None
    assert_valid(run)
    assert not (run / "checkpoints" / "best").exists()


def forge(path: Path, *, weights=None, state=None) -> None:
    """Replace the content of a checkpoint and update its manifest."""
    files = {"model.safetensors": weights, "training.pt": state}
    manifest = json.loads((path / "manifest.json").read_text())
    for name, content in files.items():
        if content is not None:
            (path / name).write_bytes(content)
            manifest["files"][name] = hashlib.sha256(content).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


def saved(state) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def changed(dictionary: dict, **changes) -> dict:
    """A copy with other values; None leaves a key out."""
    return {name: value for name, value in (dictionary | changes).items() if value is not None}


# Ways to damage the content of an intact checkpoint, and whether the model can still act.
FORGERIES = {
    "noise for weights": (lambda w, s: dict(weights=b"noise"), False),
    "noise for the state": (lambda w, s: dict(state=b"noise"), False),
    "a list for the state": (lambda w, s: dict(state=saved([1, 2])), False),
    "an array for the state": (lambda w, s: dict(state=saved(torch.zeros(3))), False),
    "foreign weights": (lambda w, s: dict(weights=safetensors.torch.save({"a": torch.zeros(2)})), False),
    "one weight more": (lambda w, s: dict(weights=safetensors.torch.save(w | {"a": torch.zeros(2)})), False),
    "infinite weights": (
        lambda w, s: dict(weights=safetensors.torch.save({name: value / 0 for name, value in w.items()})),
        False,
    ),
    "a converted one": (lambda w, s: dict(state=saved({name: s[name] for name in ("config", "spec", "memory")})), True),
    "no optimizer": (lambda w, s: dict(state=saved(changed(s, trainer=changed(s["trainer"], optimizer=None)))), True),
    "another optimizer": (lambda w, s: dict(state=saved(changed(s, trainer=s["trainer"] | {"optimizer": {}}))), True),
    "no random state": (lambda w, s: dict(state=saved(changed(s, trainer=changed(s["trainer"], rng=None)))), True),
    "text for a trainer": (lambda w, s: dict(state=saved(changed(s, trainer="text"))), True),
    "no position": (lambda w, s: dict(state=saved(changed(s, position=None))), True),
    "half a position": (lambda w, s: dict(state=saved(changed(s, position={"epoch": 1}))), True),
    "no curriculum": (lambda w, s: dict(state=saved(changed(s, curriculum={}))), True),
    "no spec": (lambda w, s: dict(state=saved(changed(s, spec=None))), False),
    "a number for a configuration": (lambda w, s: dict(state=saved(changed(s, config=3))), False),
}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stopped")
    with stopped_after(BATCHES_PER_EPOCH + 1):
        train(folder)
    return folder


@pytest.mark.parametrize("name", FORGERIES)
def test_unusable_content_is_refused_in_one_line(stopped, capsys, name):
    spoil, acts = FORGERIES[name]
    run = only_run(stopped)
    path = find_checkpoint(run / "checkpoints")
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    forge(path, **spoil(*load_checkpoint(path)))
    try:
        if acts or name in ("no spec", "a number for a configuration"):
            state = load_checkpoint(path)[1]
            assert isinstance(state, dict)
        if name not in ("no spec", "a number for a configuration"):  # training has its own errors
            assert path.name in refused(capsys, stopped, "--resume", "auto")
        with pytest.raises(SystemExit) as stop:
            inference_tmaze.main(["--checkpoint", str(run), "--lengths", "9", "--episodes", "2", "--device", "cpu"])
            raise SystemExit(0)
        errors = capsys.readouterr().err
        assert stop.value.code == (0 if acts else 2) and errors.count("\n") == (0 if acts else 1)
    finally:
        for file in set(run.rglob("*")) - set(before):
            if file.is_file():
                file.unlink()
        for file, content in before.items():
            file.write_bytes(content)


def test_changed_observations_count_as_other_data(stopped, tmp_path, capsys):
    """The rewards and actions are the same; the observations are not."""
    (data,) = (stopped / "data").glob("*S2_*.h5")
    content = data.read_bytes()
    try:
        (tmp_path / "other.h5").write_bytes(content)
        with h5py.File(tmp_path / "other.h5", "r+") as file:
            del file["checksums"]
            file["observations"][:] = np.roll(file["observations"][:], 1, axis=1)
        os.replace(tmp_path / "other.h5", data)  # not in place: this process may have it open
        assert "other data" in refused(capsys, stopped, "--resume", "auto")
    finally:
        data.write_bytes(content)


def test_an_older_fingerprint_is_accepted(stopped):
    path = find_checkpoint(only_run(stopped) / "checkpoints")
    weights, state = load_checkpoint(path)
    old = state["data"].partition(":")[0]
    assert old and old != state["data"]
    forge(path, state=saved(changed(state, data=old, metrics_digest=None, due=None, flags=None)))
    with stopped_after(1):
        assert train(stopped, "--resume", "auto") == 143


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="names of open files")
def test_output_to_open_file_or_pipe(stopped, tmp_path, capsys):
    arguments = ["--checkpoint", str(only_run(stopped)), "--lengths", "9", "--episodes", "2", "--device", "cpu"]
    with open(tmp_path / "log", "w+") as log:
        print("what was printed before", file=log, flush=True)
        inference_tmaze.main([*arguments, "--output", f"/proc/self/fd/{log.fileno()}"])
        assert (tmp_path / "log").read_text().startswith("what was printed before\n{")
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    inference_tmaze.main([*arguments, "--output", str(tmp_path / "pipe")])
    assert json.loads(os.read(reader, 10_000))["episodes"] == 2
    os.close(reader)


def test_diverged_training_continues_with_the_suggested_flags(stopped, tmp_path, capsys):
    """Under another name. Changes are printed and recorded, and the first run stays unchanged."""
    run = only_run(stopped)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    advised = ["--learning_rate", "0.0001", "--warmup_steps", "5", "--resume", str(run), "--text", "calmer"]
    capsys.readouterr()
    assert train(stopped, *advised, "--output_dir", str(tmp_path / "runs")) == 0
    said = capsys.readouterr().out
    new = only_run(tmp_path)
    (start,) = json.loads((new / "environment.json").read_text())["starts"]
    changes = ["learning_rate was 0.003, now 0.0001", "warmup_steps was 2, now 5"]
    assert start["changed"] == changes and start["resumed_from"] == str(run) and all(map(said.__contains__, changes))
    assert "learning_rate: 0.0001" in (new / "config.yaml").read_text()
    rates = {line["step"]: line["lr"] for line in map(json.loads, open(new / "metrics.jsonl")) if "lr" in line}
    assert rates[3] > 0.001 and 0 < rates[max(rates)] <= 0.0001
    assert before == {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    message = refused(capsys, stopped, "--d_model", "24", *advised, "--output_dir", str(tmp_path / "more"))
    assert "d_model was 16, now 24" in message and "learning_rate" not in message
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text(""),
        lambda path: path.write_bytes(b"\xff\x00: ["),
        lambda path: path.write_text(path.read_text().replace("d_model: 16", "d_model: 17")),
    ],
    ids=["missing", "empty", "damaged", "changed"],
)
def test_config_is_restored_from_checkpoint(stopped, tmp_path, capsys, damage):
    shutil.copytree(stopped / "runs", tmp_path / "runs")
    config = only_run(tmp_path) / "config.yaml"
    content = config.read_text()
    damage(config)
    readable = config.exists() and config.read_bytes()[:1].isalpha()
    assert inference_tmaze.main(["--checkpoint", str(config.parent), "--lengths", "9", "--episodes", "2"]) is None
    assert capsys.readouterr().err.count(f"{config} is missing or damaged; reading the flags") == (not readable)
    with stopped_after(1):
        assert train(stopped, "--resume", "auto", "--output_dir", str(tmp_path / "runs")) == 143
    said = capsys.readouterr().err
    assert said.count("warning: ") == 1 and "using the configuration in" in said and str(config) in said

    def flags(text: str) -> list[str]:
        return [line for line in text.splitlines() if not line.startswith("output_dir")]

    assert flags(config.read_text()) == flags(content)
