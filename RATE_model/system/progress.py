"""Progress bars."""

from typing import Any

from tqdm import tqdm


def progress_bar(**arguments: Any) -> tqdm:
    """A progress bar on a terminal; nothing in a log file or a batch job. Takes tqdm's arguments."""
    return tqdm(disable=None, leave=False, **arguments)
