"""The model's forward pass: padding, windows, batches, attention maps, precision, dropout."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from RATE_model.agent import Agent
from RATE_model.data.frames import FrameStack
from RATE_model.encoders import ImageEncoder, TokenEncoder
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import ARCHS, MODES
from RATE_model.objectives.cloning import cloning_loss
from RATE_model.spec import EnvironmentSpec
from tests.reference import attention_mask
from tests.small_models import (
    CONTINUOUS,
    VECTOR,
    Inputs,
    K,
    N,
    everywhere,
    logits_of,
    one_segment,
    random_inputs,
    rate_agent,
    small_config,
    small_model,
)

# Modes, and a cache that fills up slowly: rows that stop early then have caches of other lengths than the rest.
PADDED = [(mode, {}) for mode in MODES] + [
    ("RATE", dict(mem_len=30)),
    ("TrXL", dict(mem_len=20)),
    ("RATE", dict(n_layer=1)),
]


def span(first: int, stop: int) -> Tensor:
    """(N*K,) bool, True from step `first` to before `stop`."""
    steps = torch.arange(N * K)
    return (steps >= first) & (steps < stop)


def padded(inputs: Inputs, valid: Tensor, value: float) -> Inputs:
    """Inputs with `value` in place of what padding holds; its actions are 0."""
    observations, actions, rtg = (tensor.clone() for tensor in inputs)
    observations[~valid], actions[~valid], rtg[~valid] = value, 0, value
    return observations, actions, rtg


def alone(model: Agent, inputs: Inputs, row: int, valid: Tensor) -> Tensor:
    """Logits of one row's valid steps, run by themselves."""
    own = tuple(tensor[row : row + 1, valid[row]] for tensor in inputs)
    return logits_of(model, own)[0]


# --- padding ---

RIGHT = torch.stack([span(0, stop) for stop in (12, 9, 4, 1, 6, 8)])
BOTH = torch.stack([span(0, 12), span(4, 9), span(8, 10), span(4, 8), span(0, 3), span(0, 0)])


@pytest.mark.parametrize(("mode", "change"), PADDED, ids=str)
def test_rows_starting_in_different_segments_are_independent(mode, change):
    model, valid = small_model(mode, **change), BOTH
    if model.memory.config.sliding:  # the trajectory is one segment: padding at the left would be part of it
        valid = RIGHT
    inputs = padded(random_inputs(batch=len(valid)), valid, 50.0)
    with torch.no_grad():
        logits, _ = model(*inputs, valid)
        for row in range(len(valid)):
            if valid[row].any():
                assert (logits[row, valid[row]] - alone(model, inputs, row, valid)).abs().max() < 1e-5, row


@pytest.mark.parametrize("mode", ["RATE", "RMT", "TrXL"])
def test_segments_of_padding_cost_nothing_and_leave_memory_alone(mode):
    valid = torch.stack([span(0, 12), span(0, 4), span(4, 8), span(8, 12), span(0, 0), span(0, 6)])
    whole_padding = ~valid.view(len(valid), N, K).any(-1).repeat_interleave(K, dim=1)
    model = small_model(mode)
    inputs = padded(random_inputs(batch=len(valid)), whole_padding.logical_not(), float("nan"))
    rows = []
    model.encoder.rtg.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    logits, state = model(*inputs, valid)
    memory = state.memory
    assert sum(rows) == 3 + 1 + 1 + 1 + 0 + 2
    assert torch.equal(logits == 0, whole_padding[..., None].expand_as(logits))
    for layer in memory.cache:
        assert not layer.isnan().any()
    if memory.tokens is not None:
        assert torch.equal(memory.tokens[4], model.initial(1).memory.tokens[0])
        first = tuple(tensor[1:2, :K] for tensor in inputs)
        _, after_first = one_segment(model, first, model.initial(1).memory)
        assert (memory.tokens[1] - after_first.tokens[0]).abs().max() < 1e-5
    cloning_loss(model.spec, logits, inputs[1], valid).backward()
    assert not any(parameter.grad.isnan().any() for parameter in model.parameters() if parameter.grad is not None)


