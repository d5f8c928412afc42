"""How to continue a run that was stopped."""

import json
import re
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_REPLACED = {"resume", "overwrite"}


def resuming(command: Sequence[str]) -> list[str]:
    """The words of a training command with ``--resume auto``, and without another --resume or --overwrite."""
    words, dropping = [], False
    for word in command:
        if flag := re.match(r"--?([A-Za-z_]+)", word):  # a dash and a digit is a negative number
            dropping = flag[1] in _REPLACED
        if not dropping:
            words.append(word)
    return [*words, "--resume", "auto"]


def advice(run: Path) -> str:
    """How to continue a run, by the command that started it last, from its environment.json."""
    with suppress(OSError, ValueError, KeyError, IndexError, TypeError):
        script, *flags = json.loads((run / "environment.json").read_text())["starts"][-1]["command"]
        if not flags:  # probably a program of the user's that calls `train`
            return f"with --resume auto; it was started by {script}"
        parts = Path(script).with_suffix("").parts
        if "RATE_model" in parts:  # started with -m
            module = parts[len(parts) - 1 - parts[::-1].index("RATE_model") :]
            return f"with {shlex.join(resuming(['python3', '-m', '.'.join(module), *flags]))}"
        return f"with {shlex.join(resuming(['python3', script, *flags]))}"
    return "by its command with --resume auto"
