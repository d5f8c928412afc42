"""Aliases of flags: the published names and those of earlier versions, which still occur in runs and data files."""

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
"""Alias -> flag, for every script that has the flag."""

BOOLEAN_ALIASES = {"condition_on_returns": {True: "auto", False: "none"}}
"""Boolean aliases: the value of the flag that True and False stand for."""


def canonical_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded flags under their current names.

    A boolean alias that is false sets its flag; one that is true leaves the flag as recorded.
    """
    found = {ALIASES.get(name, name): value for name, value in flags.items() if name not in BOOLEAN_ALIASES}
    off = {ALIASES[name]: BOOLEAN_ALIASES[name][False] for name in BOOLEAN_ALIASES if flags.get(name) is False}
    return found | off


def find_by_alias(path: Path) -> Path:
    """The path, or the file whose name has an alias in place of a flag, if only that one exists."""
    others = (path.with_name(path.name.replace(f"_{name}", f"_{alias}")) for alias, name in ALIASES.items())
    return path if path.exists() else next((other for other in others if other.exists()), path)
