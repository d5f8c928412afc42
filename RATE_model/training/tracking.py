"""Metrics: always in a local file, and in wandb if there is an account.

    <run>/metrics.jsonl   one JSON object per line, {"step": 40, "loss": 0.25, ...}; independent of interruptions, and
                          therefore without times
    <run>/timing.jsonl    {"step": 40, "seconds": 12.5} for every line ever written to metrics.jsonl; never truncated
    <run>/wandb/          wandb's files; <run>/wandb_id has the id under which a resumed run continues

wandb is imported only when it is used, and training continues whatever it does: its failures become one warning. Before
going online the key and the network are tried out in a separate process, with a time limit, since wandb.init by
itself retries for 100 s.
"""

import hashlib
import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from RATE_model.cli.local_settings import settings_file
from RATE_model.cli.options import BOOLEANS, close_matches, load_yaml
from RATE_model.errors import UserError
from RATE_model.system import secrets as keys
from RATE_model.system.atomic import atomic_write_text

WandbMode = Literal["auto", "online", "offline", "disabled"]

KEY_LENGTH = 40
"""wandb refuses shorter keys without contacting the server."""
PROBE_SECONDS = 5.0
ONLINE_SECONDS = 8.0
"""Time limit for going online, including the probe; after that the run stays offline."""
FINISH_SECONDS = 60.0

_CONFIG_KEYS = ("wandb_api", "entity", "project", "mode")
# Values of WANDB_MODE and their meaning here; "shared" is online for several processes.
_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}
_PRIVACY = ("online", "offline", "disabled")
_DISABLED = {name: "disabled" if on else "" for name, on in BOOLEANS.items()} | {"t": "disabled", "y": "disabled"}
_DISABLED |= {"f": "", "n": "", "none": "", "disabled": "disabled"}
_IGNORED_KEYS = ("comet_ml_api", "workspace_name")  # from the published code's files


class Tracker:
    """Writes the metrics of one run.

    A checkpoint stores `position`; a resumed run removes the lines after it (`truncate`) and writes them again.
    """

    def __init__(
        self,
        run_directory: Path,
        *,
        wandb_mode: WandbMode = "auto",
        project: str,
        name: str,
        group: str | None = None,
        config: dict[str, Any] | None = None,
    ) -> None:
        """``run_directory`` exists; ``config`` is the flat configuration shown in wandb.

        ``wandb_mode``: see `choose_mode`. Raises UserError if wandb_config.yaml is malformed, unless wandb is off, or
        if the directory is not writable.
        """
        self._directory = run_directory
        self._clock = time.monotonic()
        self._file = _open_for_append(run_directory / "metrics.jsonl")
        self._file.flush()
        self._digest = hashlib.sha256((run_directory / "metrics.jsonl").read_bytes())
        self._timing = _open_for_append(run_directory / "timing.jsonl")
        self._sent_to_wandb = _last_step(run_directory / "timing.jsonl")
        check_wandb(wandb_mode)
        settings, _ = _read_wandb_config()
        mode = choose_mode(wandb_mode, settings)
        self._wandb = None
        if mode != "disabled":
            self._wandb = _start_wandb(
                run_directory,
                mode,
                key=_api_key(settings),
                project=settings.get("project") or project,
                entity=settings.get("entity"),
                name=name,
                group=group,
                config={name: redact(it) if isinstance(it, str) else it for name, it in (config or {}).items()},
            )

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append one line. Numbers may be Python's, NumPy's or one-element tensors; NaN and infinity become null.

        Raises UserError if the file cannot be written.
        """
        if "step" in metrics:
            raise ValueError("'step' is the name of the step itself, not of a metric")
        values = {name: _number(value) for name, value in metrics.items()}
        try:
            line = _append(self._file, {"step": step, **{name: _finite(value) for name, value in values.items()}})
            self._digest.update(line.encode())
            _append(self._timing, {"step": step, "seconds": round(time.monotonic() - self._clock, 3)})
        except OSError as error:
            raise UserError(f"{self._directory / 'metrics.jsonl'} cannot be written: {error.strerror}") from error
        if (run := self._wandb) is not None and step > self._sent_to_wandb:
            self._guard("logging", lambda: run.log(values, step=step))

    def position(self) -> int:
        """The size of metrics.jsonl in bytes, for `truncate`; flushes the file to disk first."""
        os.fsync(self._file.fileno())
        return self._file.tell()

    def digest(self) -> str:
        """A digest of metrics.jsonl up to `position`, for `truncate`."""
        return self._digest.hexdigest()

    def truncate(self, position: int, *, step: int | None = None, digest: str | None = None) -> None:
        """For a resumed run: remove what was logged after its checkpoint, given its `position`, step and `digest`.

        wandb does not get the removed steps a second time. If lines were deleted, truncated or changed since the
        checkpoint, they are lost; a warning says so, and complete lines up to the checkpoint's step are kept.
        """
        path = self._directory / "metrics.jsonl"
        content = path.read_bytes()
        kept = content[:position]
        if len(kept) < position or (digest is not None and hashlib.sha256(kept).hexdigest() != digest):
            lines = [line for line, at in _complete_lines(path) if step is None or at <= step]
            kept = "".join(lines).encode()
            _warn(
                f"{path} was changed or truncated since its checkpoint was saved; {len(lines)} complete lines up to "
                "that point are kept, the others are lost"
            )
            self._file.truncate(0)
            self._file.write(kept.decode())
            self._file.flush()
        self._file.truncate(len(kept))
        self._file.seek(0, os.SEEK_END)  # truncating leaves the file position, which `position` would report
        self._digest = hashlib.sha256(kept)

    def close(self, exit_code: int = 0) -> None:
        """Close the files and finish wandb, waiting at most FINISH_SECONDS for its uploads."""
        self._file.close()
        self._timing.close()
        if (run := self._wandb) is not None:
            self._guard("finishing", lambda: run.finish(exit_code=exit_code))
        self._wandb = None

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close(exit_code=0 if kind is None else 1)

    def _guard(self, doing: str, action: Callable[[], object]) -> None:
        """Run an action of wandb; a failure turns wandb off with one warning."""
        try:
            action()
        except Exception as error:
            _warn(f"wandb failed while {doing} ({_first_line(error)}); continuing without it")
            self._wandb = None


class NoTracker(Tracker):
    """Writes nothing: with several processes only process 0 writes metrics."""

    def __init__(self) -> None:
        self._wandb = None

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Nothing."""

    def truncate(self, position: int, *, step: int | None = None, digest: str | None = None) -> None:
        """Nothing."""

    def close(self, exit_code: int = 0) -> None:
        """Nothing."""


