"""python -m RATE_model.original: published checkpoints become checkpoints of this project."""

import json
import os
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import safetensors.torch
import torch

from RATE_model.agent import Agent, AgentConfig
from RATE_model.cli.evaluation import flags_of
from RATE_model.errors import UserError
from RATE_model.loading import load_for
from RATE_model.original.__main__ import main
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import load_checkpoint, resolve_checkpoint, save_checkpoint
from tests import reference
from tests.small_models import VECTOR

ROOT = Path(__file__).parents[2]


def published(path: Path, *, wrap: str | None = None, prefix: str = "", old: bool = True, **meta) -> Path:
    """A synthetic checkpoint in the published format, including unused parameters."""
    weights = reference.random_weights(reference.make_meta(**meta), 0)
    weights["embed_timestep.weight"] = torch.zeros(1000, 16)
    weights["embed_ln.weight"] = torch.ones(16)
    if old:  # only branch rate-old has a vocabulary
        weights["crit.out_layers.0.weight"] = torch.zeros(100, 16)
    state = {prefix + name: tensor for name, tensor in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    return path


def convert(*arguments: object) -> int:
    """Run the command and return its exit status."""
    try:
        main(list(map(str, arguments)))
    except SystemExit as stop:
        return stop.code
    return 0


def rebuilt(directory: Path) -> Agent:
    """The model of a converted checkpoint, from its own metadata."""
    state, training = load_checkpoint(resolve_checkpoint(directory))
    model = Agent(AgentConfig.of(training), EnvironmentSpec(**training["spec"]))
    model.load_state_dict(state)
    return model.eval()


CASES = {
    "tmaze": (dict(), ["--variant", "tmaze", "--n_head_ca", 2]),
    "tmaze, cache": (
        dict(mem_len=20, mrv_act="elu"),
        ["--variant", "tmaze", "--n_head_ca", 2, "--mrv_act", "elu"],
    ),
    "doom": (dict(env="doom", n_head_ca=0, batch=1), ["--variant", "doom"]),
    "gtrxl": (dict(arch_mode="GTrXL", n_head_ca=4), ["--variant", "tmaze", "--n_head_ca", 4, "--arch_mode", "GTrXL"]),
    "mujoco": (dict(env="mujoco", skip_dec_ffn=True), ["--variant", "mujoco", "--n_head_ca", 2]),
    "mujoco, main": (dict(env="mujoco_tanh", skip_dec_ffn=True), ["--n_head_ca", 2]),
    "minigrid, main": (dict(env="minigrid_memory, main", batch=1), ["--n_head_ca", 2]),
    "popgym": (dict(env="popgym"), ["--variant", "popgym", "--n_head_ca", 2]),
    "dt": (
        dict(num_mem_tokens=0, n_head_ca=0, segment_length=12, num_segments=1),
        ["--variant", "tmaze", "--sliding"],
    ),
}  # fmt: skip


EARLIER = ("tmaze", "doom", "mujoco")  # environments of the cases that branch rate-old has


@pytest.mark.parametrize(("meta", "flags"), CASES.values(), ids=CASES.keys())
def test_a_converted_checkpoint_computes_the_same(tmp_path, meta, flags):
    meta = reference.make_meta(**meta)
    checkpoint = published(tmp_path / "model.pth", old=meta["env"] in EARLIER, **meta)
    output = tmp_path / "converted"
    arguments = [checkpoint, "--output", output, "--context_length", meta["segment_length"], *flags]
    assert convert(*arguments, "--mem_len", meta["mem_len"]) == 0
    model = rebuilt(output)
    assert model.memory.config.sliding == ("--sliding" in flags)
    observations, actions, rtg = reference.random_data(meta, 1)
    scaled = observations.float() / 255 if observations.dtype == torch.uint8 else observations
    expected = reference.trajectory(reference.random_weights(meta, 0), meta, scaled, actions, rtg)
    actions = actions if model.spec.continuous else actions.squeeze(-1)
    with torch.no_grad():
        units = rtg.squeeze(-1) / model.spec.return_scale  # ours are in units of reward
        logits, state = model(observations, actions, units, torch.ones(rtg.shape[:2], dtype=torch.bool))
    assert (logits - torch.cat([segment.logits for segment in expected], dim=1)).abs().max() < 1e-5
    if (tokens := state.memory.slots) is not None:
        assert (tokens - expected[-1].memory).abs().max() < 1e-5


PREFIXES = ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "agent.net.model."]


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda prefix: prefix or "none")
@pytest.mark.parametrize("wrap", ["model_state_dict", "net", None])
def test_wrapped_checkpoints_are_read(tmp_path, wrap, prefix):
    assert convert(published(tmp_path / "model.pth", wrap=wrap, prefix=prefix), "--output", tmp_path / "out") == 0
    weights = reference.random_weights(reference.make_meta(), 0)
    assert torch.equal(rebuilt(tmp_path / "out").memory.memory_tokens, weights["mem_tokens"].squeeze(1))


