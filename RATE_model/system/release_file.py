"""One file of a release of a package, taken out of its wheel, checked, and kept."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

from RATE_model.errors import UserError
from RATE_model.system.atomic import atomic_write_bytes
from RATE_model.system.locks import exclusive
from RATE_model.system.processes import check_writable

_PATIENCE = "--timeout 30 --retries 1".split()
_ONE_AT_A_TIME = threading.Lock()


@dataclass(frozen=True)
class ReleaseFile:
    """A file, downloaded once from the package index on first use.

    Attributes:
        what: what it is, for messages.
        release: "package==version".
        member: its place in the wheel.
        sha256: its digest.
        megabytes: of the download.
        place: where it is kept.
        variable: of the environment; may name the file instead, where `place` is read-only or shared.
        wheel: pip's flags that choose the wheel, the same on every machine because only one of its files is used.
        command: takes the file from elsewhere, with --source.
        otherwise: what can be done without it.
    """

    what: str
    release: str
    member: str
    sha256: str
    megabytes: int
    place: Path
    variable: str
    wheel: str
    command: str
    otherwise: str

    def ensure(self) -> Path:
        """The file, downloaded if missing.

        Raises:
            UserError: it cannot be downloaded or written, or the environment variable names a different file.
        """
        with _ONE_AT_A_TIME:  # threads may start together
            if named := os.environ.get(self.variable):
                return _checked(self, Path(named), f"${self.variable} '{named}'", self._alternatives())
            if not self.place.exists():
                self.fetch()
            return _checked(self, self.place, f"'{self.place}'", "Delete it to download it again.")

    def fetch(self, source: Path | None = None) -> None:
        """Extract it from a downloaded or given wheel, or copy it. Leaves nothing behind on failure.

        Args:
            source: the wheel, or the file itself; None: download the wheel.

        Raises:
            UserError: the source is missing or holds another file, there is no network, or it cannot be written.
        """
        path = self.place
        check_writable(path)
        if source is None:
            print(f"downloading {self.what} from {self.release} ({self.megabytes} MB): {path}", flush=True)
        content = self._downloaded() if source is None else self._taken_out(source, f"--source {source}")
        with exclusive(path, f"another process is writing '{path}'; waiting for it"):
            try:
                atomic_write_bytes(path, content)
            except OSError as error:
                reason = error.strerror or error
                raise UserError(f"cannot write '{path}': {reason}. {self._alternatives()}") from error

    def is_it(self, content: bytes) -> bool:
        """Whether this is the file's content."""
        return hashlib.sha256(content).hexdigest() == self.sha256

    @property
    def described(self) -> str:
        """The file and its release, in words."""
        return f"the {Path(self.member).name} of {self.release}"

    def _downloaded(self) -> bytes:
        """The file from the package index's wheel."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
            command += [*self.wheel.split(), *_PATIENCE, "--dest", folder, self.release]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
            wheels = list(Path(folder).glob("*.whl"))
            if done.returncode or not wheels:
                errors = [line for line in done.stderr.splitlines() if "ERROR" in line or "No module named" in line]
                reason = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {done.returncode}"
                raise UserError(f"{self.what} could not be downloaded: {reason}. {self._alternatives()}")
            return self._taken_out(wheels[0], self.release)

    def _taken_out(self, source: Path, named: str) -> bytes:
        """The file, from a wheel or as is. Raises UserError if it is missing."""
        try:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as wheel:
                    content = wheel.read(self.member)
            else:
                content = source.read_bytes()
        except (OSError, KeyError, zipfile.BadZipFile) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else f"no {self.member} in it"
            raise UserError(
                f"{named}: {reason}; it must be the wheel of {self.release} or its {Path(self.member).name}"
            ) from error
        if not self.is_it(content):
            raise UserError(f"{named}: not {self.described}: its SHA-256 differs")
        return content

    def _alternatives(self) -> str:
        return (
            f"{self.otherwise}; or, where the package index is reachable, "
            f"`pip download --no-deps {self.wheel} {self.release}`, and then here `{self.command} --source WHEEL`"
        )


@functools.cache
def _checked(file: ReleaseFile, path: Path, named: str, remedy: str) -> Path:
    """The path, verified once per process to be the file. Raises UserError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror}. {remedy}") from error
    if not file.is_it(content):
        raise UserError(f"{named} is not {file.described}: its SHA-256 differs. {remedy}")
    return path