def check_wandb(wandb_mode: WandbMode) -> None:
    """Raise a UserError if wandb is to be used and wandb_config.yaml is malformed.

    With wandb off it may be another project's file. Unless wandb was turned off explicitly, a warning says what is
    ignored.
    """
    settings, problems = _read_wandb_config()
    mode, wish, _ = _choose(wandb_mode, settings)
    if problems and mode != "disabled":
        raise UserError(problems[0])
    if problems and wish == "auto":
        _warn(f"{problems[0]}; wandb is off")


def choose_mode(wandb_mode: WandbMode, settings: dict[str, Any]) -> Literal["online", "offline", "disabled"]:
    """The mode to try; warns if that is less than requested, or if a value is unknown.

    ``wandb_mode``, or ``mode:`` of wandb_config.yaml if it is "auto"; WANDB_MODE and WANDB_DISABLED can make it more
    private, never less. With no setting at all: online with a key, else no wandb.
    """
    mode, _, words = _choose(wandb_mode, settings)
    for word in words:
        _warn(word)
    return mode


def _choose(wandb_mode: WandbMode, settings: dict[str, Any]) -> tuple[Any, str, list[str]]:
    """The mode, the requested one ("auto": none), and warnings."""
    disabled = os.environ.get("WANDB_DISABLED", "")
    said = [
        ("", "" if wandb_mode == "auto" else wandb_mode),
        ("wandb_config.yaml: mode:", settings.get("mode", "") if wandb_mode == "auto" else ""),
        ("WANDB_MODE", os.environ.get("WANDB_MODE", "")),
        ("WANDB_DISABLED", _DISABLED.get(disabled.strip().lower(), disabled)),
    ]
    words, wishes = [], []
    for name, value in said:
        if (value := value.strip().lower()) in ("", "auto"):
            continue
        if value not in _MODES:
            words.append(f"{name} {value}: must be one of {', '.join(_MODES)}; wandb stays offline")
        wishes.append(_MODES.get(value, "offline"))
    wish = max(wishes, key=_PRIVACY.index, default="auto")
    key = _api_key(settings)
    if wish == "disabled" or (wish == "auto" and not key):
        return "disabled", wish, []
    if wish == "offline":
        if wandb_mode == "online" and not words:
            words.append("WANDB_MODE or WANDB_DISABLED keeps wandb offline despite --wandb_mode online")
        return "offline", wish, words
    if len(key) >= KEY_LENGTH:
        return "online", wish, words
    if key:
        reason = f"the wandb key has {len(key)} characters; a valid one has {KEY_LENGTH} or more"
    else:
        reason = "there is no wandb key in WANDB_API_KEY or wandb_config.yaml"
    return "offline", wish, [f"{reason}; wandb stays offline"]


