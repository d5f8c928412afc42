"""Download D4RL's MuJoCo datasets (Fu et al. 2020, arXiv 2004.07219), version 2.

    python download_d4rl_datasets.py                                       all 12
    python download_d4rl_datasets.py --datasets hopper-medium walker2d-expert
    python download_d4rl_datasets.py --data_path FOLDER --url ADDRESS      to another folder, from a mirror

A file is downloaded to ``<name>.part`` and renamed once it is complete and valid: the recorded size and SHA-256 of
D4RL's file, HDF5 with D4RL's keys and equal lengths, the robot's sizes, finite numbers. Run the script again to resume
a broken download from its .part file. Existing valid files are kept.
"""

import hashlib
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

if __name__ == "__main__":  # started as a script
    import RATE_model.system.script  # noqa: F401  signals end the process at once during the slow imports below

from tqdm import tqdm

from MuJoCo.dataset import MuJoCoFile
from MuJoCo.files import D4RL_FILES, D4RLFile, d4rl_name, data_directory
from MuJoCo.tasks import TASKS, Task
from RATE_model.cli.limits import at_least
from RATE_model.cli.options import close_matches, exit_on_user_error, parse_options
from RATE_model.errors import UserError
from RATE_model.system.locks import exclusive

URL = "https://rail.eecs.berkeley.edu/datasets/offline_rl/gym_mujoco_v2"
SCRIPT = "python download_d4rl_datasets.py"
BLOCK_BYTES = 2**20

_NAMES = {task.name: task for task in TASKS}
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416


class _Unreachable(UserError):
    """No connection to the server, so its other files are not tried."""


@dataclass(frozen=True)
class Options:
    """What to download, and where to."""

    # Names such as hopper-medium or walker2d-medium-expert; none = all 12.
    datasets: tuple[str, ...] = ()
    # Folder for the files; none = `mujoco: data_dir_prefix:` of wandb_config.yaml, else MuJoCo/MuJoCo_data.
    data_path: Path | None = None
    # Folder on a server that has the files.
    url: str = URL
    # Tries per file; each continues where the last one stopped.
    tries: int = 3
    # Seconds without an answer before a try is abandoned.
    timeout: float = 30.0
    # Accept only files with the recorded size and SHA-256 of D4RL's; false: for servers with other files.
    check_digests: bool = True

    def validate(self) -> None:
        """Raise a UserError for a value out of range."""
        for name in self.datasets:
            if name not in _NAMES:
                raise UserError(
                    f"--datasets {name}: unknown{close_matches(name, list(_NAMES))}; known are {', '.join(_NAMES)}"
                )
        at_least(1, tries=self.tries)
        at_least(0.1, timeout=self.timeout)
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"--url {self.url}: must begin with http:// or https://")

    @property
    def tasks(self) -> list[Task]:
        """The tasks to download data for, each once."""
        return [_NAMES[name] for name in dict.fromkeys(self.datasets)] or list(TASKS)


def download(task: Task, options: Options) -> str:
    """Download one file into the folder; returns a message that says what was done.

    Raises:
        UserError: the server cannot be reached or sends something else, or the file cannot be written. The part of a
            broken download is kept as a .part file.
    """
    path = data_directory(options.data_path) / d4rl_name(task)
    with exclusive(path, f"another process is downloading '{path}'; waiting for it"):
        return _download(task, path, options)


def _download(task: Task, path: Path, options: Options) -> str:
    """See `download`."""
    recorded = D4RL_FILES[path.name] if options.check_digests else None
    if path.exists():
        _verify(path, task, recorded, f"Delete or rename it and run `{SCRIPT} --datasets {task.name}`.")
        return f"{path}: there and good"
    url = f"{options.url.rstrip('/')}/{path.name}"
    part = path.with_name(f"{path.name}.part")
    try:
        _fetch(url, part, options, recorded)
        try:
            hint = "It was deleted; if it happens again, the server's file is not D4RL's."
            _verify(part, task, recorded, hint)
        except UserError:
            part.unlink()  # complete, but not the right content: resuming it would not help
            raise
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write '{part}': {error.strerror or error}") from error
    return f"{path}: downloaded and good, {path.stat().st_size / 1e6:.0f} MB"