def test_a_batch_of_padding_is_no_error():
    model, inputs = small_model(), random_inputs()
    nowhere = torch.zeros_like(everywhere(inputs))
    logits, state = model(*inputs, nowhere)
    assert logits.shape == (2, N * K, 4) and not logits.any()
    assert torch.equal(state.memory.tokens, model.initial(2).memory.tokens)


def test_gradients_are_those_of_the_rows_alone():
    """Running rows in groups must not lose or double a gradient."""
    model = small_model(mem_len=30)
    inputs = padded(random_inputs(batch=len(BOTH)), BOTH, 50.0)
    logits, _ = model(*inputs, BOTH)
    gradients = torch.autograd.grad(logits[BOTH].square().sum(), list(model.parameters()))
    total = sum(alone(model, inputs, row, BOTH).square().sum() for row in range(len(BOTH)) if BOTH[row].any())
    expected = torch.autograd.grad(total, list(model.parameters()))
    for (name, _), ours, theirs in zip(model.named_parameters(), gradients, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * max(1.0, theirs.abs().max().item()), name


# --- free oracles ---


@pytest.mark.parametrize("skip_dec_ffn", [False, True])
def test_trxl_with_a_long_cache_equals_one_causal_pass(skip_dec_ffn):
    """Cached hidden states are what a pass over the whole history would compute, at every layer."""
    trxl = small_model("TrXL", mem_len=3 * N * K, n_layer=3, skip_dec_ffn=skip_dec_ffn)
    dt = small_model("DT", n_layer=3, skip_dec_ffn=skip_dec_ffn)
    dt.load_state_dict(trxl.state_dict())
    inputs = random_inputs()
    with torch.no_grad():
        assert (logits_of(trxl, inputs) - logits_of(dt, inputs)).abs().max() < 1e-5
        # A cache that falls short gives something else: the comparison can fail.
        short = small_model("TrXL", mem_len=5, n_layer=3, skip_dec_ffn=skip_dec_ffn)
        short.load_state_dict(trxl.state_dict())
        assert (logits_of(short, inputs) - logits_of(dt, inputs)).abs().max() > 1e-3


@pytest.mark.parametrize(("mode", "other"), [("RATE_wo_nmt", "TrXL"), ("DTXL", "DT")])
def test_modes_that_are_the_same_model(mode, other):
    model, twin = small_model(mode), small_model(other)
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert (logits_of(model, random_inputs()) - logits_of(twin, random_inputs())).abs().max() < 1e-5


@pytest.mark.parametrize("mode", ["RATE", "RMT", "TrXL"])
def test_the_first_segment_has_no_memory_to_differ_by(mode):
    """Without tokens a segment alone is a DT of K steps; a cache that is empty changes nothing."""
    model = small_model(mode, num_mem_tokens=0, n_head_ca=0)
    dt = rate_agent(replace(small_config("DT"), context_length=K), VECTOR).eval()
    dt.load_state_dict(model.state_dict())
    inputs = random_inputs(steps=K)
    with torch.no_grad():
        assert (logits_of(model, inputs) - logits_of(dt, inputs)).abs().max() < 1e-5


# --- attention maps ---


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("mode", "change"), [*PADDED, ("RATE", dict(context_length=13))], ids=str)
def test_attention_maps_are_those_of_the_fast_path(mode, change, arch):
    model = small_model(mode, arch=arch, **change)
    n, steps = model.memory.config.num_mem_tokens, model.memory.config.context_length
    inputs = random_inputs(steps=3 * steps if steps > K else N * K)
    with torch.no_grad():
        _, final = model(*inputs, everywhere(inputs))
    seen = model.inspect(*inputs)
    segments, memories = seen["attention"], seen["states"]
    assert len(memories) == len(segments) + 1
    if n:
        assert torch.equal(memories[0].tokens, model.initial(2).memory.tokens)
        assert (memories[-1].tokens - final.memory.tokens).abs().max() < 1e-5
    cached = 0
    for segment in segments:
        q = 2 * n + 3 * segment.layout.steps
        visible = attention_mask(q=q, m=cached, n=n)
        assert segment.attention.shape == (model.memory.config.n_layer, 2, 2, q, cached + q)
        assert segment.attention.dtype == torch.float32
        assert (segment.attention.sum(-1) - 1).abs().max() < 1e-5
        assert torch.equal(segment.attention > 0, visible.expand_as(segment.attention))
        cached = min(cached + q, model.memory.config.mem_len)


