"""Parity with the published model: its recordings, and the slow implementation in tests/reference.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from RATE_model.agent import Agent
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig
from RATE_model.original.settings import infer_config
from RATE_model.original.variants import VARIANTS, infer_spec
from RATE_model.original.weights import convert_weights
from tests import reference
from tests.small_models import rate_agent
from tools import check_parity

ROOT = Path(__file__).parents[2]
RECORDINGS = sorted((ROOT / "tests" / "data").glob("*_rate.npz"))

RATE_CACHE = dict(mem_len=20)
TRXL = dict(num_mem_tokens=0, n_head_ca=0, mem_len=40)
RMT = dict(n_head_ca=0)
DT = dict(num_mem_tokens=0, n_head_ca=0, segment_length=12, num_segments=1)
IMAGE = dict(batch=1, segment_length=2, num_segments=2, mem_len=7)

# Name: differences from a two-layer T-Maze RATE with FFN, MRV and no cache.
COMBINATIONS: dict[str, dict] = {
    "rate": {},
    "rate, cache cut in a segment": RATE_CACHE,
    "rate, cache of one token": dict(mem_len=1),
    "rate, cache of everything": dict(mem_len=100),
    "rate, no ffn": dict(skip_dec_ffn=True),
    "rate, no ffn, cache": dict(skip_dec_ffn=True, **RATE_CACHE),
    "rmt": RMT,
    "rmt, no ffn": dict(RMT, skip_dec_ffn=True),
    "trxl": TRXL,
    "trxl, short cache": dict(TRXL, mem_len=5),
    "dt": DT,
    "dt, no ffn": dict(DT, skip_dec_ffn=True),
    "dt, long": dict(DT, segment_length=40),
    "rate, long segments": dict(segment_length=36, num_segments=2, mem_len=50),
    "one memory token": dict(num_mem_tokens=1),
    "two memory tokens": dict(num_mem_tokens=2, mem_len=9),
    "seven memory tokens": dict(num_mem_tokens=7, mem_len=30),
    "segments of one step": dict(segment_length=1, num_segments=4, mem_len=12),
    "one head, one layer": dict(n_head=1, n_layer=1, n_head_ca=1),
    "three layers, heads wider than the model": dict(n_layer=3, d_head=20, n_head_ca=4, mem_len=20),
    **{f"mrv {act}": dict(mrv_act=act) for act in ("leaky_relu", "elu", "tanh", "no_act")},
    **{
        f"{arch}, {name}": dict(change, arch_mode=arch)
        for arch in ("TrXL-I", "GTrXL")
        for name, change in {
            "rate": {},
            "rate, cache": RATE_CACHE,
            "rate, no ffn, cache": dict(RATE_CACHE, skip_dec_ffn=True),
            "rmt": RMT,
            "trxl": TRXL,
            "dt": DT,
        }.items()
    },
    "mujoco": dict(env="mujoco", **RATE_CACHE),
    "mujoco, dt": dict(env="mujoco", **DT),
    "mujoco, 17 features, 6 actions": dict(env="mujoco", state_dim=17, act_dim=6),
    "doom": dict(env="doom", **IMAGE),
    "minigrid_memory": dict(env="minigrid_memory", **IMAGE),
    "memory_maze": dict(env="memory_maze", **IMAGE),
    "atari": dict(env="atari", **IMAGE),
    "atari, 18 actions": dict(env="atari", act_dim=18, **IMAGE),
    "doom, GTrXL, no ffn": dict(IMAGE, env="doom", arch_mode="GTrXL", skip_dec_ffn=True),
}


def converted_model(meta: dict, weights: reference.Weights) -> Agent:
    """The project's model in eval mode with published weights, in their dtype."""
    config = infer_config(
        weights,
        n_head_ca=meta["n_head_ca"],
        context_length=meta["segment_length"],
        mem_len=meta["mem_len"],
        mrv_act=meta["mrv_act"],
        arch=meta["arch_mode"],
    )
    model = rate_agent(config, infer_spec(weights, meta["env"])).to(weights["r_w_bias"].dtype).eval()
    convert_weights(weights, model)
    return model


