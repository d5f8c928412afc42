"""Settings of a published model that its weights do not show.

In order of precedence: a flag; `config.json`, written by branch `main` beside its checkpoints; the name of the
checkpoint's folder, where branch `rate-old` puts them; the published setting of the environment.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from RATE_model.errors import UserError
from RATE_model.memories.rate.config import MODES, RATEConfig, apply_mode
from RATE_model.original.variants import Branch, variant_named

# Weights whose sizes are those of the model.
_DIMENSIONS = {
    "r_w_bias": 2,
    "layers.0.dec_attn.r_net.weight": 2,
    "layers.0.pos_ff.CoreNet.0.weight": 2,
    "mem_tokens": 3,
}

# Published settings: steps per segment, segments, heads of the MRV, the cache of RATE and that of TrXL.
_PUBLISHED: dict[tuple[Branch, str], tuple[int, int, int, int, int]] = {
    ("rate-old", "tmaze"): (30, 3, 4, 0, 270),
    ("rate-old", "aar"): (30, 3, 2, 0, 270),
    ("rate-old", "doom"): (30, 3, 2, 300, 270),
    ("rate-old", "minigrid_memory"): (10, 3, 1, 180, 90),
    ("rate-old", "memory_maze"): (30, 3, 2, 300, 360),
    ("rate-old", "atari"): (30, 3, 1, 360, 360),
    ("rate-old", "mujoco"): (20, 3, 1, 210, 210),
    ("main", "tmaze"): (50, 3, 2, 0, 450),
    ("main", "doom"): (50, 3, 2, 100, 450),
    ("main", "minigrid_memory"): (30, 3, 2, 250, 270),
    ("main", "memory_maze"): (30, 3, 4, 360, 300),
    ("main", "mujoco_tanh"): (20, 3, 1, 210, 210),
}

# The source of a flag's value.
FLAGS = "given"

_MODE_NAMES = "|".join(sorted(MODES, key=len, reverse=True))
# Checkpoint folders of rate-old: most environments', Atari's, MuJoCo's.
_FOLDERS = (
    re.compile(rf"(?:.*_)?arch_mode_(?P<arch>TrXL-I|GTrXL|TrXL)_(?P<model_mode>{_MODE_NAMES})(?:_.*)?"),
    re.compile(
        r"(?P<game>[A-Za-z]+)_\d+_(?P<mem_len>\d+)_(?P<context_length>\d+)_(?P<segments>\d+)_\d+_(?P<n_head_ca>\d+)_"
        r"(?P<mrv_act>relu|leaky_relu|elu|tanh|no_act)_(?:True|False)"
    ),
    re.compile(
        r"(?P<task>[a-z0-9_]+)_ns_(?P<segments>\d+)_sl_(?P<context_length>\d+)_nt_\d+_nhca_(?P<n_head_ca>\d+)_"
        r"mrvact_(?P<mrv_act>relu|leaky_relu|elu|tanh|no_act)_skipffndec_(?:True|False)"
    ),
)


@dataclass(frozen=True)
class Settings:
    """Settings by name, and the source of each."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def then(self, values: Mapping[str, Any], source: str) -> "Settings":
        """These settings, with missing ones (or None) filled in from another source."""
        new = {name: value for name, value in values.items() if value is not None and name not in self.values}
        return Settings(self.values | new, self.sources | dict.fromkeys(new, source))

    def __str__(self) -> str:
        by_source: dict[str, list[str]] = {}
        for name, source in self.sources.items():
            by_source.setdefault(source, []).append(f"{name} {self.values[name]}")
        return "; ".join(f"{', '.join(found)} ({source})" for source, found in by_source.items())


def beside(checkpoint: Path, settings: Settings) -> Settings:
    """Settings, completed from `config.json` and the names of the folders above a published checkpoint.

    Raises:
        UserError: there is a config.json that cannot be read.
    """
    folders = checkpoint.absolute().parents
    for folder in folders[:2]:
        if (path := folder / "config.json").is_file():
            settings = settings.then(_read_config(path), str(path))
            break
    for folder in folders[:3]:
        for pattern in _FOLDERS:
            if match := pattern.fullmatch(folder.name):
                texts = match.groupdict()
                found = {name: int(text) if text.isdigit() else text for name, text in texts.items()}
                settings = settings.then(found, f"the folder's name, {folder.name}")
    return settings


