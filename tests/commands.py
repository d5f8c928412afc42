"""Scripts called in this process: their output and error messages."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file below a folder with its content, and every directory."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def error_of(capsys, folder: Path, main: Callable, flags: Sequence[str]) -> str:
    """The one or two lines on stderr of a command that exits with 2 and creates nothing in the folder."""
    before = contents(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="^2$"):
        main(flags)
    errors = capsys.readouterr().err
    assert contents(folder) == before
    assert errors.startswith("error: ") and errors.count("\n") <= 2 and "Traceback" not in errors
    return errors


def printed_config(capsys, main: Callable, flags: Sequence[str]) -> dict:
    """The output of --print_config."""
    with pytest.raises(SystemExit, match="0"):
        main([*flags, "--print_config"])
    output = capsys.readouterr()
    assert output.err == ""
    return yaml.safe_load(output.out)
