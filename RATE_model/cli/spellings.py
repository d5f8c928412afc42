"""Other spellings of flags: published ones, and those of earlier versions, which runs and data files still carry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

ALIASES = {
    "skip_dec_attn": "skip_dec_ffn",
    "sections": "segments",
    "number_of_segments": "segments",
    "segment_length": "context_length",
    "memory_sections": "memory_segments",
    "desired_reward": "target_return",
    "desired_return": "target_return",
    "target_returns": "target_return",
    "renew_target": "reset_target",
    "astray": "perturbation",
    "action_seed": "seed",
    "video_episodes": "video",
    "condition_on_returns": "condition",
}
"""Of every script that has the flag named second."""

SWITCHES = {"condition_on_returns": {True: "auto", False: "none"}}
"""Spellings that are true or false: what that says of the flag."""


def respelt(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded flags under their names of today. What a flag says itself wins over its other spellings."""
    found: dict[str, Any] = {}
    for alias in sorted(flags, key=lambda name: name not in ALIASES):
        value = flags[alias]
        if alias in SWITCHES and isinstance(value, bool):
            value = SWITCHES[alias][value]
        found[ALIASES.get(alias, alias)] = value
    return found


def existing_file(path: Path) -> Path:
    """The path, or the same file with another spelling of a flag in its name, if only that one exists."""
    others = (path.with_name(path.name.replace(f"_{name}", f"_{alias}")) for alias, name in ALIASES.items())
    return path if path.exists() else next((other for other in others if other.exists()), path)
