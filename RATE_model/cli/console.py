"""Console output that never fails (missing characters, closed pipe, full disk), and one-line messages.

Nothing here imports torch.
"""

import codecs
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from RATE_model.errors import error_reason

_IN_ASCII = {"±": "+/-", "×": "x", "→": "->", "…": "...", "–": "-", "—": "-"}


def one_line(text: object) -> str:
    """The text with control characters, including line ends, as escapes, so it cannot hide or forge a line."""
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]",
        lambda match: match[0].encode("unicode_escape").decode(),
        str(text),
    )


def machine_error(error: BaseException) -> str | None:
    """A one-line message, with a remedy, for errors of the machine (disk, memory, permissions); else None."""
    if isinstance(error, OSError):
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error_reason(error)}" if error.strerror else None
    said = str(error)
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and re.search(r"out of memory|can't allocate memory|not enough memory|can't start new thread", said)
    ):
        detail = f" ({one_line(said.splitlines()[0])[:120]})" if said else ""
        return f"out of memory{detail}: give the process more, or use a smaller --batch_size or more --accumulate"
    return None


@contextmanager
def lasting_output() -> Iterator[None]:
    """A context in which print never fails, even if stdout is closed, full, or cannot show a character.

    Characters it cannot show are written in ASCII. A closed pipe (``| head -1``) drops the rest silently; any other
    problem is reported once on stderr.
    """
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and _Lasting(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Lasting:
    """A text stream whose `write` and `flush` never raise; everything else is the stream's own."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._gone = stream, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write and flush, so output of a process that dies later is not lost."""
        self._try(lambda: self._stream.write(_shown(text, getattr(self._stream, "encoding", None))))
        self.flush()
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, action: Any) -> None:
        if self._gone:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # ValueError: the stream was closed in this process
            self._gone = True
            _send_to_nowhere(self._stream)
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                print(f"warning: output cannot be written ({error.strerror}); continuing without it", file=sys.stderr)


def _shown(text: str, encoding: str | None) -> str:
    """The text with ASCII substitutes for characters that the encoding lacks."""
    try:
        text.encode(encoding or "utf-8")
    except (UnicodeEncodeError, LookupError):
        return text.encode(encoding or "utf-8", "rate_ascii").decode(encoding or "utf-8")
    return text


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)  # only used for encoding
    lacking = error.object[error.start : error.end]
    return "".join(
        _IN_ASCII.get(char, char.encode("ascii", "backslashreplace").decode()) for char in lacking
    ), error.end


codecs.register_error("rate_ascii", _in_ascii)


def _send_to_nowhere(stream: Any) -> None:
    """Redirect a stream to os.devnull: Python flushes it at exit, which would fail again."""
    try:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
    except (OSError, ValueError):  # not a file, as in tests and notebooks
        pass
