"""Hide wandb keys in everything that is printed or recorded, even where a user has put one by mistake."""

import os
import re

# 40 hexadecimal digits or wandb_v1_..., but not a commit or snapshot name in a path.
_KEY = re.compile(r"(?<![\w/.])(?:[0-9a-f]{40}|wandb_v\d+_\w{20,})(?![\w/.])")
_SHORTEST = 8  # characters; anything shorter may be an ordinary word
_known: set[str] = set()


def remember_key(key: str) -> None:
    """Also hide this key from now on."""
    if len(key) >= _SHORTEST:
        _known.add(key)


def redact(text: str) -> str:
    """Replace every key by ***: WANDB_API_KEY, remembered keys, and anything that looks like a key."""
    remember_key(os.environ.get("WANDB_API_KEY", ""))
    for key in sorted(_known, key=len, reverse=True):
        text = text.replace(key, "***")
    return _KEY.sub("***", text)