def _read_config(path: Path) -> dict[str, Any]:
    """The settings in branch `main`'s config.json, under the names used here."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        model, training = content["model"], content["training"]
        env_name = model.get("env_name")
        known = {
            "env_name": env_name,
            "variant": None if env_name is None else variant_named(env_name) or env_name,
            "model_mode": content.get("model_mode"),
            "arch": content.get("arch_mode"),
            "context_length": training.get("context_length"),
            "segments": training.get("sections") if content.get("max_n_final") is None else content["max_n_final"],
        } | {name: model.get(name) for name in ("n_head_ca", "mem_len", "mrv_act")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the config.json of a published run ({error!r})") from None
    if model.get("pre_lnorm"):
        raise UserError(f"{path}: pre_lnorm: true is not supported")
    return known


def published(weights: Mapping[str, Tensor], variant: str, branch: Branch, mode: str | None) -> dict[str, Any]:
    """The published settings of an environment, as far as they apply to a model with these weights."""
    context_length, segments, heads, rate_cache, trxl_cache = _PUBLISHED.get((branch, variant), (None,) * 5)
    tokens, valve = "mem_tokens" in weights, "mha_mem_to_mem.wq.weight" in weights
    if tokens:
        # Without MRV: the published RMT has a feed-forward network and no cache; `main`'s RATE on Minigrid has neither.
        recurrent = not valve and "layers.0.pos_ff.CoreNet.0.weight" in weights
        cache = 0 if recurrent or mode == "RMT" else rate_cache
    else:
        cache = 0 if mode == "DT" else trxl_cache
    return {
        "context_length": context_length,
        "segments": segments,
        "n_head_ca": heads if valve else 0,
        "mem_len": cache,
        "mrv_act": "relu",
        "arch": "GTrXL" if any(".gate" in name for name in weights) else "TrXL",
    }


def infer_config(weights: Mapping[str, Tensor], *, n_head_ca: int, context_length: int, **known: Any) -> RATEConfig:
    """The sizes of a published model, from its weights.

    Args:
        weights: the published state dict.
        n_head_ca: heads of the MRV, which no shape shows; must be 0 exactly if the weights have no MRV.
        context_length: steps per segment.
        known: other fields of `RATEConfig` that cannot be inferred (`mem_len`, `mrv_act`, `arch`, `sliding`).

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
        holds = "have an MRV: give its number of heads" if has_valve else "have no MRV: use --n_head_ca 0"
        raise UserError(f"--n_head_ca {n_head_ca}, but the weights {holds}")
    feed_forward = weights.get("layers.0.pos_ff.CoreNet.0.weight")
    return RATEConfig(
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


def published_config(weights: Mapping[str, Tensor], settings: Settings) -> RATEConfig:
    """The configuration of a published checkpoint, from its weights and the settings found beside them.

    Raises:
        UserError: a setting is missing and must be given as a flag, or contradicts the weights.
    """
    values, sources = settings.values, settings.sources
    mode, valve = values.get("model_mode"), "mha_mem_to_mem.wq.weight" in weights
    if mode is None and "mem_tokens" not in weights and sources.get("mem_len") != FLAGS:
        raise UserError(
            "the weights have no memory tokens, and a Decision Transformer and a TrXL have the same names and shapes: "
            "give --model_mode DT or --model_mode TrXL"
        )
    if missing := [name for name in ("context_length", "mem_len", "n_head_ca") if name not in values]:
        raise UserError(f"neither the weights nor files beside them give {missing[0]}: use --{missing[0]}")

    def unless_given(name: str, wanted: bool) -> int:
        """0 for a setting that this model does not use, unless a flag asks for it."""
        return values[name] if wanted or sources[name] == FLAGS else 0

    config = infer_config(
        weights,
        n_head_ca=unless_given("n_head_ca", valve),
        context_length=values["context_length"],
        mem_len=unless_given("mem_len", mode != "DT"),
        mrv_act=values["mrv_act"],
        arch=values["arch"],
    )
    if mode not in ("DT", "DTXL"):
        return config
    # A flag gives the whole window; any other source gives the segment, of which the window consists.
    segments = 1 if sources["context_length"] == FLAGS else values.get("segments", 1)
    return apply_mode(config, mode=mode, segments=segments)
