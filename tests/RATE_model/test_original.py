"""python -m RATE_model.original: published checkpoints become checkpoints of this project."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from RATE_model import original
from RATE_model.memories.rate.config import ModelConfig
from RATE_model.memories.rate.model import RATE
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from tests import reference

ROOT = Path(__file__).parents[2]


def published(path: Path, *, wrap: str | None = None, prefix: str = "", **meta) -> Path:
    """A made-up checkpoint as the published code saves them, unused parameters included."""
    weights = reference.random_weights(reference.make_meta(**meta), 0)
    weights["embed_timestep.weight"] = torch.zeros(1000, 16)
    weights["embed_ln.weight"] = torch.ones(16)
    weights["crit.out_layers.0.weight"] = torch.zeros(100, 16)
    state = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    return path


def convert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """The exit status of the command."""
    monkeypatch.setattr(sys, "argv", ["original", *map(str, arguments)])
    try:
        original.main()
    except SystemExit as stop:
        return stop.code
    return 0


def rebuilt(directory: Path) -> RATE:
    """The model of a converted checkpoint, from what the checkpoint says of itself."""
    state, training = load_checkpoint(find_checkpoint(directory))
    model = RATE(ModelConfig(**training["config"]), EnvironmentSpec(**training["spec"]))
    model.load_state_dict(state)
    return model.eval()


CASES = {
    "tmaze": (dict(), ["--variant", "tmaze", "--n_head_ca", 2]),
    "tmaze, cache": (
        dict(mem_len=20, mrv_act="elu"),
        ["--variant", "tmaze", "--n_head_ca", 2, "--mem_len", 20, "--mrv_act", "elu"],
    ),
    "doom": (dict(env="doom", n_head_ca=0, batch=1), ["--variant", "doom"]),
    "gtrxl": (dict(arch_mode="GTrXL", n_head_ca=4), ["--variant", "tmaze", "--n_head_ca", 4, "--arch_mode", "GTrXL"]),
    "mujoco": (dict(env="mujoco", skip_dec_ffn=True), ["--variant", "mujoco", "--n_head_ca", 2]),
    "dt": (
        dict(num_mem_tokens=0, n_head_ca=0, segment_length=12, num_segments=1),
        ["--variant", "tmaze", "--sliding"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("meta", "flags"), CASES.values(), ids=CASES.keys())
def test_a_converted_checkpoint_computes_the_same(tmp_path, monkeypatch, meta, flags):
    meta = reference.make_meta(**meta)
    checkpoint = published(tmp_path / "model.pth", **meta)
    output = tmp_path / "converted"
    arguments = [checkpoint, "--output", output, "--context_length", meta["segment_length"], *flags]
    assert convert(monkeypatch, *arguments) == 0
    model = rebuilt(output)
    assert model.config.sliding == ("--sliding" in flags)
    observations, actions, rtg = reference.random_data(meta, 1)
    scaled = observations.float() / 255 if observations.dtype == torch.uint8 else observations
    expected = reference.trajectory(reference.random_weights(meta, 0), meta, scaled, actions, rtg)
    actions = actions if model.spec.continuous else actions.squeeze(-1)
    with torch.no_grad():
        logits, memory = model(observations, actions, rtg.squeeze(-1), torch.ones(rtg.shape[:2], dtype=torch.bool))
    assert (logits - torch.cat([segment.logits for segment in expected], dim=1)).abs().max() < 1e-5
    if memory.tokens is not None:
        assert (memory.tokens - expected[-1].memory).abs().max() < 1e-5


@pytest.mark.parametrize("wrap", ["model_state_dict", "state_dict", None])
def test_wrapped_and_parallel_checkpoints_are_read(tmp_path, monkeypatch, wrap):
    checkpoint = published(tmp_path / "model.pth", wrap=wrap, prefix="module.")
    arguments = ["--output", tmp_path / "out", "--context_length", 4, "--variant", "tmaze", "--n_head_ca", 2]
    assert convert(monkeypatch, checkpoint, *arguments) == 0
    weights = reference.random_weights(reference.make_meta(), 0)
    assert torch.equal(rebuilt(tmp_path / "out").memory_tokens, weights["mem_tokens"].squeeze(1))


def test_the_command_runs(tmp_path):
    command = [sys.executable, "-m", "RATE_model.original", str(published(tmp_path / "model.pth"))]
    command += ["--variant", "tmaze", "--context_length", "4", "--n_head_ca", "2", "--output", str(tmp_path / "out")]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "out") in done.stdout + done.stderr
    rebuilt(tmp_path / "out")


RIGHT = dict(variant="tmaze", context_length=4, n_head_ca=2)
# What differs from the right flags, of which checkpoint, and what the message has to name.
WRONG = {
    "another variant, other layers": (dict(variant="doom"), {}, ["state_encoder"]),
    "another variant, other sizes": (
        dict(variant="memory_maze"), dict(env="doom"), ["encoder.observation", "2560", "7744"],
    ),
    "an unknown variant": (dict(variant="pong"), {}, ["--variant", "pong", "atari"]),
    "no heads where there is an MRV": (dict(n_head_ca=0), {}, ["--n_head_ca 0", "hold an MRV"]),
    "heads where there is no MRV": (dict(n_head_ca=2), dict(n_head_ca=0), ["--n_head_ca 2", "no MRV"]),
    "heads that do not divide": (dict(n_head_ca=3), {}, ["--n_head_ca 3", "--d_model 16", "4"]),
    "gates without GTrXL": ({}, dict(arch_mode="GTrXL"), ["layers.0.gate1"]),
    "GTrXL without gates": (dict(arch_mode="GTrXL"), {}, ["gate1", "arch"]),
    "no steps": (dict(context_length=0), {}, ["--context_length 0"]),
    "a negative cache": (dict(mem_len=-1), {}, ["--mem_len -1"]),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "meta", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_flag_is_named(tmp_path, monkeypatch, capsys, flags, meta, named):
    checkpoint = published(tmp_path / "model.pth", **meta)
    arguments = [part for name, value in (RIGHT | flags).items() for part in (f"--{name}", value)]
    assert convert(monkeypatch, checkpoint, "--output", tmp_path / "out", *arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in message and all(word in message for word in named), message
    assert not (tmp_path / "out").exists()


def _missing(path: Path) -> None:
    pass


def _text(path: Path) -> None:
    path.write_text("this is no checkpoint\n")


def _truncated(path: Path) -> None:
    published(path)
    path.write_bytes(path.read_bytes()[:2000])


def _empty(path: Path) -> None:
    path.touch()


def _list(path: Path) -> None:
    torch.save([1, 2, 3], path)


def _numbers(path: Path) -> None:
    torch.save({"epoch": 3}, path)


def _another_model(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def _half_a_model(path: Path) -> None:
    weights = reference.random_weights(reference.make_meta(), 0)
    torch.save({name: tensor for name, tensor in weights.items() if not name.startswith("head")}, path)


def _pickled_module(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), path)


@pytest.mark.parametrize(
    "make",
    [_missing, _text, _truncated, _empty, _list, _numbers, _another_model, _half_a_model, _pickled_module],
    ids=lambda make: make.__name__,
)
def test_what_is_no_published_checkpoint_is_told(tmp_path, monkeypatch, capsys, make):
    path = tmp_path / "model.pth"
    make(path)
    arguments = [part for name, value in RIGHT.items() for part in (f"--{name}", value)]
    assert convert(monkeypatch, path, "--output", tmp_path / "out", *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"error: {path}") and len(message.splitlines()) == 1, message
    assert len(message) < 400, message
    assert not (tmp_path / "out").exists()


def test_a_directory_is_no_checkpoint(tmp_path, monkeypatch, capsys):
    arguments = [part for name, value in RIGHT.items() for part in (f"--{name}", value)]
    assert convert(monkeypatch, tmp_path, "--output", tmp_path / "out", *arguments) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["r_w_bias", "r_r_bias", "mem_tokens", "layers.0.dec_attn.r_net.weight", "layers.0.dec_attn.qkv_net.weight"]
    + ["layers.0.pos_ff.CoreNet.0.weight", "layers.0.layer_norm1.weight", "mha_mem_to_mem.wq.weight", "head.0.weight"],
)
@pytest.mark.parametrize("shape", [(), (7,), (7, 7)], ids=str)
def test_a_weight_of_another_shape_is_told(tmp_path, monkeypatch, capsys, name, shape):
    weights = reference.random_weights(reference.make_meta(), 0)
    matches = [key for key in weights if key == name or (name == "head.0.weight" and key.startswith("head"))]
    weights[matches[0]] = torch.zeros(shape)
    torch.save(weights, tmp_path / "model.pth")
    arguments = [part for flag, value in RIGHT.items() for part in (f"--{flag}", value)]
    assert convert(monkeypatch, tmp_path / "model.pth", "--output", tmp_path / "out", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'model.pth'}: ")


def test_gates_of_unequal_shapes_are_told(tmp_path, monkeypatch, capsys):
    weights = reference.random_weights(reference.make_meta(arch_mode="GTrXL"), 0)
    name = next(key for key in weights if key.startswith("layers.0.gate") and weights[key].ndim == 2)
    weights[name] = torch.zeros(3)
    torch.save(weights, tmp_path / "model.pth")
    arguments = [part for flag, value in (RIGHT | {"arch_mode": "GTrXL"}).items() for part in (f"--{flag}", value)]
    assert convert(monkeypatch, tmp_path / "model.pth", "--output", tmp_path / "out", *arguments) == 2
    assert "of layer 0: its matrices" in capsys.readouterr().err


def test_nothing_is_converted_into_a_runs_checkpoints(tmp_path, monkeypatch, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = save_checkpoint(checkpoints, 5, model_state={"w": torch.ones(2)}, training_state={})
    arguments = [part for flag, value in RIGHT.items() for part in (f"--{flag}", value)]
    assert convert(monkeypatch, published(tmp_path / "model.pth"), "--output", checkpoints, *arguments) == 2
    assert "already holds a checkpoint" in capsys.readouterr().err
    assert list(checkpoints.iterdir()) == [saved]
