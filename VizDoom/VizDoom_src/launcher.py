"""A script that starts the engine so that it leaves no traces and does not outlive us.

- The engine creates a folder `_vizdoom` in its working directory, so the script changes to the cache first.
- The engine ignores signals that stop a job: we get them, and end the engine.
- Where the system can signal a parent's death (Linux, with `setpriv`), the engine ends even if we are killed. A death
  before that is set up goes unnoticed, so the script then checks who its parent is.

An engine that dies while starting silently kills the process that starts it (ViZDoom 1.3.2). So a separate process
first tests whether one starts, in a third of a second: before the first engine of every process, and a replacement.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

from RATE_model.errors import UserError
from RATE_model.system import cache
from VizDoom.VizDoom_src.scenario import cache_directory

_SCRIPT = """#!/bin/sh
cd "${{0%/*}}" || exit 1
trap '' INT HUP USR1 USR2
if command -v setpriv >/dev/null && setpriv --pdeathsig KILL true 2>/dev/null; then
    exec setpriv --pdeathsig KILL /bin/sh -c '[ "$PPID" = "$RATE_ENGINE_OWNER" ] && exec "$@"' sh {engine} "$@"
fi
exec {engine} "$@"
"""
_TRIAL = """
import os, sys
import vizdoom
os.environ["RATE_ENGINE_OWNER"] = str(os.getpid())
game = vizdoom.DoomGame()
game.set_vizdoom_path(sys.argv[1])
game.set_doom_config_path(os.devnull)
game.set_window_visible(False)
game.set_sound_enabled(False)
game.init()
game.close()
"""
_OWNER = "RATE_ENGINE_OWNER"  # environment variable: id of the process that starts the engine
_TRIAL_SECONDS = 120
_ONE_AT_A_TIME = threading.Lock()


def launcher(package: ModuleType, *, again: bool = False) -> Path | None:
    """The script that starts the engine of an installed package vizdoom from this process; None on Windows, where the
    engine is started directly.

    Args:
        package: the package.
        again: test again although an engine of this process has started before, because it died.

    Raises:
        UserError: the engine does not start, or the cache cannot be written.
    """
    if os.name == "nt":
        return None
    text = _SCRIPT.format(engine=shlex.quote(str(Path(package.__path__[0]) / "vizdoom")))
    path = cache_directory() / f"engine_{hashlib.sha256(text.encode()).hexdigest()[:12]}.sh"
    if not path.exists():
        cache.write(path, text.encode(), executable=True)
    with _ONE_AT_A_TIME:  # parallel games start together, and one test is enough
        (_check if again else _check_once)(path)
    os.environ[_OWNER] = str(os.getpid())
    return path


def _check(script: Path) -> None:
    """Raise a `UserError` if this script cannot start an engine."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, script], capture_output=True, text=True, timeout=_TRIAL_SECONDS
        )
        status, said = f"status {done.returncode}", done.stderr.strip().splitlines()
    except subprocess.TimeoutExpired:
        status, said = f"nothing after {_TRIAL_SECONDS} s", ["?"]
    if status != "status 0":
        raise UserError(
            f"the ViZDoom engine does not start ({status}: {said[-1] if said else 'no message'}). Check that programs "
            f"may run in '{script.parent}' (or set XDG_CACHE_HOME), and that /dev/shm has space."
        )


_check_once = functools.cache(_check)
