"""What passes between segments, what must not, and where gradients go."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from RATE_model.errors import UserError
from RATE_model.memories.rate.config import ARCHS, MODES, VALVES, RATEOptions
from RATE_model.memories.rate.valve import make_valve
from RATE_model.objectives.cloning import cloning_loss
from tests.small_models import (
    CONTINUOUS,
    VECTOR,
    K,
    N,
    by_segments,
    changed,
    everywhere,
    flip_hint,
    logits_of,
    one_segment,
    random_inputs,
    rate_agent,
    small_config,
    small_model,
)

WITH_TOKENS = ["RATE", "RATEM", "RMT"]
LAST = slice((N - 1) * K, N * K)


def difference(a: Tensor, b: Tensor) -> float:
    return (a - b).abs().amax().item() if a.numel() else 0.0


# --- what a gradient reaches ---


@pytest.mark.parametrize("mode", MODES)
def test_the_jacobian_is_lower_triangular(mode):
    """Which logits have a gradient with respect to which observations: all earlier ones that a gradient can reach."""
    model, inputs = small_model(mode), random_inputs(batch=1)
    observations = inputs[0].requires_grad_()
    logits = logits_of(model, inputs)
    steps = N * K
    seen = torch.stack(
        [torch.autograd.grad(logits[0, t].cos().sum(), observations, retain_graph=True)[0][0] for t in range(steps)]
    )
    reached = (seen != 0).any(-1)  # (T logits, T observations)
    causal = torch.ones(steps, steps, dtype=torch.bool).tril()
    segment = torch.arange(steps) // K
    same_segment = segment[:, None] == segment[None, :]
    # The cache carries values, no gradient; memory tokens carry both; DT has a single segment.
    expected = causal if mode in (*WITH_TOKENS, "DT", "DTXL") else causal & same_segment
    assert (reached == expected).all()


# --- what memory carries ---


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", [*WITH_TOKENS, "TrXL", "RATE_wo_nmt"])
def test_the_first_observation_reaches_the_third_segment(mode, arch):
    """T-Maze in small: the hint of the first step, the decision at the end."""
    cache = dict(mem_len=3 * K * N) if mode in ("TrXL", "RATE_wo_nmt") else {}
    model, inputs = small_model(mode, arch=arch, **cache), random_inputs()
    with torch.no_grad():
        shown, flipped = logits_of(model, inputs)[:, LAST], logits_of(model, flip_hint(inputs))[:, LAST]
    assert (shown - flipped).abs().amax(dim=(1, 2)).min() > 1e-5


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("mode", WITH_TOKENS)
def test_the_memory_tokens_are_what_carries_it(mode, arch):
    """With the tokens put back to the initial ones at every segment, the third segment does not know the first."""
    model, inputs = small_model(mode, arch=arch, mem_len=0), random_inputs()
    with torch.no_grad():
        for forget, carries in ((False, True), (True, False)):
            shown = by_segments(model, inputs, forget_tokens=forget)
            flipped = by_segments(model, flip_hint(inputs), forget_tokens=forget)
            assert difference(shown[0], flipped[0]) > 1e-3
            assert (difference(shown[-1], flipped[-1]) > 1e-5) == carries
            if forget:
                assert torch.equal(shown[-1], flipped[-1])


def test_the_cache_is_what_carries_it_without_tokens():
    model, inputs = small_model("TrXL", mem_len=3 * K * N), random_inputs()
    with torch.no_grad():
        shown = by_segments(model, inputs, forget_cache=True)
        flipped = by_segments(model, flip_hint(inputs), forget_cache=True)
    assert torch.equal(shown[-1], flipped[-1])


def test_a_cache_reaches_as_far_as_it_is_long():
    """Two layers with a cache of one token see one segment back: the hint of the first segment is out of reach."""
    model, inputs = small_model("TrXL", mem_len=1), random_inputs()
    with torch.no_grad():
        shown, flipped = logits_of(model, inputs), logits_of(model, flip_hint(inputs))
        last_of_first = logits_of(model, changed(inputs, action=K - 1))
    assert torch.equal(shown[:, LAST], flipped[:, LAST])
    assert difference(shown[:, K : 2 * K], last_of_first[:, K : 2 * K]) > 1e-5


@pytest.mark.parametrize("mode", ["RATE", "TrXL", "DTXL"])
def test_the_cache_never_outgrows_mem_len(mode):
    model, inputs = small_model(mode, mem_len=8), random_inputs()
    memory = model.initial(2).memory
    lengths = []
    for start in range(0, N * K, 2):
        _, memory = one_segment(model, tuple(tensor[:, start : start + 2] for tensor in inputs), memory)
        lengths.append(memory.cache[0].shape[1])
        assert memory.cache_lengths.tolist() == [lengths[-1]] * 2
        assert len(memory.cache) == model.memory.config.n_layer
    assert lengths == ([8] * 6 if mode == "RATE" else [6] + [8] * 5)


@pytest.mark.parametrize("mode", ["RMT", "RATEM", "DT"])
def test_modes_without_a_cache_keep_none(mode):
    model, inputs = small_model(mode), random_inputs()
    memory = model(*inputs, everywhere(inputs))[1].memory
    assert memory.cache == ()
    assert (memory.tokens is None) == (mode == "DT")


def test_memory_tokens_are_distinct_at_the_start():
    tokens = rate_agent(small_config(num_mem_tokens=5), VECTOR).memory.memory_tokens
    assert (torch.cdist(tokens, tokens) + 9 * torch.eye(5)).min() > 0.5
    memory = small_model().initial(4).memory
    assert memory.tokens.shape == (4, 3, 16)
    assert memory.cache_lengths.tolist() == [0, 0, 0, 0]


# --- the variants, against their formulas in float64 ---


def written_out(valve: torch.nn.Module, mrv: str, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """One memory `(n, d)` and what was written `(n, d)` to the next memory, in NumPy."""
    weights = {name: parameter.detach().double().numpy() for name, parameter in valve.named_parameters()}

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def cell(x: np.ndarray, which: str) -> np.ndarray:
        return x @ weights[f"cell.weight_{which}"].T + weights[f"cell.bias_{which}"]

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    d = new.shape[1]
    if mrv == "FSQ":
        return np.round(np.tanh(weights["scale"] * new))
    if mrv in ("CA-1", "CA-2"):
        new = np.maximum(new, 0)
        query, source = (old, new) if mrv == "CA-2" else (new, old)
        q, k, v = linear("query", query), linear("key", source), linear("value", source)
        heads = []
        for head in np.split(np.arange(d), 2):
            scores = np.exp(q[:, head] @ k[:, head].T / math.sqrt(d / 2))
            heads.append(scores / scores.sum(1, keepdims=True) @ v[:, head])
        return linear("output", np.concatenate(heads, axis=1))
    if mrv == "G":
        r_old, z_old, h_old = np.split(linear("from_old", old), 3, axis=1)
        r_new, z_new = np.split(linear("from_written", new), 2, axis=1)
        r, z = sigmoid(r_old + r_new), sigmoid(z_old + z_new - weights["bias"])
        h = np.tanh(h_old + linear("from_reset", new * r))
        return sigmoid(old * (1 - z) + z * h)
    if mrv == "GRU":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(cell(new, "ih"), 3, axis=1), np.split(cell(old, "hh"), 3, axis=1)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        return (1 - z) * np.tanh(n_x + r * n_h) + z * old
    h, c = np.split(old, 2, axis=1)
    i, f, g, o = np.split(cell(new, "ih") + cell(h, "hh"), 4, axis=1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return np.concatenate([sigmoid(o) * np.tanh(c), c], axis=1)


@pytest.mark.parametrize("mrv", [valve for valve in VALVES if valve != "none"])
@torch.no_grad()
def test_a_valve_is_its_formula(mrv):
    config = small_config(mrv=mrv)
    torch.manual_seed(0)
    valve = make_valve(config)
    assert valve is not None
    old, written = torch.randn(2, 3, config.tokens_width), torch.randn(2, 3, config.d_model)
    found = valve(old, written)
    for row in range(2):
        expected = written_out(valve, mrv, old[row].double().numpy(), written[row].double().numpy())
        np.testing.assert_allclose(found[row].numpy(), expected, atol=1e-5)


def test_rounded_memory_is_exact_and_passes_gradients_through():
    valve = make_valve(small_config(mrv="FSQ"))
    assert valve is not None
    written = torch.linspace(-3, 3, 48).view(1, 3, 16).requires_grad_()
    memory = valve(torch.zeros(1, 3, 16), written)
    assert memory.unique().tolist() == [-1, 0, 1]
    assert torch.equal(valve(memory, written + 1e-4), memory), "a small change is rounded away"
    memory.sum().backward()
    torch.testing.assert_close(written.grad, 1 - torch.tanh(written.detach()).square())


def test_without_a_valve_what_is_written_replaces_the_memory():
    assert make_valve(small_config(mrv="none")) is None
    assert make_valve(small_config("RMT", mrv="GRU")) is None
    model, inputs = small_model(mrv="none"), random_inputs()
    twin = small_model(n_head_ca=0)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(logits_of(model, inputs), logits_of(twin, inputs))


@pytest.mark.parametrize(
    ("mode", "flags", "words"),
    [
        ("RMT", {"mrv": "GRU"}, "--mrv GRU with --model_mode RMT"),
        ("RATE", {"mrv": "CA-1", "n_head_ca": 0}, "--mrv CA-1 with --n_head_ca 0"),
        ("RATE", {"mrv_act": "relu", "n_head_ca": 0}, "--mrv_act relu with --n_head_ca 0"),
        ("RMT", {"mrv_act": "relu"}, "--mrv_act relu with --model_mode RMT"),
        ("RATE", {"mrv": "G", "n_head_ca": 2}, "--n_head_ca 2 with --mrv G"),
        ("RATE", {"mrv": "LSTM", "mrv_act": "tanh"}, "--mrv_act tanh with --mrv LSTM"),
    ],
)
def test_flags_that_do_not_go_with_a_valve_are_refused(mode, flags, words):
    with pytest.raises(UserError, match=words):
        RATEOptions(**flags).check_mode(mode, flags.keys())


def test_a_gate_needs_memory_tokens():
    with pytest.raises(UserError, match="--mrv G with --nmt 0.*--mrv none"):
        small_config(mrv="G", num_mem_tokens=0, n_head_ca=0).validate()


# --- gradients through memory ---


def test_a_window_of_two_segments_gives_gradients_to_two():
    """--bptt_segments 1."""
    model, inputs = small_model(), random_inputs(steps=4 * K)
    observations = inputs[0].requires_grad_()
    _, memory = model(*(tensor[:, : 2 * K] for tensor in inputs), everywhere(inputs)[:, : 2 * K])
    window = tuple(tensor[:, 2 * K :] for tensor in inputs)
    logits, _ = model(*window, everywhere(window), memory)
    logits[:, K:].square().sum().backward()
    assert torch.count_nonzero(observations.grad[:, : 2 * K]) == 0
    assert (observations.grad[:, 2 * K : 3 * K].abs().amax(dim=2) > 0).all()


def test_the_cache_carries_no_gradient():
    model, inputs = small_model("TrXL", mem_len=100), random_inputs()
    observations = inputs[0].requires_grad_()
    logits, state = model(*inputs, everywhere(inputs))
    assert not any(layer.requires_grad for layer in state.memory.cache)
    logits[:, LAST].square().sum().backward()
    assert torch.count_nonzero(observations.grad[:, : LAST.start]) == 0


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("skip_dec_ffn", [False, True], ids=["ffn", "no_ffn"])
def test_every_parameter_of_every_block_moves_in_one_step(arch, skip_dec_ffn):
    """The published MRV never learnt anything."""
    model = small_model(arch=arch, skip_dec_ffn=skip_dec_ffn).train()
    inputs = random_inputs(batch=8)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    cloning_loss(model.spec, logits_of(model, inputs), inputs[1], everywhere(inputs)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        # What shifts all scores of a query alike has no effect: its gradient is rounding.
        if name != "memory.valve.key.bias":
            assert parameter.grad.abs().max() > 1e-7, name
    optimizer.step()
    for name, parameter in model.named_parameters():
        if name != "memory.valve.key.bias":
            assert difference(parameter.detach(), before[name]) > 1e-4, name


def test_every_parameter_of_the_continuous_model_moves():
    model, inputs = small_model(spec=CONTINUOUS), random_inputs(spec=CONTINUOUS)
    logits = logits_of(model, inputs)
    assert logits.abs().max() <= 1
    cloning_loss(model.spec, logits, inputs[1], everywhere(inputs)).backward()
    assert all(p.grad.abs().max() > 1e-7 for name, p in model.named_parameters() if name != "memory.valve.key.bias")


# --- rows in another order ---


@pytest.mark.parametrize(
    ("mode", "change"), [("RATE", {}), ("RMT", {}), ("TrXL", {}), ("TrXL", {"mem_len": 0})], ids=str
)
@torch.no_grad()
def test_permuted_memory_is_that_of_permuted_trajectories(mode, change):
    """Tokens and caches move together, also those of rows that have lived through different numbers of segments."""
    model = small_model(mode, **({"mem_len": 100} | change if mode != "RMT" else change))
    inputs, order = random_inputs(batch=4, steps=3 * K), torch.tensor([2, 0, 3, 1])
    valid = torch.arange(2 * K) >= torch.tensor([0, K, 0, K])[:, None]
    _, state = model(*(tensor[:, : 2 * K] for tensor in inputs), valid)
    moved = state.rows(order)
    lengths = moved.memory.cache_lengths
    assert lengths.tolist() == state.memory.cache_lengths[order].tolist()
    assert model.memory.config.mem_len == 0 or len(set(lengths.tolist())) == 2
    last = tuple(tensor[:, 2 * K :] for tensor in inputs)
    expected, _ = model(*last, torch.ones(4, K, dtype=torch.bool), state)
    found, _ = model(*(tensor[order] for tensor in last), torch.ones(4, K, dtype=torch.bool), moved)
    torch.testing.assert_close(found, expected[order], rtol=1e-4, atol=1e-5)
