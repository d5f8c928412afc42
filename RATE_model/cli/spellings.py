"""Aliases of flags: published spellings, and those of earlier versions, which runs and data files still contain."""

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
"""Valid for every script that has the flag named second."""

BOOLEAN_ALIASES = {"condition_on_returns": {True: "auto", False: "none"}}
"""Boolean aliases, and the value of the flag that each stands for."""


def respelt(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Recorded flags under today's names; a flag and its switch are the same, and the switch is either off or
    silent."""
    found = {ALIASES.get(name, name): value for name, value in flags.items() if name not in BOOLEAN_ALIASES}
    off = {ALIASES[name]: BOOLEAN_ALIASES[name][False] for name in BOOLEAN_ALIASES if flags.get(name) is False}
    return found | off


def existing_file(path: Path) -> Path:
    """The path, or the same file with an alias of a flag in its name, if only that one exists."""
    others = (path.with_name(path.name.replace(f"_{name}", f"_{alias}")) for alias, name in ALIASES.items())
    return path if path.exists() else next((other for other in others if other.exists()), path)