def run_ours(model: Agent, observations: Tensor, actions: Tensor, rtg: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits (B, N*K, A) and the last memory tokens for a recording's inputs."""
    actions = actions if model.spec.continuous else actions.squeeze(-1)
    valid = torch.ones(rtg.shape[:2], dtype=torch.bool)
    logits, state = model(observations, actions, rtg.squeeze(-1), valid)
    return logits, state.memory.slots


def run_reference(
    meta: dict, weights: reference.Weights, observations: Tensor, actions: Tensor, rtg: Tensor
) -> tuple[Tensor, Tensor | None]:
    """The same from the slow implementation."""
    if observations.dtype == torch.uint8:
        observations = observations.to(rtg.dtype) / 255
    if actions.is_floating_point():
        actions = actions.to(rtg.dtype)
    segments = reference.trajectory(weights, meta, observations, actions, rtg)
    return torch.cat([s.logits for s in segments], dim=1), segments[-1].memory


def objective(logits: Tensor, tokens: Tensor | None) -> Tensor:
    """A scalar with a different weight for every number, so that no gradient cancels."""
    total = (logits * torch.arange(1.0, logits.numel() + 1).reshape(logits.shape).cos()).sum()
    if tokens is not None:
        total = total + (tokens * torch.arange(1.0, tokens.numel() + 1).reshape(tokens.shape).sin()).sum()
    return total


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float, what: str) -> None:
    """Largest difference, relative to the largest number if that is above 1."""
    assert ours.shape == theirs.shape, what
    error = (ours - theirs).abs().max().item() / max(1.0, theirs.abs().max().item())
    assert error <= tolerance, f"{what}: {error:.2e}"


# --- recordings ---


def test_both_recordings_exist():
    assert [path.name for path in RECORDINGS] == ["tmaze_rate.npz", "vizdoom_rate.npz"]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_recordings_are_reproduced(path):
    errors = check_parity.compare(path)
    assert sorted(errors) == [f"{kind}_{i}" for kind in ("logits", "memory") for i in range(3)]
    assert max(errors.values()) <= 1e-5


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_the_reference_reproduces_recordings(path):
    with np.load(path) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}
        meta = json.loads(str(file["meta"]))
    weights = {name.removeprefix("weights/"): array for name, array in arrays.items() if name.startswith("weights/")}
    observations = arrays["observations"]
    if observations.dtype == torch.uint8:
        observations = observations.float() / 255
    segments = reference.trajectory(weights, meta, observations, arrays["actions"], arrays["rtg"])
    for index, result in enumerate(segments):
        assert (result.logits - arrays[f"logits_{index}"]).abs().max() <= 1e-5
        assert (result.memory - arrays[f"memory_{index}"]).abs().max() <= 1e-5


def test_the_tool_exits_with_0_when_all_agree():
    command = [sys.executable, str(ROOT / "tools" / "check_parity.py"), *map(str, RECORDINGS)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    )  # without installation
    assert done.returncode == 0, done.stderr
    for name in ("tmaze_rate.npz", "vizdoom_rate.npz", "logits_0", "memory_2"):
        assert name in done.stdout


def write_recording(path: Path, meta: dict, seed: int = 0, **replaced: np.ndarray) -> Path:
    """A recording of the slow implementation, in the format of the published ones; `replaced` arrays override."""
    weights = reference.random_weights(meta, seed)
    observations, actions, rtg = reference.random_data(meta, seed + 1)
    arrays = {"observations": observations, "actions": actions, "rtg": rtg}
    arrays |= {f"weights/{name}": tensor for name, tensor in weights.items()}
    scaled = observations.float() / 255 if observations.dtype == torch.uint8 else observations
    for index, result in enumerate(reference.trajectory(weights, meta, scaled, actions, rtg)):
        arrays[f"logits_{index}"] = result.logits
        if result.memory is not None:
            arrays[f"memory_{index}"] = result.memory
    stored = {name: tensor.numpy() for name, tensor in arrays.items()} | replaced
    np.savez(path, meta=json.dumps(meta), **stored)
    return path


