"""Expand a command with {a,b,c} into separate commands."""

import hashlib
import itertools
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from RATE_model.errors import UserError

_GIVEN = ("seed", "start_seed", "end_seed", "resume", "overwrite")  # flags set by the sweep
_CHOICE = re.compile(r"\{([^{}]*,[^{}]*)\}")
_NAME_LENGTH = 120
MAX_JOBS = 10_000


@dataclass(frozen=True)
class Job:
    """One command of a sweep; its name shows how it differs from the others."""

    name: str
    words: tuple[str, ...]


def jobs_of(command: str, seeds: Sequence[int]) -> list[Job]:
    """All commands: every combination of the values in braces, for every seed. Each continues where it was interrupted.

    The values become part of a run's `--text`, so no two runs share a directory, whatever the flag.

    Args:
        command: as typed, such as ``python3 SCRIPT --learning_rate {1e-4,3e-4}``.
        seeds: each is a separate run.

    Raises:
        UserError: the command is empty, sets a flag of the sweep, has --text without a value, or makes too many jobs.
    """
    words = split(command)
    for word in words:
        if word.count("{") != word.count("}"):
            raise UserError(f"{word}: write values in braces, separated by commas and without spaces, as {{1e-4,3e-4}}")
        flag = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and flag in _GIVEN:
            raise UserError(f"--{flag}: set by the sweep; leave it out, and give seeds with --seeds")
    choices = [_choices(word) for word in words]
    count = len(seeds) * math.prod(map(len, choices))
    if count > MAX_JOBS:
        raise UserError(f"{command}: makes {count} commands; at most {MAX_JOBS}")
    jobs = []
    for chosen in itertools.product(*choices):
        label = _name("_".join(_label(chosen, place) for place, values in enumerate(choices) if len(values) > 1))
        for seed in seeds:
            own = (*_with_text(chosen, label), "--seed", str(seed), "--resume", "auto")
            jobs.append(Job(f"{label}_seed={seed}".lstrip("_"), own))
    if len({job.name for job in jobs}) < len(jobs):
        raise UserError(f"{command}: duplicate value in braces, or duplicate seed")
    return jobs


def split(command: str) -> list[str]:
    """The words of a command, split as by a shell. Raises UserError if there are none."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise UserError(f"{command}: cannot be read ({error})") from None
    if not words:
        raise UserError('a command is missing: give it in quotes, such as "python3 SCRIPT --learning_rate {1e-4,3e-4}"')
    return words


def check_files(command: str) -> None:
    """Raise a UserError if the program of a command, or its script, does not exist."""
    program, *others = split(command)
    if shutil.which(program) is None:
        raise UserError(f"{program}: there is no such program; commands look like python3 SCRIPT ...")
    scripts = next((_choices(word) for word in others if word.endswith(".py")), [])
    for script in scripts:
        if not Path(script).is_file():
            raise UserError(f"{script}: there is no such file")


def _choices(word: str) -> list[str]:
    """A word for each of the values in its braces; the word itself without braces."""
    found = _CHOICE.search(word)
    if not found:
        return [word]
    before, after = word[: found.start()], word[found.end() :]
    return [other for value in found[1].split(",") for other in _choices(before + value + after)]


def _label(words: Sequence[str], place: int) -> str:
    """The label of a word with its flag: learning_rate=1e-4."""
    flag, equals, value = words[place].removeprefix("--").partition("=")
    if words[place].startswith("--") and equals:
        return f"{flag}={value}"
    before = next((word for word in reversed(words[:place]) if word.startswith("--")), "")
    return f"{before.removeprefix('--')}={words[place]}".lstrip("=")


def _with_text(words: Sequence[str], label: str) -> tuple[str, ...]:
    """The command with the label at the end of its --text."""
    if not label:
        return tuple(words)
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--text=") else (word,))]
    if "--text" not in words:
        return (*words, "--text", label)
    value = words.index("--text") + 1
    if value == len(words) or words[value].startswith("--"):
        raise UserError("--text: the value is missing in the command; give one, or leave it out")
    return (*words[:value], "_".join(filter(None, (words[value], label))), *words[value + 1 :])


def _name(label: str) -> str:
    """The text as a file name; long ones are shortened, with a hash."""
    name = re.sub(r"[^\w.+=-]+", "-", label).strip("-.")
    if len(name) <= _NAME_LENGTH:
        return name
    return short_name(name[:_NAME_LENGTH], label)


def short_name(name: str, told_apart_by: str) -> str:
    """A short name with a hash of the rest."""
    return f"{name}-{hashlib.sha256(told_apart_by.encode()).hexdigest()[:8]}"


def seeds_of(text: str) -> list[int]:
    """``1-5``, ``1,3,7`` or ``1-3,9``. Raises UserError for anything else."""
    seeds: list[int] = []
    for piece in text.split(","):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", piece.strip(), re.ASCII)
        if not match or int(match[2] or match[1]) < int(match[1]):
            raise UserError(f"--seeds {text}: must be like 1-5 or 1,3,7")
        if int(match[2] or match[1]) - int(match[1]) >= MAX_JOBS:
            raise UserError(f"--seeds {text}: at most {MAX_JOBS} seeds")
        seeds += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seeds
