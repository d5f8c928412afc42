"""The published graphics: an earlier Freedoom, without flashes on damage.

    python3 VizDoom/VizDoom_src/graphics.py
    python3 VizDoom/VizDoom_src/graphics.py --source vizdoom-1.2.4-cp311-cp311-manylinux_2_28_x86_64.whl

Freedoom, the free game whose textures and sprites ViZDoom draws, changed between vizdoom 1.2.4 and 1.3, and 1.3 draws
flashes on damage that 1.2 does not. Positions, rewards and health are the same. The graphics ``published`` are the
earlier file drawn without flashes, as the published system showed it; ``installed`` are those of the installed
vizdoom, flashes included.

The file is downloaded once, on first use or by this command: 28 MB, from the package index's wheel of vizdoom 1.2.4.
--source takes it from elsewhere. It is kept in VizDoom/VizDoom_data. Where that folder is read-only or shared,
$VIZDOOM_PUBLISHED_WAD may name the file instead.
"""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # started as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # make the repository importable
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from RATE_model.cli.options import exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_bytes
from RATE_model.system.locks import exclusive
from RATE_model.system.processes import check_writable
from VizDoom.VizDoom_src.scenario import Scenario

RELEASE = "vizdoom==1.2.4"
DIGEST = "729f100448d0b48e12ecc8004e096a9ea6df024467d962f002bb286805be3a8e"  # SHA-256 of the file
PLACE = Path(__file__).resolve().parents[1] / "VizDoom_data" / "freedoom2_vizdoom_1.2.4.wad"
VARIABLE = "VIZDOOM_PUBLISHED_WAD"
COMMAND = "python3 VizDoom/VizDoom_src/graphics.py"

_MEMBER = "vizdoom/freedoom2.wad"  # in the wheel
# The same wheel on every machine, because only one of its files is used.
_WHEEL = "--only-binary :all: --python-version 3.11 --implementation cp --platform manylinux_2_28_x86_64".split()
_PATIENCE = "--timeout 30 --retries 1".split()
_ONE_AT_A_TIME = threading.Lock()


def ensure_graphics(scenario: Scenario) -> Path | None:
    """The file for a scenario's graphics, downloaded if missing; None for the installed engine's graphics.

    Raises:
        UserError: it cannot be downloaded or written, or $VIZDOOM_PUBLISHED_WAD names a different file.
    """
    return published_wad() if scenario.settled().graphics == "published" else None


def published_wad() -> Path:
    """The file of the published graphics, downloaded if missing. Raises UserError; see `ensure_graphics`."""
    with _ONE_AT_A_TIME:  # parallel games start together
        if named := os.environ.get(VARIABLE):
            return _checked(Path(named), f"${VARIABLE} '{named}'", _alternatives())
        if not PLACE.exists():
            fetch_published_wad(PLACE)
        return _checked(PLACE, f"'{PLACE}'", "Delete it to download it again.")


@functools.cache
def _checked(path: Path, named: str, remedy: str) -> Path:
    """The path, verified once per process to be the published file. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror}. {remedy}") from error
    if not _is_published(content):
        raise UserError(f"{named} is not the freedoom2.wad of {RELEASE}: its SHA-256 differs. {remedy}")
    return path


def fetch_published_wad(path: Path, source: Path | None = None) -> Path:
    """Extract the file from a downloaded or given wheel, or copy it. Leaves nothing behind on failure.

    Args:
        path: where to write it.
        source: the wheel of `RELEASE`, or its freedoom2.wad; None: download the wheel.

    Raises:
        UserError: the source is missing or holds another file, there is no network, or the path cannot be written.
    """
    check_writable(path)
    if source is None:
        print(f"downloading the published graphics from {RELEASE} (28 MB): {path}", flush=True)
    content = _downloaded() if source is None else _taken_out(source, f"--source {source}")
    with exclusive(path, f"another process is writing '{path}'; waiting for it"):
        try:
            atomic_write_bytes(path, content)
        except OSError as error:
            raise UserError(f"cannot write '{path}': {error.strerror or error}. {_alternatives()}") from error
    return path


def _downloaded() -> bytes:
    """The file from the package index's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += [*_WHEEL, *_PATIENCE, "--dest", folder, RELEASE]
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
            reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {done.returncode}"
            raise UserError(f"the published graphics could not be downloaded: {reason}. {_alternatives()}")
        return _taken_out(wheels[0], RELEASE)


def _taken_out(source: Path, named: str) -> bytes:
    """The published file, from a wheel or as is. Raises UserError if it is missing."""
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as wheel:
                content = wheel.read(_MEMBER)
        else:
            content = source.read_bytes()
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else f"no {_MEMBER} in it"
        raise UserError(f"{named}: {reason}; it must be the wheel of {RELEASE} or its freedoom2.wad") from error
    if not _is_published(content):
        raise UserError(f"{named}: not the freedoom2.wad of {RELEASE}: its SHA-256 differs")
    return content


def _is_published(content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == DIGEST


def _alternatives() -> str:
    return (
        "Play with --graphics installed; or, where the package index is reachable, "
        f"`pip download --no-deps {' '.join(_WHEEL)} "
        f"{RELEASE}`, and then here `{COMMAND} --source WHEEL`"
    )


@dataclass(frozen=True)
class Options:
    """Obtain the published graphics."""

    # A wheel of vizdoom 1.2.4, or the freedoom2.wad in it; none = download the wheel from the package index
    source: Path | None = None


def main(argv: Sequence[str] | None = None) -> None:
    """Download the file unless it exists."""
    with exit_on_user_error():
        options = parse_options(
            Options, argv=argv, prog=COMMAND, description="Download the graphics of the published ViZDoom-Two-Colors."
        )
        if options.source is not None:
            fetch_published_wad(PLACE, options.source)
        print(published_wad())


if __name__ == "__main__":
    main()