def run_tool(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> int:
    monkeypatch.setattr(sys, "argv", ["check_parity.py", *map(str, paths)])
    try:
        return check_parity.main()
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize("name", ["layers.1.dec_attn.r_net.weight", "mha_mem_to_mem.wq.bias", "r_r_bias"])
def test_the_tool_exits_with_1_when_one_weight_is_perturbed(tmp_path, monkeypatch, capsys, name):
    meta = reference.make_meta(mem_len=20)
    perturbed = reference.random_weights(meta, 0)[name].numpy().copy()
    perturbed.flat[3] += 0.05
    bad = write_recording(tmp_path / "bad.npz", meta, **{f"weights/{name}": perturbed})
    good = write_recording(tmp_path / "good.npz", meta)
    assert run_tool(monkeypatch, good) == 0
    assert run_tool(monkeypatch, bad, good) == 1
    assert "ABOVE" in capsys.readouterr().out


def test_the_tool_counts_nan_as_a_failure(tmp_path, monkeypatch):
    meta = reference.make_meta()
    nan = np.full((2, 4, 4), np.nan, dtype=np.float32)
    assert run_tool(monkeypatch, write_recording(tmp_path / "nan.npz", meta, logits_1=nan)) == 1


def test_the_tool_names_a_file_that_is_not_a_recording(tmp_path, monkeypatch, capsys):
    path = tmp_path / "other.npz"
    np.savez(path, x=np.zeros(3))
    assert run_tool(monkeypatch, path) == 2
    assert run_tool(monkeypatch, tmp_path / "missing.npz") == 2
    errors = capsys.readouterr().err
    assert "other.npz" in errors and "missing.npz" in errors


def without(arrays: dict, name: str) -> dict:
    return {key: array for key, array in arrays.items() if key != name}


DAMAGE = {
    "no actions": lambda arrays: without(arrays, "actions"),
    "no bias": lambda arrays: without(arrays, "weights/r_w_bias"),
    "a flat bias": lambda arrays: arrays | {"weights/r_w_bias": np.zeros(7, dtype=np.float32)},
    "no meta": lambda arrays: without(arrays, "meta"),
    "meta that is not JSON": lambda arrays: arrays | {"meta": "{"},
    "meta without cache": lambda arrays: arrays | {"meta": '{"n_head_ca": 2}'},
    "observations of another size": lambda arrays: arrays | {"observations": np.zeros((2, 12, 9), dtype=np.float32)},
    "logits of another size": lambda arrays: arrays | {"logits_1": np.zeros((2, 4, 9), dtype=np.float32)},
    "text for actions": lambda arrays: arrays | {"actions": np.array(["up"])},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_the_tool_names_a_damaged_recording(tmp_path, monkeypatch, capsys, damage):
    path = write_recording(tmp_path / "damaged.npz", reference.make_meta())
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **damage(arrays))
    assert run_tool(monkeypatch, path) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_the_tool_names_a_truncated_recording(tmp_path, monkeypatch, capsys, size):
    path = write_recording(tmp_path / "damaged.npz", reference.make_meta())
    path.write_bytes(path.read_bytes()[:size])
    assert run_tool(monkeypatch, path) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: ")


@pytest.mark.parametrize(
    "change", [dict(TRXL), dict(RMT), dict(DT), dict(env="mujoco"), dict(arch_mode="GTrXL")], ids=str
)
def test_the_tool_reads_recordings_of_every_mode(tmp_path, change):
    errors = check_parity.compare(write_recording(tmp_path / "mode.npz", reference.make_meta(**change)))
    assert max(errors.values()) <= 1e-5


def test_tool_reads_a_dt_recording_with_sizes_in_its_meta(tmp_path):
    """A recording of DT has one segment of N*K steps; its metadata may still give K and N."""
    path = write_recording(tmp_path / "dt.npz", reference.make_meta(**DT))
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    arrays["meta"] = json.dumps(json.loads(str(arrays["meta"])) | {"segment_length": 4, "num_segments": 3})
    np.savez(path, **arrays)
    errors = check_parity.compare(path)
    assert list(errors) == ["logits_0"]
    assert errors["logits_0"] <= 1e-5


# --- against the slow implementation ---


@pytest.mark.parametrize("change", COMBINATIONS.values(), ids=COMBINATIONS.keys())
def test_outputs_and_gradients_equal_the_reference(change):
    """In float64, only the float32 position tables differ."""
    meta = reference.make_meta(**change)
    weights = {name: tensor.double() for name, tensor in reference.random_weights(meta, 0).items()}
    observations, actions, rtg = reference.random_data(meta, 1)
    rtg = rtg.double()
    actions = actions.double() if actions.is_floating_point() else actions
    observations = observations if observations.dtype == torch.uint8 else observations.double()
    model = converted_model(meta, weights)

    inputs = [tensor for tensor in (rtg, observations, actions) if tensor.is_floating_point()]
    leaves = [tensor.requires_grad_() for tensor in (*weights.values(), *inputs)]
    logits, tokens = run_reference(meta, weights, observations, actions, rtg)
    gradients = torch.autograd.grad(objective(logits, tokens), leaves, allow_unused=True, materialize_grads=True)
    expected = converted_model(meta, dict(zip(weights, gradients, strict=False)))

    ours, our_tokens = run_ours(model, observations, actions, rtg)
    parameters = dict(model.named_parameters())
    our_gradients = torch.autograd.grad(objective(ours, our_tokens), [*parameters.values(), *inputs])

    assert_close(ours, logits, 1e-6, "logits")
    assert (tokens is None) == (our_tokens is None)
    if tokens is not None:
        assert_close(our_tokens, tokens, 1e-6, "memory")
    for name, gradient in zip(parameters, our_gradients, strict=False):
        assert_close(gradient, expected.get_parameter(name), 1e-6, f"gradient of {name}")
    for gradient, other in zip(our_gradients[len(parameters) :], gradients[len(weights) :], strict=True):
        assert_close(gradient, other, 1e-6, "gradient of an input")


@pytest.mark.parametrize("name", ["rate, cache cut in a segment", "GTrXL, rate, cache", "trxl", "dt, long", "doom"])
def test_float32_outputs_equal_the_reference(name):
    meta = reference.make_meta(**COMBINATIONS[name])
    weights = reference.random_weights(meta, 2)
    data = reference.random_data(meta, 3)
    with torch.no_grad():
        logits, tokens = run_reference(meta, weights, *data)
        ours, our_tokens = run_ours(converted_model(meta, weights), *data)
    assert_close(ours, logits, 1e-5, "logits")
    if tokens is not None:
        assert_close(our_tokens, tokens, 1e-5, "memory")


def test_every_published_weight_matters():
    """The comparison can fail: changing any used weight of the published model changes the outputs."""
    meta = reference.make_meta(arch_mode="GTrXL", mem_len=20)
    weights = reference.random_weights(meta, 0)
    data = reference.random_data(meta, 1)
    idle = set()
    with torch.no_grad():
        before, _ = run_ours(converted_model(meta, weights), *data)
        for name in weights:
            changed = weights | {name: weights[name] + 0.1 * torch.randn_like(weights[name])}
            after, _ = run_ours(converted_model(meta, changed), *data)
            if (before - after).abs().max() < 1e-5:
                idle.add(name)
    norms = {
        f"layers.{i}.{part}.layer_norm.{kind}"
        for i in range(2)
        for part in ("dec_attn", "pos_ff")
        for kind in ("weight", "bias")
    }
    # A bias shared by all keys adds the same to all scores of a query, and softmax ignores it.
    assert idle == norms | {"pos_emb.inv_freq", "mha_mem_to_mem.wk.bias"}


# The environment's variant, its sizes and flags, and the published model's parameters: all, and unused ones.
PUBLISHED_COUNTS = {
    "tmaze rate": ("tmaze", (8, 10, 64), dict(num_mem_tokens=5, n_head_ca=4, skip_dec_ffn=True), 2_373_840, 715_152),
    "tmaze rate, ffn": ("tmaze", (8, 10, 64), dict(num_mem_tokens=5, n_head_ca=4), 2_442_448, 716_176),
    "tmaze rmt": ("tmaze", (8, 10, 64), dict(num_mem_tokens=5), 2_425_808, 716_176),
    "tmaze dt": ("tmaze", (8, 10, 64), {}, 2_425_488, 716_176),
    "doom rate": ("doom", (6, 8, 128), dict(num_mem_tokens=5, n_head_ca=2, skip_dec_ffn=True), 5_827_504, 1_419_792),
    "minigrid rate": (
        "minigrid_memory", (8, 10, 64), dict(num_mem_tokens=15, n_head_ca=2, skip_dec_ffn=True), 2_650_800, 715_152,
    ),
    "memory maze rate": (
        "memory_maze", (6, 8, 64), dict(num_mem_tokens=5, n_head_ca=4, skip_dec_ffn=True), 2_289_200, 714_896,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PUBLISHED_COUNTS.values(), ids=PUBLISHED_COUNTS.keys())
def test_sizes_are_published_ones_minus_unused_parameters(case):
    env, (layers, heads, width), change, total, unused = case
    sizes = dict(n_layer=layers, n_head=heads, d_model=width, d_head=width, d_inner=width, context_length=30)
    model = rate_agent(RATEConfig(**sizes, **change), VARIANTS[env].spec)
    assert sum(parameter.numel() for parameter in model.parameters()) == total - unused


def test_weights_under_unknown_names_are_refused():
    meta = reference.make_meta()
    weights = reference.random_weights(meta, 0)
    with pytest.raises(UserError, match="surprise"):
        converted_model(meta, weights | {"surprise.weight": torch.zeros(2)})