def test_checkpoints_in_other_formats_are_read(tmp_path):
    weights = reference.random_weights(reference.make_meta(), 0)
    torch.save(OrderedDict(weights), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}, tmp_path / "parameters.pth")
    torch.save({name: tensor.double() for name, tensor in weights.items()}, tmp_path / "double.pth")
    torch.save(weights | {"epoch": 3}, tmp_path / "beside.pth")
    contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
    safetensors.torch.save_file(contiguous, tmp_path / "model.safetensors")
    for path in sorted(tmp_path.iterdir()):
        assert convert(path, "--output", tmp_path / "out" / path.name) == 0
        model = rebuilt(tmp_path / "out" / path.name)
        assert torch.equal(model.memory.memory_tokens, weights["mem_tokens"].squeeze(1)), path


def test_several_models_in_a_file_are_refused(tmp_path, capsys):
    weights = reference.random_weights(reference.make_meta(), 0)
    torch.save({"online": weights, "average": weights}, tmp_path / "model.pth")
    assert convert(tmp_path / "model.pth", "--output", tmp_path / "out") == 2
    assert "several models, online, average" in capsys.readouterr().err


def test_the_environment_is_recognised_and_printed(tmp_path, capsys):
    for env in ("tmaze", "doom", "minigrid_memory", "memory_maze", "atari", "mujoco"):
        assert convert(published(tmp_path / f"{env}.pth", env=env), "--output", tmp_path / env) == 0
        assert f"({env}, by its names and shapes" in capsys.readouterr().err


NOBODYS = {  # what is not an environment of ours, and what has to be said of it
    "POPGym": (dict(env="popgym", state_dim=7, act_dim=3), "vectors of 7, an action table of 4 rows, a head of 3"),
    "other images": (dict(env="doom", act_dim=9), "2560 numbers after the convolutions"),
    "another robot": (dict(env="mujoco", state_dim=27, act_dim=8), "vectors of 27, 8 continuous actions"),
}


@pytest.mark.parametrize(("meta", "found"), NOBODYS.values(), ids=NOBODYS.keys())
def test_an_unknown_environment_is_refused(tmp_path, capsys, meta, found):
    assert convert(published(tmp_path / "model.pth", **meta), "--output", tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert found in message and "Known: tmaze (4, 4 actions)" in message and not (tmp_path / "out").exists()


def test_a_model_without_memory_tokens_needs_model_mode(tmp_path, capsys):
    checkpoint = published(tmp_path / "model.pth", num_mem_tokens=0, n_head_ca=0)
    assert convert(checkpoint, "--output", tmp_path / "out") == 2
    assert "--model_mode DT or --model_mode TrXL" in capsys.readouterr().err
    assert convert(checkpoint, "--output", tmp_path / "dt", "--model_mode", "DT") == 0
    config = rebuilt(tmp_path / "dt").memory.config
    assert config.context_length == 90 and config.sliding
    assert convert(checkpoint, "--output", tmp_path / "trxl", "--model_mode", "TrXL") == 0
    config = rebuilt(tmp_path / "trxl").memory.config
    assert config.mem_len == 270 and not config.sliding


def write_main_config(folder: Path, **changes) -> None:
    """The parts of branch main's config.json that are read."""
    model = dict(env_name="tmaze", n_head_ca=4, mem_len=7, mrv_act="tanh")
    content = {"model": model | changes.pop("model", {}), "training": {"context_length": 12, "sections": 2}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content | {"model_mode": "RATE", "arch_mode": "TrXL-I"} | changes))


