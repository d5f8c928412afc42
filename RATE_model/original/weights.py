"""Published weights: read a file in any container, and load its tensors into a model of this project."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from RATE_model.agent import Agent, with_memory_prefix
from RATE_model.errors import UserError
from RATE_model.memories.rate.config import RATEConfig

# A weight that every published RATE has, and nothing else.
_MARK = "r_w_bias"
# Usual places of state dicts in a checkpoint with more than one.
_USUAL = ("model_state_dict", "state_dict", "model")

# Parameters that the published model allocates but never uses.
_UNUSED = re.compile(
    r"pos_emb\.inv_freq|.*(dec_attn|pos_ff)\.layer_norm\..*|(embed_|crit|word_emb|out_|loss|cluster|timestep|mask).*"
)
# Gates were saved under several names, such as gate1.Wr.weight and gate_mha.linear_u_z.weight.
_GATE = re.compile(
    r"layers\.(\d+)\.([^.]*gat[^.]*)\.(?:linear_)?(?:([wu])_?([rzgh])(?:\.weight)?|b(?:ias|_?[gz])?)$", re.IGNORECASE
)


def convert_weights(weights: Mapping[str, Tensor], model: Agent) -> list[str]:
    """Fill `model` with published weights.

    Returns:
        The published names without a counterpart, as the published model never uses them.

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
    sizes = model.config.sizes
    assert isinstance(sizes, RATEConfig)  # the published system has no other memory
    for index in range(sizes.n_layer):
        converted |= _layer_weights(source, index, sizes)
    if source:
        raise UserError(f"the weights have names that this model does not use: {', '.join(sorted(source)[:6])}")
    converted = with_memory_prefix(converted)
    expected = model.state_dict()
    for name, tensor in expected.items():
        if name not in converted:
            raise UserError(f"the weights have nothing for {name}: is this the right variant, arch and feed-forward?")
        if converted[name].shape != tensor.shape:
            raise UserError(f"{name}: weights of shape {tuple(converted[name].shape)}, expected {tuple(tensor.shape)}")
    model.load_state_dict(converted)
    return left_out


def _by_order(source: dict[str, Tensor], prefix: str, module: nn.Module | None, name: str) -> dict[str, Tensor]:
    """Encoders and head: match by order, as the indices in a sequence depend on the activations in between."""

    def place(key: str) -> tuple[list[int], bool]:
        return [int(part) for part in key.split(".") if part.isdigit()], key.endswith("bias")

    keys = sorted((key for key in source if key.split(".")[0] == prefix), key=place)
    targets = [] if module is None else [target for target, _ in module.named_parameters()]
    if len(keys) != len(targets):
        raise UserError(f"the weights have {len(keys)} tensors of {prefix}, expected {len(targets)}: another variant?")
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


def _layer_weights(source: dict[str, Tensor], index: int, sizes: RATEConfig) -> dict[str, Tensor]:
    """One decoder layer; whatever the model's layer lacks stays in `source` and is reported there."""
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
    if sizes.arch == "GTrXL":
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
            raise UserError(f"gate {number} of layer {index}: its matrices differ in shape, or are not matrices")
        converted[prefix + "from_output.weight"] = torch.cat([parts["wr"], parts["wz"], parts["wg"]])
        converted[prefix + "from_input.weight"] = torch.cat([parts["ur"], parts["uz"]])
        converted[prefix + "from_reset.weight"] = parts["ug"]
        converted[prefix + "bias"] = parts["b"]
    return converted


def load_published(path: Path) -> dict[str, Tensor]:
    """The state dict in a checkpoint, float32 and on the CPU, under the published model's names.

    It may be one level deep in a container, under any key, and its names may have a common prefix, such as those left
    by DataParallel and torch.compile.

    Raises:
        UserError: the file is missing, damaged, not a checkpoint of plain tensors, or not of a published RATE.
    """
    loaded = _read(path)
    found = {}
    for key, content in {None: loaded, **(loaded if isinstance(loaded, Mapping) else {})}.items():
        if (weights := _state_dict(content)) is not None and _MARK in (stripped := strip_prefix(weights)):
            found[key] = stripped
    if not found:
        raise UserError(f"{path}: not a checkpoint of the published RATE code: {_contents(loaded)}, and no {_MARK}")
    key = next((key for key in (None, *_USUAL) if key in found), None)
    if key not in found:
        key, *others = found
        if others:
            raise UserError(
                f"{path}: contains several models, {', '.join(map(str, found))}; save the intended one alone"
            )
    return {name: tensor.detach().float() for name, tensor in found[key].items()}


def strip_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights without the dotted prefix that all their names share."""
    names = list(weights)
    while names and all("." in name for name in names) and len({name.partition(".")[0] for name in names}) == 1:
        names = [name.partition(".")[2] for name in names]
    return dict(zip(names, weights.values(), strict=True))


def _state_dict(content: Any) -> dict[str, Tensor] | None:
    """The tensors in a mapping, by name; None if there are none."""
    if not isinstance(content, Mapping):
        return None
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)} or None


def _contents(loaded: Any) -> str:
    """What a file contains instead of a model, in a few words."""
    if not isinstance(loaded, Mapping):
        return f"it contains a {type(loaded).__name__}, not a state dict (a mapping from names to tensors)"
    names = [str(key) for key in loaded]
    return f"it contains {', '.join(names[:5])}{' ...' * (len(names) > 5)}" if names else "it is empty"


def _read(path: Path) -> Any:
    """Load a PyTorch or safetensors file."""
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from None
    except pickle.UnpicklingError:
        # PyTorch's own message is many lines long and recommends loading without this protection.
        raise UserError(
            f"{path}: not a checkpoint of plain tensors; if it is a pickled model, save its state_dict() instead"
        ) from None
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{path}: not a readable PyTorch checkpoint, or damaged ({reason})") from None
