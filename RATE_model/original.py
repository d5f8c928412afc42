"""Weights of the published RATE code under this project's names.

    python -m RATE_model.original CHECKPOINT --variant tmaze --context_length 30 --n_head_ca 4 --output DIRECTORY

The published checkpoints are bare state dicts. Sizes are read off the weights; what cannot be seen there (which encoder
variant, the heads and activation of the MRV, the cache length, the segment length) is said with flags.
"""

import argparse
import pickle
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

if __name__ == "__main__":  # started as a script
    from RATE_model.system.interrupts import quit_on_signals

    quit_on_signals()  # while the imports below take their seconds

import torch
from torch import Tensor, nn

from RATE_model.cli.options import exit_on_user_error
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import ACTIVATIONS, ARCHS, ModelConfig
from RATE_model.memories.rate.model import RATE
from RATE_model.spec import EnvironmentSpec
from RATE_model.training.checkpoints import has_checkpoints, save_checkpoint

_IMAGE = {"observation_scale": 1 / 255}

# The encoder variants of the published code, by the value of its `mode` argument. This is the one place of the package
# that knows environments by name: published checkpoints do not say what they are.
VARIANTS: dict[str, EnvironmentSpec] = {
    "tmaze": EnvironmentSpec(observation_shape=(4,), num_actions=4, action_embeddings=5, action_tanh=True),
    "aar": EnvironmentSpec(observation_shape=(3,), num_actions=3, action_embeddings=4, action_tanh=True),
    "doom": EnvironmentSpec(
        observation_shape=(3, 64, 112), num_actions=5,
        observation_tanh=True, action_tanh=True, return_tanh=True, **_IMAGE,
    ),
    "minigrid_memory": EnvironmentSpec(observation_shape=(3, 84, 84), num_actions=4, **_IMAGE),
    "memory_maze": EnvironmentSpec(
        observation_shape=(3, 64, 64), num_actions=6, conv_padding=2,
        observation_tanh=True, action_tanh=True, return_tanh=True, **_IMAGE,
    ),
    "atari": EnvironmentSpec(
        observation_shape=(4, 84, 84), num_actions=4,
        observation_tanh=True, action_tanh=True, return_tanh=True, **_IMAGE,
    ),
    "mujoco": EnvironmentSpec(observation_shape=(11,), num_actions=3, continuous=True),
    "maniskill-pushcube": EnvironmentSpec(
        observation_shape=(3, 128, 128), num_actions=8, continuous=True, observation_tanh=True, **_IMAGE,
    ),
}  # fmt: skip

# Parameters that the published model allocates and never uses.
_UNUSED = re.compile(
    r"pos_emb\.inv_freq|.*(dec_attn|pos_ff)\.layer_norm\..*|(embed_|crit|word_emb|out_|loss|cluster|timestep|mask).*"
)
# Weights whose sizes are those of the model.
_DIMENSIONS = {
    "r_w_bias": 2,
    "layers.0.dec_attn.r_net.weight": 2,
    "layers.0.pos_ff.CoreNet.0.weight": 2,
    "mem_tokens": 3,
}
# Gates have been written under several names, such as gate1.Wr.weight and gate_mha.linear_u_z.weight.
_GATE = re.compile(
    r"layers\.(\d+)\.([^.]*gat[^.]*)\.(?:linear_)?(?:([wu])_?([rzgh])(?:\.weight)?|b(?:ias|_?[gz])?)$", re.IGNORECASE
)


def infer_config(weights: Mapping[str, Tensor], *, n_head_ca: int, context_length: int, **known: object) -> ModelConfig:
    """The sizes of a published model, from its weights.

    Args:
        weights: the published state dict.
        n_head_ca: heads of the MRV, which no shape tells; must be 0 exactly when the weights hold none.
        context_length: steps of one segment.
        known: other fields of `ModelConfig` that cannot be inferred (`mem_len`, `mrv_act`, `arch`, `sliding`).

    Raises:
        UserError: these are not the weights of a published model, or they contradict the arguments.
    """
    if missing := {"r_w_bias", "r_r_bias", "layers.0.dec_attn.r_net.weight"} - set(weights):
        raise UserError(f"not a state dict of the published RATE code: it has no {', '.join(sorted(missing))}")
    for name, dimensions in _DIMENSIONS.items():
        if name in weights and weights[name].ndim != dimensions:
            shape = tuple(weights[name].shape)
            raise UserError(f"{name}: weights of shape {shape}, expected {dimensions} dimensions")
    n_head, d_head = weights["r_w_bias"].shape
    d_model = weights["layers.0.dec_attn.r_net.weight"].shape[1]
    has_valve = "mha_mem_to_mem.wq.weight" in weights
    if has_valve != bool(n_head_ca):
        holds = "hold an MRV: give its number of heads" if has_valve else "hold no MRV: use --n_head_ca 0"
        raise UserError(f"--n_head_ca {n_head_ca}, but the weights {holds}")
    feed_forward = weights.get("layers.0.pos_ff.CoreNet.0.weight")
    return ModelConfig(
        n_layer=1 + max(int(match[1]) for name in weights if (match := re.match(r"layers\.(\d+)\.", name))),
        n_head=n_head,
        d_model=d_model,
        d_head=d_head,
        d_inner=d_model if feed_forward is None else feed_forward.shape[0],
        context_length=context_length,
        num_mem_tokens=weights["mem_tokens"].shape[0] if "mem_tokens" in weights else 0,
        n_head_ca=n_head_ca,
        skip_dec_ffn=feed_forward is None,
        **known,
    )