def _verify(path: Path, task: Task, recorded: D4RLFile | None, hint: str) -> None:
    """Check a file against its recorded size and digest, and as data. Raises UserError with the hint."""
    if recorded is not None:
        size = path.stat().st_size
        if size != recorded.size:
            raise UserError(f"'{path}' has {size} bytes; D4RL's file has {recorded.size}. {hint}")
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != recorded.sha256:
            raise UserError(f"'{path}' has the SHA-256 {digest}; D4RL's file has {recorded.sha256}. {hint}")
    with MuJoCoFile(path, task.robot, hint=hint):
        pass


def _fetch(url: str, part: Path, options: Options, recorded: D4RLFile | None) -> None:
    """Download the rest of a file into ``part``, which has its beginning, until it is complete."""
    problem, failure = "", UserError
    for attempt in range(options.tries):
        if attempt:
            time.sleep(min(2.0**attempt / 2, 10.0))
        failure = UserError
        try:
            problem = _continue(url, part, options.timeout, recorded)
            if not problem:
                return
        except urllib.error.HTTPError as error:
            problem = f"the server says {error.code} {error.reason}"
            if 400 <= error.code < 500:
                break
        except urllib.error.URLError as error:
            problem, failure = f"no connection ({error.reason})", _Unreachable
        except (HTTPException, TimeoutError, ConnectionError) as error:
            problem = f"the connection broke ({error or type(error).__name__})"
    kept = part.stat().st_size if part.exists() else 0
    resumable = f" {kept} bytes are kept in '{part}'; run the command again to resume." if kept else ""
    raise failure(f"cannot download {url}: {problem}.{resumable}")


def _continue(url: str, part: Path, timeout: float, recorded: D4RLFile | None) -> str:
    """One try; returns what is wrong with the result, or nothing if the file is complete.

    Raises:
        UserError: the server's file differs in size from D4RL's; nothing is downloaded.
    """
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE:
            raise
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return ""
        part.unlink()
        return f"the {have} bytes here are not the beginning of the server's file of {total or 'unknown size'}"
    with response:
        resumed = response.status == _PARTIAL_CONTENT  # otherwise the server sends the whole file
        start = have if resumed else 0
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            return "the server sends another part of the file than it was asked for"
        length = response.headers.get("Content-Length")
        if length is None:
            return "the server does not say how long the file is"
        total = start + int(length)
        if recorded is not None and total != recorded.size:
            raise UserError(
                f"cannot download {url}: the server's file has {total} bytes, D4RL's has {recorded.size}; name another "
                "server with --url, or take this server's files with --check_digests false"
            )
        with (
            open(part, "ab" if resumed else "wb") as file,
            tqdm(total=total, initial=start, desc=part.stem, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while block := response.read(BLOCK_BYTES):
                file.write(block)
                bar.update(len(block))
    have = part.stat().st_size
    return "" if have == total else f"the connection ended after {have} of {total} bytes"


def main(argv: Sequence[str] | None = None) -> None:
    """Download the requested files; exits with 2 if any is missing at the end."""
    with exit_on_user_error():
        options = parse_options(
            Options,
            argv=argv,
            prog=SCRIPT,
            description="Download D4RL's MuJoCo datasets.",
            aliases={"data_dir": "data_path"},
        )
        failed, unreachable = [], False
        for task in options.tasks:
            if unreachable and not (data_directory(options.data_path) / d4rl_name(task)).exists():
                failed.append(task)
                continue
            try:
                print(download(task, options), flush=True)
            except UserError as error:
                failed.append(task)
                unreachable |= isinstance(error, _Unreachable)
                print(f"error: {error}", file=sys.stderr, flush=True)
            except KeyboardInterrupt:
                print("The same command continues where this one stopped.", file=sys.stderr)
                raise
        if failed:
            names = ", ".join(d4rl_name(task) for task in failed)
            raise UserError(
                f"{len(failed)} of {len(options.tasks)} files are missing or bad: {names}. Tried: {options.url}. "
                f"Put them into '{data_directory(options.data_path)}' by hand, name another server with --url, or make "
                "your own data with `python3 MuJoCo/generate_dataset.py --env ENV --dataset DATASET`."
            )


if __name__ == "__main__":
    main()