# --- compilation ---


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None and shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_equals_eager():
    """One layer and two segments: compiling unrolls both, and takes a minute or more."""
    model, inputs = small_model(n_layer=1), random_inputs(steps=2 * K)
    expected = logits_of(model, inputs)
    expected_gradients = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    logits, _ = torch.compile(model)(*inputs, everywhere(inputs))
    gradients = torch.autograd.grad(logits.square().sum(), list(model.parameters()))
    assert (logits - expected).abs().max() < 1e-5
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * max(1.0, theirs.abs().max().item())


# --- dropout and images ---


def test_eval_mode_has_no_dropout_and_training_has():
    """The valve's too: published, it drops in eval mode as well."""
    inputs = random_inputs()
    for change in (dict(dropout=0.3), dict(dropatt=0.3)):
        model = small_model(**change)
        assert torch.equal(logits_of(model, inputs), logits_of(model, inputs))
        assert torch.equal(logits_of(model, inputs), logits_of(small_model(), inputs))
        model.train()
        assert not torch.equal(logits_of(model, inputs), logits_of(model, inputs))


def test_the_valve_drops_attention_in_training_only():
    model = small_model(dropatt=0.5)
    old, written = torch.randn(2, 3, 16), torch.randn(2, 3, 16)
    assert torch.equal(model.memory.valve(old, written), model.memory.valve(old, written))
    model.memory.valve.train()
    assert not torch.equal(model.memory.valve(old, written), model.memory.valve(old, written))


def test_images_may_be_bytes():
    spec = EnvironmentSpec(observation_shape=(3, 64, 64), num_actions=3, observation_scale=1 / 255, conv_padding=2)
    model = small_model(spec=spec)
    images = torch.randint(0, 256, (1, K, 3, 64, 64), dtype=torch.uint8)
    _, actions, rtg = random_inputs(batch=1, steps=K, spec=spec)
    with torch.no_grad():
        assert torch.equal(logits_of(model, (images, actions, rtg)), logits_of(model, (images.float(), actions, rtg)))


def test_bytes_are_the_same_images_in_bfloat16():
    """They are not made floats first: that would move four times as much memory."""
    spec = EnvironmentSpec(observation_shape=(3, 64, 64), num_actions=3, observation_scale=1 / 255, conv_padding=2)
    encoder = TokenEncoder(spec, 8)
    images = torch.arange(256, dtype=torch.uint8).repeat(48).view(1, 1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        tokens, expected = (encoder.encode_observations(kind) for kind in (images, images.float()))
    assert tokens.dtype == torch.bfloat16 and torch.equal(tokens, expected)


def test_convolutions_may_have_fewer_channels():
    spec = EnvironmentSpec(observation_shape=(4, 84, 84), num_actions=3, conv_channels=(16, 32, 24))
    encoder = TokenEncoder(spec, 8)
    weights = [parameter.shape for parameter in encoder.observation.parameters() if parameter.ndim == 4]
    assert weights == [(16, 4, 8, 8), (32, 16, 4, 4), (24, 32, 3, 3)]
    assert encoder.encode_observations(torch.zeros(1, 2, 4, 84, 84)).shape == (1, 2, 8)
    for wrong in ((32, 64), (32, 0, 64)):
        with pytest.raises(ValueError, match="conv_channels"):
            EnvironmentSpec(observation_shape=(4, 84, 84), num_actions=3, conv_channels=wrong)


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="too small"):
        ImageEncoder(EnvironmentSpec(observation_shape=(3, 20, 20), num_actions=2), 16)