def test_the_config_of_branch_main_is_read(tmp_path, capsys):
    write_main_config(tmp_path / "run")
    checkpoint = published(tmp_path / "run" / "checkpoints" / "step_9.pth", old=False, arch_mode="TrXL-I")
    assert convert(checkpoint, "--output", tmp_path / "out", "--mem_len", 5) == 0
    config = rebuilt(tmp_path / "out").memory.config
    found = (config.context_length, config.n_head_ca, config.mem_len, config.mrv_act, config.arch)
    assert found == (12, 4, 5, "tanh", "TrXL-I")
    message = capsys.readouterr().err
    assert f"context_length 12, n_head_ca 4, mrv_act tanh ({tmp_path / 'run' / 'config.json'})" in message
    assert "mem_len 5 (given)" in message


def test_the_environment_in_config_json_is_used(tmp_path, capsys):
    write_main_config(tmp_path, model={"env_name": "popgym-RepeatFirstEasy"})
    checkpoint = published(tmp_path / "model.pth", old=False, env="popgym")
    assert convert(checkpoint, "--output", tmp_path / "out") == 0
    assert "no environment of this project plays" in capsys.readouterr().err
    with pytest.raises(UserError, match="POPGym"):
        load_for(resolve_checkpoint(tmp_path / "out"), VECTOR, flags=flags_of(tmp_path / "out"))
    write_main_config(tmp_path, model={"env_name": "Acrobot-v1"})
    assert convert(checkpoint, "--output", tmp_path / "other") == 2
    assert "unknown environment 'Acrobot-v1'" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{}")
    assert convert(checkpoint, "--output", tmp_path / "other") == 2
    assert "not the config.json of a published run" in capsys.readouterr().err


