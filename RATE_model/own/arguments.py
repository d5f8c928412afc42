"""Errors of Python calls: they name arguments, not the flags that the same checks name on the command line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from RATE_model.errors import UserError

# Flags whose argument has another name.
_NAMES = {"model_mode": "memory", "env": "environment", "use_argmax": "greedy"}
_VALUES = {"true": "True", "false": "False", "none": "None", "auto": '"auto"', "no": '"no"'}
_WORDS = {
    "another --text or --ckpt_folder": "another output_dir",
    "unknown flag": "unknown argument",
    "is a flag of": "is an argument of",
    "the flags": "the arguments",
    "see --help": "python3 -m RATE_model.train --help lists them",
}
_NUMBER = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"


@contextmanager
def naming_arguments() -> Iterator[None]:
    """Inside, a `UserError` names Python arguments."""
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error)), *error.args[1:])
        raise


def in_python(message: str) -> str:
    """A message with arguments in place of flags: ``epochs=0`` for ``--epochs 0``. A command in it stays."""
    said, command, rest = message.partition("python3 ")
    for words, others in _WORDS.items():
        said = said.replace(words, others)
    # A value is recognised if it can be nothing else, or if the message starts with the flag: "--name value: ...".
    said = re.sub(r"^--(\w+) ([^\s:]+):", lambda found: f"{_assigned(found[1], found[2])}:", said)
    said = re.sub(
        rf"--(\w+)(?: ({'|'.join(_VALUES)}|{_NUMBER})(?![\w.]*\w))?",
        lambda found: _assigned(found[1], found[2]),
        said,
    )
    return said + command + rest


def _assigned(flag: str, value: str | None) -> str:
    """The argument of a flag, with its value if there is one."""
    name = _NAMES.get(flag, flag)
    if value is None:
        return name
    return f"{name}={_VALUES.get(value) or (value if re.fullmatch(_NUMBER, value) else repr(value))}"