@pytest.mark.parametrize("tanh", [False, True])
def test_calibration_gives_tokens_of_size_one_that_see_motion(tanh):
    """A still picture of strong contrasts, and one weak pixel that moves."""
    torch.manual_seed(0)
    spec = EnvironmentSpec(
        observation_shape=(4, 84, 84), num_actions=3, observation_scale=1 / 255, observation_tanh=tanh
    )  # fmt: skip
    frames = torch.randint(0, 256, (1, 1, 1, 84, 84), dtype=torch.uint8).repeat(96, 7, 1, 1, 1)
    for row in range(96):
        for step in range(7):
            frames[row, step, 0, (row * 7) % 70 + step, (row * 13) % 80] = 255
    stack = FrameStack(frames, 4)
    encoder = TokenEncoder(spec, 32)
    image_encoder = encoder.observation[0] if tanh else encoder.observation

    def spread() -> float:
        """How much tokens differ between observations, against their size."""
        tokens = image_encoder(stack.dense().flatten(0, 1))
        return (tokens.std(dim=0).mean() / tokens.square().mean().sqrt()).item()

    with torch.no_grad():
        before = spread()
        encoder.calibrate(stack)
        tokens = image_encoder(stack.dense().flatten(0, 1))
        assert spread() > 0.9 > 5 * before
    torch.testing.assert_close(tokens.std(dim=0), torch.ones(32), atol=1e-3, rtol=0)
    torch.testing.assert_close(tokens.mean(dim=0), torch.zeros(32), atol=1e-3, rtol=0)
    still = image_encoder.convolutions[0].weight.sum(dim=1).abs().amax(dim=(1, 2))
    assert still[:16].max() < 1e-4 < 1e-2 < still[16:].min()
    with pytest.raises(ValueError, match="not images"):
        TokenEncoder(VECTOR, 32).calibrate(torch.zeros(1, 1, 4))


# --- loss ---


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
def test_padding_does_not_change_the_loss(spec):
    _, actions, _ = random_inputs(batch=3, spec=spec)
    predictions = torch.randn(3, N * K, spec.num_actions)
    valid = RIGHT[:3]
    rows = [
        cloning_loss(spec, predictions[b : b + 1, valid[b]], actions[b : b + 1, valid[b]], valid[b : b + 1, valid[b]])
        for b in range(3)
    ]
    mean = sum(loss * valid[b].sum() for b, loss in enumerate(rows)) / valid.sum()
    loss = cloning_loss(spec, predictions, actions, valid)
    assert loss.shape == () and (loss - mean).abs() < 1e-6
    predictions[~valid] = float("inf")
    assert (cloning_loss(spec, predictions, actions, valid) - mean).abs() < 1e-6


def test_the_losses_are_cross_entropy_and_squared_error():
    valid = torch.ones(1, 2, dtype=torch.bool)
    logits = torch.tensor([[[0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0]]])
    expected = (torch.log(torch.tensor(4.0)) + torch.log(torch.e**2 + torch.tensor(3.0)) - 2) / 2
    assert (cloning_loss(VECTOR, logits, torch.tensor([[1, 0]]), valid) - expected).abs() < 1e-6
    squared = cloning_loss(CONTINUOUS, torch.zeros(1, 2, 2), torch.tensor([[[1.0, 0.0], [0.5, 0.5]]]), valid)
    assert (squared - (0.5 + 0.25) / 2).abs() < 1e-6


@pytest.mark.parametrize("spec", [VECTOR, CONTINUOUS], ids=["discrete", "continuous"])
def test_the_loss_of_nothing_but_padding_is_zero(spec):
    model, inputs = small_model(spec=spec), random_inputs(spec=spec)
    predictions = logits_of(model, inputs)
    loss = cloning_loss(spec, predictions, inputs[1], torch.zeros_like(everywhere(inputs)))
    assert loss == 0
    loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


