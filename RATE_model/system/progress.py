"""Progress: a bar on a terminal, or a line every half minute in a log file."""

import io
import os
import sys
import time
from typing import Any

from tqdm import tqdm

from RATE_model.system import distributed

_SECONDS = 30.0  # between two lines in a log file
_LINE = "{desc}: {unit} {n_fmt} of {total_fmt}, {elapsed} elapsed, {remaining} left{postfix}"
_ENDLESS = "{desc}: {unit} {n_fmt}, {elapsed} elapsed{postfix}"


def progress_bar(**arguments: Any) -> tqdm:
    """A progress bar on a terminal, or a line every half minute in a log file or batch job. Takes tqdm's arguments.

    TQDM_DISABLE silences both. With several processes only process 0 shows it.
    """
    if not distributed.is_first():
        return tqdm(disable=True, **arguments)
    if sys.stderr is not None and not sys.stderr.isatty():
        return _Lines(bar_format=_ENDLESS if arguments.get("total") is None else _LINE, **arguments)
    return tqdm(disable=None, leave=False, **arguments)


class _Lines(tqdm):
    """Progress as lines; prints nothing if finished within half a minute."""

    def __init__(self, **arguments: Any) -> None:
        self._said = time.monotonic()
        silent = os.environ.get("TQDM_DISABLE", "") not in ("", "0")
        super().__init__(leave=False, mininterval=1.0, disable=silent, file=io.StringIO(), **arguments)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Print a line if the last one is old enough."""
        if msg != "" and time.monotonic() - self._said >= _SECONDS:  # "" clears a bar
            self._said = time.monotonic()
            print(str(self), file=sys.stderr, flush=True)
        return True
