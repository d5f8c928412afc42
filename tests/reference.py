"""A slow, obvious second implementation of the published model, in eval mode, to test the real one against.

It is written from the description of the published system alone and shares no code with RATE_model. Nothing here is
clever: the mask is filled entry by entry, the relative shift is the pad-and-reshape of Transformer-XL on the whole
(q, k) matrix, keys and values of the cache are computed again in every segment, and the head runs on all positions
before the step tokens are cut out. There is no dropout. The cache carries no gradient, as published; memory tokens do
(published training cuts them from one segment to the next, which changes no value).

Weights are a dict of tensors under the published names (see `random_weights`); `meta` is the dict that recordings of
the published model carry: env, arch_mode, segment_length K, num_segments N, n_layer, n_head, d_model, d_head, d_inner,
num_mem_tokens n, n_head_ca, mem_len, mrv_act, skip_dec_ffn, mem_at_end, state_dim, act_dim.

Shapes: B batch, L steps of one segment, d = d_model, H heads of d_head, q tokens of the segment, m cached tokens,
k = m + q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Weights = dict[str, Tensor]

# What each environment's encoders and head are in the published model. `image`: (channels, height, width); `padding`
# that of all three convolutions; `flat`: size after them; `rows`: of the action table, beyond one for each action.
VARIANTS: dict[str, dict] = {
    "tmaze": dict(rows=1, action_tanh=True, rtg_tanh=False),
    "doom": dict(image=(3, 64, 112), padding=0, flat=2560, image_tanh=True, rows=0, action_tanh=True, rtg_tanh=True),
    "minigrid_memory": dict(
        image=(3, 84, 84), padding=0, flat=3136, image_tanh=False, rows=0, action_tanh=False, rtg_tanh=False
    ),
    "memory_maze": dict(
        image=(3, 64, 64), padding=2, flat=7744, image_tanh=True, rows=0, action_tanh=True, rtg_tanh=True
    ),
    "atari": dict(image=(4, 84, 84), padding=0, flat=3136, image_tanh=True, rows=0, action_tanh=True, rtg_tanh=True),
    "mujoco": dict(continuous=True, action_tanh=False, rtg_tanh=False),
    # Differences of branch `main` of the authors' repository.
    "minigrid_memory, main": dict(
        image=(3, 84, 84), padding=0, flat=3136, image_tanh=False, rows=1, action_tanh=False, rtg_tanh=False,
        nested_actions=True,
    ),
    "mujoco_tanh": dict(continuous=True, action_tanh=True, rtg_tanh=False),
    "popgym": dict(rows=1, action_tanh=False, rtg_tanh=False, nested_actions=True),
}  # fmt: skip

ACTIVATIONS = {
    "relu": lambda x: torch.clamp(x, min=0),
    "leaky_relu": lambda x: torch.where(x > 0, x, 0.01 * x),
    "elu": lambda x: torch.where(x > 0, x, torch.exp(x) - 1),
    "tanh": torch.tanh,
    "no_act": lambda x: x,
}


class Segment(NamedTuple):
    """What one segment gives: logits (B, L, A), memory (B, n, d) or None, cache: one (B, m, d) per layer or None."""

    logits: Tensor
    memory: Tensor | None
    cache: list[Tensor] | None


# --- pieces ---


def linear(weights: Weights, name: str, x: Tensor) -> Tensor:
    """x W^T (+ b if there is one)."""
    y = x @ weights[f"{name}.weight"].T
    bias = weights.get(f"{name}.bias")
    return y if bias is None else y + bias


def layer_norm(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Normalise the last axis (epsilon 1e-5, biased variance), then scale and shift."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def distance_table(k: int, d: int, dtype: torch.dtype) -> Tensor:
    """Sines then cosines of the distances k-1, k-2, ..., 0: (k, d)."""
    inverse_frequency = 1 / (10000 ** (torch.arange(0, d, 2, dtype=dtype) / d))
    rows = []
    for distance in range(k - 1, -1, -1):
        angle = distance * inverse_frequency
        rows.append(torch.cat([torch.sin(angle), torch.cos(angle)]))
    return torch.stack(rows)


def relative_shift(scores: Tensor) -> Tensor:
    """Pad a zero column at the left of (..., q, k), read that as (k+1, q), drop a row, read it as (q, k) again."""
    *batch, q, k = scores.shape
    padded = torch.cat([scores.new_zeros(*batch, q, 1), scores], dim=-1)
    return padded.reshape(*batch, k + 1, q)[..., 1:, :].reshape(*batch, q, k)


def allowed(i: int, j: int, *, q: int, m: int, n: int) -> bool:
    """Whether row i of the segment may attend to column j of [cache (m); segment (q)]; n memory tokens at each end."""
    own = j - m  # position of the column inside the segment; negative in the cache
    reads = i < n
    writes = n > 0 and i >= q - n
    if (reads or writes) and j < m:
        return False
    if reads and 0 <= own < n:
        return True
    if writes and own >= q - n:
        return True
    return own <= i


def attention_mask(*, q: int, m: int, n: int) -> Tensor:
    """(q, m+q) bool, True = may attend."""
    return torch.tensor([[allowed(i, j, q=q, m=m, n=n) for j in range(m + q)] for i in range(q)])


def attention(weights: Weights, name: str, x: Tensor, cache: Tensor | None, *, meta: dict) -> Tensor:
    """The output projection of relative attention of x (B, q, d) over [cache; x], without the residual: (B, q, d)."""
    heads, size = meta["n_head"], meta["d_head"]
    both = x if cache is None else torch.cat([cache, x], dim=1)
    batch, q, k = x.shape[0], x.shape[1], both.shape[1]
    query, key, value = linear(weights, f"{name}.qkv_net", both).chunk(3, dim=-1)
    query = query[:, -q:].reshape(batch, q, heads, size)
    key = key.reshape(batch, k, heads, size)
    value = value.reshape(batch, k, heads, size)
    table = linear(weights, f"{name}.r_net", distance_table(k, meta["d_model"], x.dtype)).reshape(k, heads, size)
    content = torch.einsum("bihc,bjhc->bhij", query + weights["r_w_bias"], key)
    position = relative_shift(torch.einsum("bihc,rhc->bhir", query + weights["r_r_bias"], table))
    scores = (content + position) / math.sqrt(size)
    mask = attention_mask(q=q, m=k - q, n=meta["num_mem_tokens"])
    probabilities = torch.softmax(scores.masked_fill(~mask, -math.inf), dim=-1)
    context = torch.einsum("bhij,bjhc->bihc", probabilities, value).reshape(batch, q, heads * size)
    return linear(weights, f"{name}.o_net", context)


def feed_forward(weights: Weights, name: str, x: Tensor) -> Tensor:
    """Linear, ReLU, Linear."""
    return linear(weights, f"{name}.CoreNet.3", torch.relu(linear(weights, f"{name}.CoreNet.0", x)))


def gate(weights: Weights, name: str, x: Tensor, y: Tensor) -> Tensor:
    """The GRU gate of GTrXL: x is the stream, y what the sub-layer adds."""
    reset = torch.sigmoid(linear(weights, f"{name}.Wr", y) + linear(weights, f"{name}.Ur", x))
    update = torch.sigmoid(linear(weights, f"{name}.Wz", y) + linear(weights, f"{name}.Uz", x) - weights[f"{name}.bg"])
    candidate = torch.tanh(linear(weights, f"{name}.Wg", y) + linear(weights, f"{name}.Ug", reset * x))
    return (1 - update) * x + update * candidate


def layer(weights: Weights, index: int, x: Tensor, cache: Tensor | None, *, meta: dict) -> Tensor:
    """One decoder layer on x (B, q, d), with the cached inputs of this layer from earlier segments."""
    name = f"layers.{index}"
    ffn = not meta["skip_dec_ffn"]
    if meta["arch_mode"] == "TrXL":
        attended = x + attention(weights, f"{name}.dec_attn", x, cache, meta=meta)
        y = layer_norm(weights, f"{name}.layer_norm1", x + attended)
        if not ffn:
            return y
        return layer_norm(weights, f"{name}.layer_norm2", y + feed_forward(weights, f"{name}.pos_ff", y))
    gated = {"TrXL-I": False, "GTrXL": True}[meta["arch_mode"]]
    z = layer_norm(weights, f"{name}.layer_norm1", x)
    a = torch.relu(z + attention(weights, f"{name}.dec_attn", z, cache, meta=meta))
    y = gate(weights, f"{name}.gate1", x, a) if gated else x + a
    if not ffn:
        return y
    f = torch.relu(feed_forward(weights, f"{name}.pos_ff", layer_norm(weights, f"{name}.layer_norm2", y)))
    return gate(weights, f"{name}.gate2", y, f) if gated else y + f


def retention_valve(weights: Weights, old: Tensor, written: Tensor, *, meta: dict) -> Tensor:
    """The memory retention valve: old memory (B, n, d) asks, the activated written memory answers; no residual."""
    name, heads = "mha_mem_to_mem", meta["n_head_ca"]
    activated = ACTIVATIONS[meta["mrv_act"]](written)
    batch, n, d = old.shape
    size = d // heads
    query = linear(weights, f"{name}.wq", old).reshape(batch, n, heads, size)
    key = linear(weights, f"{name}.wk", activated).reshape(batch, n, heads, size)
    value = linear(weights, f"{name}.wv", activated).reshape(batch, n, heads, size)
    probabilities = torch.softmax(torch.einsum("bihc,bjhc->bhij", query, key) / math.sqrt(size), dim=-1)
    return linear(weights, f"{name}.dense", torch.einsum("bhij,bjhc->bihc", probabilities, value).reshape(batch, n, d))


# --- the model ---


def find(weights: Weights, *names: str) -> str:
    """The first of `names` that has a weight."""
    return next(name for name in names if f"{name}.weight" in weights)


def encode_observations(weights: Weights, observations: Tensor, *, env: str) -> Tensor:
    """(B, L, S) vectors, or (B, L, C, H, W) images between 0 and 1, to (B, L, d)."""
    variant = VARIANTS[env]
    if "image" not in variant:
        return linear(weights, "state_encoder", observations)
    batch, steps = observations.shape[:2]
    x = observations.reshape(batch * steps, *observations.shape[2:])
    for index, stride in ((0, 4), (2, 2), (4, 1)):
        kernel, bias = weights[f"state_encoder.{index}.weight"], weights[f"state_encoder.{index}.bias"]
        x = torch.relu(functional.conv2d(x, kernel, bias, stride=stride, padding=variant["padding"]))
    x = linear(weights, "state_encoder.7", x.reshape(batch * steps, -1))
    x = torch.tanh(x) if variant["image_tanh"] else x
    return x.reshape(batch, steps, -1)


def encode_actions(weights: Weights, actions: Tensor, *, env: str) -> Tensor:
    """(B, L, 1) ids or (B, L, A) floats to (B, L, d)."""
    variant = VARIANTS[env]
    name = find(weights, "action_embeddings.0", "action_embeddings")
    if variant.get("continuous"):
        x = linear(weights, name, actions)
    else:
        x = weights[f"{name}.weight"][actions[..., 0]]
    return torch.tanh(x) if variant["action_tanh"] else x


def encode_returns(weights: Weights, rtg: Tensor, *, env: str) -> Tensor:
    """(B, L, 1) to (B, L, d)."""
    x = linear(weights, find(weights, "ret_emb.0", "ret_emb"), rtg)
    return torch.tanh(x) if VARIANTS[env]["rtg_tanh"] else x


def action_head(weights: Weights, hidden: Tensor, *, env: str) -> Tensor:
    """(B, q, d) to (B, q, A): logits, or their Tanh for continuous actions."""
    x = linear(weights, find(weights, "head.0", "head"), hidden)
    return torch.tanh(x) if VARIANTS[env].get("continuous") else x


def segment(
    weights: Weights,
    meta: dict,
    observations: Tensor,
    actions: Tensor,
    rtg: Tensor,
    memory: Tensor | None,
    cache: list[Tensor] | None,
) -> Segment:
    """One segment, training form (every step's action is a token). Shapes as in a recording, observations float."""
    env, n = meta["env"], meta["num_mem_tokens"]
    batch, steps = observations.shape[:2]
    of_return = encode_returns(weights, rtg, env=env)
    of_observation = encode_observations(weights, observations, env=env)
    of_action = encode_actions(weights, actions, env=env)
    tokens = []
    for t in range(steps):
        tokens += [of_return[:, t], of_observation[:, t], of_action[:, t]]
    hidden = torch.stack(tokens, dim=1)
    if n:
        hidden = torch.cat([memory, hidden, memory], dim=1)
    inputs = []
    for index in range(meta["n_layer"]):
        inputs.append(hidden)
        hidden = layer(weights, index, hidden, None if cache is None else cache[index], meta=meta)
    logits = action_head(weights, hidden, env=env)[:, n : n + 3 * steps][:, 1::3]
    new_memory = None
    if n:
        new_memory = hidden[:, -n:]
        if meta["n_head_ca"]:
            new_memory = retention_valve(weights, memory, new_memory, meta=meta)
    new_cache = None
    if meta["mem_len"]:
        old = [x[:, :0] for x in inputs] if cache is None else cache
        new_cache = [torch.cat([o, x], dim=1)[:, -meta["mem_len"] :].detach() for o, x in zip(old, inputs, strict=True)]
    return Segment(logits, new_memory, new_cache)


def trajectory(weights: Weights, meta: dict, observations: Tensor, actions: Tensor, rtg: Tensor) -> list[Segment]:
    """All segments of a trajectory, each from the memory and cache of the one before."""
    steps = meta["segment_length"]
    memory, cache = None, None
    if meta["num_mem_tokens"]:
        memory = weights["mem_tokens"].transpose(0, 1).expand(observations.shape[0], -1, -1)
    results = []
    for start in range(0, observations.shape[1], steps):
        cut = slice(start, start + steps)
        result = segment(weights, meta, observations[:, cut], actions[:, cut], rtg[:, cut], memory, cache)
        memory, cache = result.memory, result.cache
        results.append(result)
    return results


# --- training ---


def segment_loss(meta: dict, logits: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error of continuous actions, else the mean cross-entropy of targets (B, L) that are not -10."""
    if VARIANTS[meta["env"]].get("continuous"):
        return ((logits - targets) ** 2).mean()
    return functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-10)


def training_losses(
    weights: Weights,
    meta: dict,
    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]],
    *,
    learning_rate: float,
    betas: tuple[float, float],
    weight_decay: float,
    clip: float,
    rate: Callable[[int, int], float],
) -> list[list[float]]:
    """The published training loop: a forward and a backward pass and an optimizer step for every segment.

    Memory tokens are cut from one segment to the next, all parameters are decayed, and nothing else happens: the
    losses of every batch's segments.

    Args:
        weights: trained in place.
        batches: observations, actions and returns as in a recording, and targets (B, N*K) or (B, N*K, A); the targets
            of padding are -10.
        rate: (optimizer steps done, targets seen) to the fraction of the learning rate for the next step.
    """
    for tensor in weights.values():
        tensor.requires_grad_()
    optimizer = torch.optim.AdamW(list(weights.values()), lr=learning_rate, betas=betas, weight_decay=weight_decay)
    steps, seen, losses = 0, 0, []
    for observations, actions, rtg, targets in batches:
        memory = weights["mem_tokens"].transpose(0, 1).expand(observations.shape[0], -1, -1)
        cache, of_batch = None, []
        for start in range(0, observations.shape[1], meta["segment_length"]):
            cut = slice(start, start + meta["segment_length"])
            if start:
                memory = memory.detach()
            result = segment(weights, meta, observations[:, cut], actions[:, cut], rtg[:, cut], memory, cache)
            memory, cache = result.memory, result.cache
            loss = segment_loss(meta, result.logits, targets[:, cut])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(list(weights.values()), clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * rate(steps, seen)
            optimizer.step()
            steps += 1
            seen += int((targets[:, cut] >= 0).sum())
            of_batch.append(float(loss.detach()))
        losses.append(of_batch)
    return losses


# --- made-up models and data ---


def make_meta(**changes) -> dict:
    """A small model's meta (T-Maze, RATE with FFN and MRV, no cache), with `changes`."""
    meta = dict(
        case="made up", env="tmaze", arch_mode="TrXL", segment_length=4, num_segments=3, batch=2, n_layer=2, n_head=3,
        d_model=16, d_head=8, d_inner=24, num_mem_tokens=3, n_head_ca=2, mem_len=0, mrv_act="relu", skip_dec_ffn=False,
        mem_at_end=True,
    )  # fmt: skip
    meta.update(changes)
    sizes = {
        "tmaze": (4, 4), "doom": (3, 5), "minigrid_memory": (3, 4), "minigrid_memory, main": (3, 4),
        "memory_maze": (3, 6), "atari": (4, 4), "popgym": (4, 4),
    }  # fmt: skip
    state_dim, act_dim = sizes.get(meta["env"], (11, 3))
    meta.setdefault("state_dim", state_dim)
    meta.setdefault("act_dim", act_dim)
    if not meta["num_mem_tokens"]:
        meta["mem_at_end"] = False
    return meta


class _Maker:
    """Draws weights: matrices of standard deviation 1/sqrt(inputs), so that no activation saturates; biases 0.2."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: Weights = {}

    def draw(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        return torch.randn(*shape, generator=self.generator) * scale + shift

    def linear(self, name: str, inputs: int, outputs: int, *, bias: bool = True) -> None:
        self.weights[f"{name}.weight"] = self.draw(outputs, inputs, scale=inputs**-0.5)
        if bias:
            self.weights[f"{name}.bias"] = self.draw(outputs, scale=0.2)

    def norm(self, name: str, size: int) -> None:
        self.weights[f"{name}.weight"] = self.draw(size, scale=0.2, shift=1.0)
        self.weights[f"{name}.bias"] = self.draw(size, scale=0.2)


def _random_encoders(make: _Maker, meta: dict) -> None:
    """Encoders and head of meta's environment."""
    variant, d, act_dim = VARIANTS[meta["env"]], meta["d_model"], meta["act_dim"]
    make.linear("ret_emb.0" if variant["rtg_tanh"] else "ret_emb", 1, d)
    if "image" in variant:
        previous = variant["image"][0]
        for index, channels, size in ((0, 32, 8), (2, 64, 4), (4, 64, 3)):
            fan_in = previous * size * size
            name = f"state_encoder.{index}"
            make.weights[f"{name}.weight"] = make.draw(channels, previous, size, size, scale=fan_in**-0.5)
            make.weights[f"{name}.bias"] = make.draw(channels, scale=0.2)
            previous = channels
        make.linear("state_encoder.7", variant["flat"], d)
    else:
        make.linear("state_encoder", meta["state_dim"], d)
    name = "action_embeddings.0" if variant.get("nested_actions", variant["action_tanh"]) else "action_embeddings"
    if variant.get("continuous"):
        make.linear(name, act_dim, d)
        make.linear("head.0", d, act_dim)
    else:
        make.weights[f"{name}.weight"] = make.draw(act_dim + variant["rows"], d)
        make.linear("head", d, act_dim, bias=False)


def _random_layer(make: _Maker, name: str, meta: dict) -> None:
    """One decoder layer, with the norms that the published one allocates and does not use."""
    d, inner = meta["d_model"], meta["n_head"] * meta["d_head"]
    make.linear(f"{name}.dec_attn.qkv_net", d, 3 * inner, bias=False)
    make.linear(f"{name}.dec_attn.o_net", inner, d, bias=False)
    make.norm(f"{name}.dec_attn.layer_norm", d)
    make.linear(f"{name}.dec_attn.r_net", d, inner, bias=False)
    make.norm(f"{name}.layer_norm1", d)
    ffn = not meta["skip_dec_ffn"]
    if ffn:
        make.linear(f"{name}.pos_ff.CoreNet.0", d, meta["d_inner"])
        make.linear(f"{name}.pos_ff.CoreNet.3", meta["d_inner"], d)
        make.norm(f"{name}.pos_ff.layer_norm", d)
        make.norm(f"{name}.layer_norm2", d)
    if meta["arch_mode"] == "GTrXL":
        for part in ("gate1", "gate2") if ffn else ("gate1",):
            for matrix in ("Wr", "Ur", "Wz", "Uz", "Wg", "Ug"):
                make.linear(f"{name}.{part}.{matrix}", d, d, bias=False)
            make.weights[f"{name}.{part}.bg"] = make.draw(d, shift=1.0)


def random_weights(meta: dict, seed: int) -> Weights:
    """A float32 state dict of the model that `meta` describes, under the published names; a function of `seed` only."""
    make = _Maker(seed)
    d, n = meta["d_model"], meta["num_mem_tokens"]
    if n:
        make.weights["mem_tokens"] = make.draw(n, 1, d)
    make.weights["r_w_bias"] = make.draw(meta["n_head"], meta["d_head"], scale=0.5)
    make.weights["r_r_bias"] = make.draw(meta["n_head"], meta["d_head"], scale=0.5)
    _random_encoders(make, meta)
    if n and meta["n_head_ca"]:
        for part in ("wq", "wk", "wv", "dense"):
            make.linear(f"mha_mem_to_mem.{part}", d, d)
    for index in range(meta["n_layer"]):
        _random_layer(make, f"layers.{index}", meta)
    make.weights["pos_emb.inv_freq"] = 1 / (10000 ** (torch.arange(0.0, d, 2.0) / d))
    return make.weights


def random_data(meta: dict, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Observations (B, N*K, ...) float32 vectors or uint8 images, actions (B, N*K, 1) int64 or (B, N*K, A) float32, rtg
    (B, N*K, 1) float32."""
    generator = torch.Generator().manual_seed(seed)
    variant = VARIANTS[meta["env"]]
    batch, steps = meta["batch"], meta["segment_length"] * meta["num_segments"]
    if "image" in variant:
        observations = torch.randint(0, 256, (batch, steps, *variant["image"]), generator=generator, dtype=torch.uint8)
    else:
        observations = torch.randn(batch, steps, meta["state_dim"], generator=generator)
    if variant.get("continuous"):
        actions = torch.rand(batch, steps, meta["act_dim"], generator=generator) * 2 - 1
    else:
        actions = torch.randint(0, meta["act_dim"], (batch, steps, 1), generator=generator)
    return observations, actions, torch.randn(batch, steps, 1, generator=generator)