# --- wrong configurations ---

WRONG = [
    (dict(n_head_ca=3), "--n_head_ca 3"),
    (dict(num_mem_tokens=0), "--nmt 0"),
    (dict(num_mem_tokens=-1), "--nmt -1"),
    (dict(mem_len=-3), "--mem_len -3"),
    (dict(n_head_ca=-2), "--n_head_ca -2"),
    *(
        (dict([(name, value)]), f"--{name} {value}")
        for name in ("n_layer", "n_head", "d_head", "d_inner")
        for value in (0, -1)
    ),
    (dict(d_model=0), "--d_model 0"),
    (dict(context_length=0), "--context_length 0"),
    (dict(d_model=15, n_head_ca=3), "--d_model 15"),
    (dict(dropout=1.0), "--dropout 1.0"),
    (dict(dropatt=-0.1), "--dropatt -0.1"),
    (dict(arch="GTRXL"), "--arch_mode GTRXL: the value must be"),
    (dict(mrv_act="gelu"), "--mrv_act gelu: the value must be"),
]


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message for _, message in WRONG])
def test_a_wrong_size_is_told_by_its_flag(change, message):
    with pytest.raises(UserError) as error:
        rate_agent(small_config(**change), VECTOR)
    assert message in str(error.value)


@pytest.mark.parametrize("mode", MODES)
def test_negative_size_is_refused_even_if_unused(mode):
    for change in (dict(num_mem_tokens=-1, n_head_ca=0), dict(mem_len=-1), dict(n_head_ca=-1)):
        with pytest.raises(UserError, match=r"--(nmt|mem_len|n_head_ca) -1: must be 0"):
            small_config(mode, **change)


def test_a_wrong_choice_names_what_is_allowed():
    with pytest.raises(UserError, match="--model_mode 'Rate'.*RATE_wo_nmt"):
        small_config("Rate")
    with pytest.raises(UserError, match="GTrXL"):
        rate_agent(small_config(arch="x"), VECTOR)
    with pytest.raises(UserError, match="leaky_relu"):
        rate_agent(small_config(mrv_act="x"), VECTOR)
    with pytest.raises(UserError, match="1, 2, 4, 8, 16"):
        rate_agent(small_config(n_head_ca=5), VECTOR)


def test_the_mode_table():
    """Memory tokens, MRV heads, cache, context, sliding: what each mode leaves of 3, 2, 8 and 4 steps times 3."""
    expected = {
        "RATE": (3, 2, 8, 4, False),
        "RATEM": (3, 2, 0, 4, False),
        "RMT": (3, 0, 0, 4, False),
        "TrXL": (0, 0, 8, 4, False),
        "RATE_wo_nmt": (0, 0, 8, 4, False),
        "DT": (0, 0, 0, 12, True),
        "DTXL": (0, 0, 8, 12, True),
    }
    configs = {mode: small_config(mode) for mode in MODES}
    fields = ("num_mem_tokens", "n_head_ca", "mem_len", "context_length", "sliding")
    assert {mode: tuple(getattr(c, field) for field in fields) for mode, c in configs.items()} == expected
    assert all(configs[mode].n_layer == 2 and configs[mode].d_inner == 24 for mode in MODES)


def test_an_image_token_begins_no_smaller_than_the_image():
    """PyTorch's default layers would shrink it fifty times against the tokens of actions and returns."""
    torch.manual_seed(0)
    spec = EnvironmentSpec(observation_shape=(3, 84, 84), num_actions=3, observation_scale=1 / 255)
    encoder = TokenEncoder(spec, 64)
    images = torch.randint(0, 256, (8, 1, 3, 84, 84), dtype=torch.uint8)
    tokens = encoder.encode_observations(images)
    assert tokens.square().mean().sqrt() > 0.5 * (images / 255).square().mean().sqrt()
