"""What the commands that examine a run share: reading its name, and writing what they find."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from RATE_model.cli.options import Config, parse_options
from RATE_model.errors import UserError, error_reason
from RATE_model.system.atomic import atomic_write_json


def read_options(options: type[Config], argv: Sequence[str] | None, *, prog: str, description: str) -> Config:
    """Parse options (`argv` None: from the command line). The run may come first, without the flag --run."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        words.insert(0, "--run")
    return parse_options(options, argv=words, prog=prog, description=description)


def write_results(
    name: str, found: Mapping[str, Any], run: Path, output: Path | None, draw: Callable[[Path], object]
) -> None:
    """Write NAME.json and the picture NAME.png, and print their paths.

    Args:
        name, found: of the diagnosis, and what it found.
        run, output: the run, for its folders eval and plots; a folder for both files instead (None: none).
        draw: writes the picture to a path.

    Raises:
        UserError: a file cannot be written.
    """
    table = (run / "eval" if output is None else output) / f"{name}.json"
    picture = (run / "plots" if output is None else output) / f"{name}.png"
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(table, found)
    except OSError as error:
        raise UserError(f"{table} cannot be written: {error_reason(error)}") from error
    draw(picture)
    print(f"\nresults: {table}, picture: {picture}")
