"""Keys of a wandb account, kept out of whatever is printed or recorded, also where a user has put one by mistake."""

import os
import re

# 40 hexadecimal digits or wandb_v1_..., but not the name of a commit or a snapshot in a path.
_KEY = re.compile(r"(?<![\w/.])(?:[0-9a-f]{40}|wandb_v\d+_\w{20,})(?![\w/.])")
_SHORTEST = 8  # characters; what is shorter may be an ordinary word
_known: set[str] = set()


def remember_key(key: str) -> None:
    """Also hide this key from now on, wherever it stands."""
    if len(key) >= _SHORTEST:
        _known.add(key)


def redact(text: str) -> str:
    """The text with *** for every key: that in WANDB_API_KEY, remembered ones, and what looks like one."""
    remember_key(os.environ.get("WANDB_API_KEY", ""))
    for key in sorted(_known, key=len, reverse=True):
        text = text.replace(key, "***")
    return _KEY.sub("***", text)