def infer_spec(weights: Mapping[str, Tensor], variant: str) -> EnvironmentSpec:
    """A variant's spec with the sizes of these weights: vector features and number of actions differ between tasks."""
    if variant not in VARIANTS:
        raise UserError(f"--variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    spec = VARIANTS[variant]
    table = None if spec.continuous else _first_matrix(weights, "action_embeddings").shape[0]
    shape = spec.observation_shape if spec.is_image else (_first_matrix(weights, "state_encoder").shape[1],)
    actions = _first_matrix(weights, "head").shape[0]
    try:
        return replace(spec, observation_shape=shape, num_actions=actions, action_embeddings=table)
    except ValueError as error:
        raise UserError(f"sizes that do not go together: {error}") from None


def _first_matrix(weights: Mapping[str, Tensor], module: str) -> Tensor:
    for name, tensor in weights.items():
        if name.split(".")[0] == module and tensor.ndim == 2:
            return tensor
    raise UserError(f"the weights hold no matrix of {module}: another variant, or not a whole checkpoint?")


def convert_weights(weights: Mapping[str, Tensor], model: RATE) -> list[str]:
    """Fill `model` with published weights.

    Returns:
        The published names that have no counterpart because the published model never uses them.

    Raises:
        UserError: a weight is missing, has another shape, or is of an unknown kind.
    """
    source = {name: tensor for name, tensor in weights.items() if not _UNUSED.fullmatch(name)}
    left_out = sorted(set(weights) - set(source))
    converted: dict[str, Tensor] = {}
    for prefix, module, name in (
        ("state_encoder", model.encoder.observation, "encoder.observation"),
        ("action_embeddings", model.encoder.action, "encoder.action"),
        ("ret_emb", model.encoder.rtg, "encoder.rtg"),
        ("head", model.head, "head"),
    ):
        converted |= _by_order(source, prefix, module, name)
    converted |= _memory_weights(source)
    for index in range(model.config.n_layer):
        converted |= _layer_weights(source, index, model)
    if source:
        raise UserError(f"the weights hold names that this model does not use: {', '.join(sorted(source)[:6])}")
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in converted:
            raise UserError(f"the weights hold nothing for {name}: is this the right variant, arch and feed-forward?")
        if converted[name].shape != tensor.shape:
            raise UserError(f"{name}: weights of shape {tuple(converted[name].shape)}, expected {tuple(tensor.shape)}")
    model.load_state_dict(converted)
    return left_out


def _by_order(source: dict[str, Tensor], prefix: str, module: nn.Module, name: str) -> dict[str, Tensor]:
    """Encoders and head: sequences whose indices depend on the activations between; their order does not."""

    def place(key: str) -> tuple[list[int], bool]:
        return [int(part) for part in key.split(".") if part.isdigit()], key.endswith("bias")

    keys = sorted((key for key in source if key.split(".")[0] == prefix), key=place)
    targets = [target for target, _ in module.named_parameters()]
    if len(keys) != len(targets):
        raise UserError(f"the weights hold {len(keys)} tensors of {prefix}, expected {len(targets)}: another variant?")
    return {f"{name}.{target}": source.pop(key) for target, key in zip(targets, keys, strict=True)}


def _memory_weights(source: dict[str, Tensor]) -> dict[str, Tensor]:
    converted = {"content_bias": source.pop("r_w_bias"), "position_bias": source.pop("r_r_bias")}
    tokens = source.pop("mem_tokens", None)
    if tokens is not None and len(tokens):
        converted["memory_tokens"] = tokens.squeeze(1)
    for ours, theirs in (("query", "wq"), ("key", "wk"), ("value", "wv"), ("output", "dense")):
        for kind in ("weight", "bias"):
            if (key := f"mha_mem_to_mem.{theirs}.{kind}") in source:
                converted[f"valve.{ours}.{kind}"] = source.pop(key)
    return converted


def _layer_weights(source: dict[str, Tensor], index: int, model: RATE) -> dict[str, Tensor]:
    """One decoder layer; what a layer of the model lacks stays in `source` and is reported there."""
    theirs, ours = f"layers.{index}.", f"layers.{index}."
    names = {
        "dec_attn.o_net.weight": "attention.output.weight",
        "dec_attn.r_net.weight": "attention.position.weight",
        "layer_norm1.weight": "norm1.weight",
        "layer_norm1.bias": "norm1.bias",
        "layer_norm2.weight": "norm2.weight",
        "layer_norm2.bias": "norm2.bias",
        "pos_ff.CoreNet.0.weight": "ffn.expand.weight",
        "pos_ff.CoreNet.0.bias": "ffn.expand.bias",
        "pos_ff.CoreNet.3.weight": "ffn.contract.weight",
        "pos_ff.CoreNet.3.bias": "ffn.contract.bias",
    }
    converted = {ours + new: source.pop(theirs + old) for old, new in names.items() if theirs + old in source}
    if (qkv := source.pop(theirs + "dec_attn.qkv_net.weight", None)) is not None:
        if qkv.ndim != 2 or len(qkv) % 3:
            raise UserError(f"{theirs}dec_attn.qkv_net: weights of shape {tuple(qkv.shape)}, expected 3 matrices")
        for name, part in zip(("query", "key", "value"), qkv.chunk(3), strict=True):
            converted[f"{ours}attention.{name}.weight"] = part
    if model.config.arch == "GTrXL":
        converted |= _gate_weights(source, index)
    return converted


def _gate_weights(source: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    """The gates of a layer, in the order in which the layer applies them."""
    gates: dict[str, dict[str, Tensor]] = {}
    for key in list(source):
        if (match := _GATE.fullmatch(key)) and int(match[1]) == index:
            kind = (match[3] + match[4]).lower().replace("h", "g") if match[3] else "b"
            gates.setdefault(match[2], {})[kind] = source.pop(key)
    converted = {}
    for number, parts in enumerate(gates.values(), start=1):
        if missing := {"wr", "wz", "wg", "ur", "uz", "ug", "b"} - set(parts):
            raise UserError(f"gate {number} of layer {index} lacks {', '.join(sorted(missing))}")
        prefix = f"layers.{index}.gate{number}."
        if len({parts[name].shape for name in ("wr", "wz", "wg", "ur", "uz", "ug")}) > 1 or parts["wr"].ndim != 2:
            raise UserError(f"gate {number} of layer {index}: its matrices have different shapes, or are no matrices")
        converted[prefix + "from_output.weight"] = torch.cat([parts["wr"], parts["wz"], parts["wg"]])
        converted[prefix + "from_input.weight"] = torch.cat([parts["ur"], parts["uz"]])
        converted[prefix + "from_reset.weight"] = parts["ug"]
        converted[prefix + "bias"] = parts["b"]
    return converted


def load_published(path: Path) -> dict[str, Tensor]:
    """Read a published checkpoint: a state dict, saved alone or under a usual key."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        # PyTorch's own message runs over many lines and recommends loading without this protection.
        raise UserError(
            f"{path}: not a checkpoint of plain tensors; if it is a pickled model, save its state_dict() instead"
        ) from None
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path}: not a readable PyTorch checkpoint, or damaged ({reason})") from None
    for key in ("model_state_dict", "state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in loaded.items()):
        raise UserError(f"{path}: holds no state dict (a mapping from names to tensors)")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m RATE_model.original", description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="checkpoint of the published code (*.pth, *.ckpt)")
    parser.add_argument("--variant", required=True, choices=list(VARIANTS), help="the published `mode`")
    parser.add_argument("--output", type=Path, required=True, help="directory for the converted checkpoint")
    parser.add_argument("--context_length", type=int, required=True, help="steps of one segment (DT: N * K)")
    parser.add_argument("--n_head_ca", type=int, default=0, help="heads of the MRV; 0 = none")
    parser.add_argument("--mrv_act", choices=ACTIVATIONS, default="relu", help="activation before the MRV")
    parser.add_argument("--mem_len", type=int, default=0, help="cached hidden states, in tokens")
    parser.add_argument("--arch_mode", choices=ARCHS, default="TrXL", help="decoder block")
    parser.add_argument("--sliding", action="store_true", help="a DT or DTXL: acting slides the window")
    return parser


@exit_on_user_error()
def main() -> None:
    """Convert one checkpoint and say where it is."""
    args = _parser().parse_args()
    if has_checkpoints(args.output):
        raise UserError(f"--output {args.output} already holds a checkpoint: give another directory")
    weights = load_published(args.checkpoint)
    try:
        config = infer_config(
            weights, n_head_ca=args.n_head_ca, context_length=args.context_length, mem_len=args.mem_len,
            mrv_act=args.mrv_act, arch=args.arch_mode, sliding=args.sliding,
        )  # fmt: skip
        spec = infer_spec(weights, args.variant)
        model = RATE(config, spec)
        left_out = convert_weights(weights, model)
    except UserError as error:
        raise UserError(f"{args.checkpoint}: {error}") from None
    path = save_checkpoint(
        args.output, 0, model_state=model.state_dict(), training_state={"config": asdict(config), "spec": asdict(spec)}
    )
    print(f"wrote {path}\nleft out {len(left_out)} tensors that the published model never uses", file=sys.stderr)


if __name__ == "__main__":
    main()