FOLDERS = {
    "RATE_max_3_arch_mode_TrXL_DT_min_1_max_3_RUN_1_2024_01_31_12_00_00": (
        dict(num_mem_tokens=0, n_head_ca=0), dict(sliding=True, context_length=90),
    ),
    "Pong_123_44_7_2_3_2_leaky_relu_False": (
        dict(env="atari", act_dim=6), dict(mem_len=44, context_length=7, n_head_ca=2, mrv_act="leaky_relu"),
    ),
    "hopper_medium_ns_2_sl_9_nt_3_nhca_4_mrvact_tanh_skipffndec_False": (
        dict(env="mujoco"), dict(context_length=9, n_head_ca=4, mrv_act="tanh", mem_len=210),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("name", "case"), FOLDERS.items(), ids=FOLDERS.keys())
def test_folder_names_of_rate_old_give_settings(tmp_path, name, case):
    meta, expected = case
    checkpoint = published(tmp_path / name / "1" / "9_KTD.pth", **meta)
    assert convert(checkpoint, "--output", tmp_path / "out") == 0
    config = rebuilt(tmp_path / "out").memory.config
    assert {field: getattr(config, field) for field in expected} == expected


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
    "another variant, other layers": (dict(variant="doom"), {}, ["--variant doom", "image channels: none"]),
    "another variant, other sizes": (
        dict(variant="memory_maze"), dict(env="doom"), ["--variant memory_maze", "2560", "7744"],
    ),
    "POPGym as T-Maze": (
        {}, dict(env="popgym", state_dim=6), ["--variant tmaze", "inputs of the observation encoder: 6, expected 4"],
    ),
    "an unknown variant": (dict(variant="pong"), {}, ["--variant", "pong", "atari"]),
    "no heads where there is an MRV": (dict(n_head_ca=0), {}, ["--n_head_ca 0", "have an MRV"]),
    "heads where there is no MRV": (dict(n_head_ca=2), dict(n_head_ca=0), ["--n_head_ca 2", "no MRV"]),
    "heads that do not divide": (dict(n_head_ca=3), {}, ["--n_head_ca 3", "--d_model 16", "4"]),
    "gates without GTrXL": (dict(arch_mode="TrXL"), dict(arch_mode="GTrXL"), ["layers.0.gate1"]),
    "GTrXL without gates": (dict(arch_mode="GTrXL"), {}, ["gate1", "arch"]),
    "no steps": (dict(context_length=0), {}, ["--context_length 0"]),
    "a negative cache": (dict(mem_len=-1), {}, ["--mem_len -1"]),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "meta", "named"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_flag_is_an_error_that_names_it(tmp_path, capsys, flags, meta, named):
    checkpoint = published(tmp_path / "model.pth", **meta)
    arguments = [part for name, value in (RIGHT | flags).items() for part in (f"--{name}", value)]
    assert convert(checkpoint, "--output", tmp_path / "out", *arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in message and all(word in message for word in named), message
    assert not (tmp_path / "out").exists()


def _missing(path: Path) -> None:
    pass


def _text(path: Path) -> None:
    path.write_text("this is not a checkpoint\n")


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
def test_files_that_are_not_published_checkpoints_are_refused(tmp_path, capsys, make):
    path = tmp_path / "model.pth"
    make(path)
    arguments = [part for name, value in RIGHT.items() for part in (f"--{name}", value)]
    assert convert(path, "--output", tmp_path / "out", *arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"error: {path}") and len(message.splitlines()) == 1, message
    assert len(message) < 400, message
    assert not (tmp_path / "out").exists()


def test_a_directory_is_refused_as_checkpoint(tmp_path, capsys):
    arguments = [part for name, value in RIGHT.items() for part in (f"--{name}", value)]
    assert convert(tmp_path, "--output", tmp_path / "out", *arguments) == 2
    assert str(tmp_path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "name",
    ["r_w_bias", "r_r_bias", "mem_tokens", "layers.0.dec_attn.r_net.weight", "layers.0.dec_attn.qkv_net.weight"]
    + ["layers.0.pos_ff.CoreNet.0.weight", "layers.0.layer_norm1.weight", "mha_mem_to_mem.wq.weight", "head.0.weight"],
)
@pytest.mark.parametrize("shape", [(), (7,), (7, 7)], ids=str)
def test_a_weight_of_wrong_shape_is_an_error(tmp_path, capsys, name, shape):
    weights = reference.random_weights(reference.make_meta(), 0)
    matches = [key for key in weights if key == name or (name == "head.0.weight" and key.startswith("head"))]
    weights[matches[0]] = torch.zeros(shape)
    torch.save(weights, tmp_path / "model.pth")
    arguments = [part for flag, value in RIGHT.items() for part in (f"--{flag}", value)]
    assert convert(tmp_path / "model.pth", "--output", tmp_path / "out", *arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'model.pth'}: ")


def test_gates_of_unequal_shapes_are_an_error(tmp_path, capsys):
    weights = reference.random_weights(reference.make_meta(arch_mode="GTrXL"), 0)
    name = next(key for key in weights if key.startswith("layers.0.gate") and weights[key].ndim == 2)
    weights[name] = torch.zeros(3)
    torch.save(weights, tmp_path / "model.pth")
    arguments = [part for flag, value in (RIGHT | {"arch_mode": "GTrXL"}).items() for part in (f"--{flag}", value)]
    assert convert(tmp_path / "model.pth", "--output", tmp_path / "out", *arguments) == 2
    assert "of layer 0: its matrices" in capsys.readouterr().err


def test_an_interrupted_conversion_leaves_nothing(tmp_path, monkeypatch):
    """A directory without config.yaml would be refused by this command but accepted by inference."""

    def interrupted(*_):
        raise KeyboardInterrupt

    source, output = published(tmp_path / "model.pth"), tmp_path / "new" / "converted"
    arguments = ["--output", output, *(part for flag, value in RIGHT.items() for part in (f"--{flag}", value))]
    with monkeypatch.context() as patch:
        patch.setattr("RATE_model.original.__main__.atomic_write_text", interrupted)
        assert convert(source, *arguments) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["model.pth"]
    assert convert(source, *arguments) == 0 and rebuilt(output)
    assert [path.name for path in output.parent.iterdir()] == ["converted"]


def test_nothing_is_converted_into_a_runs_checkpoints(tmp_path, capsys):
    checkpoints = tmp_path / "run" / "checkpoints"
    saved = save_checkpoint(checkpoints, 5, model_state={"w": torch.ones(2)}, training_state={})
    arguments = [part for flag, value in RIGHT.items() for part in (f"--{flag}", value)]
    assert convert(published(tmp_path / "model.pth"), "--output", checkpoints, *arguments) == 2
    assert f"--output {checkpoints} exists" in capsys.readouterr().err
    assert list(checkpoints.iterdir()) == [saved]