def _read_wandb_config() -> tuple[dict[str, str], list[str]]:
    """The account settings in wandb_config.yaml, and problems with other entries."""
    path = settings_file()
    if path is None:
        return {}, []
    try:
        content = load_yaml(path, texts=True)
    except UserError as error:
        return {}, [str(error)]
    settings, problems = {}, []
    for key, value in content.items():
        if key not in _CONFIG_KEYS:
            hint = close_matches(key, list(_CONFIG_KEYS))
            # Sections belong to environments, see `configured_folder`.
            if key not in _IGNORED_KEYS and (hint or not isinstance(value, dict | None)):
                problems.append(f"{path}: unknown key '{key}'{hint}")
        elif isinstance(value, dict | list):
            problems.append(f"{path}: {key}: expected one value, found {type(value).__name__} content")
        elif value is not None:
            settings[key] = str(value)
    keys.remember_key(settings.get("wandb_api", ""))
    return settings, problems


def redact(text: str) -> str:
    """``text`` with every wandb key replaced by ***: those in use, and anything that looks like one."""
    _read_wandb_config()  # remembers the key
    return keys.redact(text)


def probe_online(key: str, *, seconds: float = PROBE_SECONDS) -> str | None:
    """Why wandb cannot be used online with this key now, or None if it can; answers within ``seconds``.

    The key is tried out in a separate process, which is killed with all it started when the time is up.
    """
    code = f"import wandb; wandb.Api(timeout={max(1, int(seconds) - 1)})"
    with tempfile.TemporaryFile() as output:  # not a pipe: a service left behind by wandb would keep it open
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "WANDB_API_KEY": key},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return f"the server did not answer within {seconds:g} s"
        finally:
            _kill_group(process)
        output.seek(0)
        errors = output.read().decode(errors="replace")
    if process.returncode == 0:
        return None
    if re.search(r"\b401\b|\b403\b|invalid credentials", errors):
        return "the server refused the key"
    return "the server cannot be reached" if "AuthenticationError" in errors else _last_line(errors)


def _start_wandb(run_directory: Path, mode: Literal["online", "offline"], *, key: str, **arguments: Any) -> Any:
    """Start a wandb run, online or offline; None if that fails, with a warning."""
    # Even offline, wandb would send its own error reports, and wait for them at the end if there is no network.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    # wandb refuses to start with unknown values, even of variables that its arguments override.
    os.environ["WANDB_SILENT"] = "true"
    os.environ["WANDB_MODE"] = mode
    deadline = time.monotonic() + ONLINE_SECONDS
    try:
        import wandb
    except ImportError:
        _warn("wandb is not installed; continuing without it. To install it: pip install wandb")
        return None
    if mode == "online" and (reason := probe_online(key)):
        _warn(f"{reason}; wandb stays offline, upload later with: wandb sync {run_directory / 'wandb'}/offline-run-*")
        mode = "offline"
    identity = run_directory / "wandb_id"
    if key and mode == "online":
        os.environ["WANDB_API_KEY"] = key
    for attempt in dict.fromkeys((mode, "offline")):
        if not identity.exists():
            atomic_write_text(identity, f"{secrets.token_hex(4)}\n")
        try:
            run = wandb.init(
                dir=str(run_directory),
                mode=attempt,
                id=identity.read_text().strip(),
                resume="allow",
                settings=wandb.Settings(
                    console="off",
                    silent=True,
                    save_code=False,
                    disable_git=True,  # wandb would upload the diff of wandb_config.yaml, with the key in it
                    x_disable_meta=any(redact(argument) != argument for argument in sys.argv),
                    init_timeout=max(1.0, deadline - time.monotonic()),
                    finish_timeout=FINISH_SECONDS,
                ),
                **arguments,
            )
        except Exception as error:
            identity.unlink()  # wandb's service considers the id of a failed start as in use
            instead = "wandb stays offline" if attempt == "online" else "continuing without it"
            _warn(f"wandb failed to start ({_first_line(error)}); {instead}")
            continue
        if attempt == "online":
            print(f"wandb: {run.url}")
        return run
    return None


def _api_key(settings: dict[str, Any]) -> str:
    return os.environ.get("WANDB_API_KEY") or settings.get("wandb_api", "")


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill the process and its children: wandb starts a service that would outlive it."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def _open_for_append(path: Path) -> Any:
    try:
        cut_short = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        file = open(path, "a", encoding="utf-8")
        file.write("\n" if cut_short else "")
        return file
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _append(file: Any, record: dict[str, Any]) -> str:
    line = json.dumps(record, allow_nan=False) + "\n"
    file.write(line)
    file.flush()
    return line


def _complete_lines(path: Path) -> list[tuple[str, int]]:
    """(line, step) of every complete line of a metrics or timing file."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            if line.endswith("\n"):
                found.append((line, int(json.loads(line)["step"])))
        except (ValueError, KeyError, TypeError):
            continue
    return found


def _last_step(path: Path) -> int:
    return max((step for _, step in _complete_lines(path)), default=-1)


def _number(value: Any) -> float | int:
    return value.item() if hasattr(value, "item") else value


def _finite(value: float | int) -> float | int | None:
    return value if math.isfinite(value) else None


def _warn(message: str) -> None:
    print(f"warning: {redact(message)}", file=sys.stderr)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["wandb could not be started"])[-1][:200]
