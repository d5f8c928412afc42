"""Signals stop a script within seconds in every phase, with the exit code that shells expect."""

import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from RATE_model.cli.options import exit_on_user_error
from RATE_model.system.interrupts import SIGNALS, Interrupted, Interrupts, stop_if_asked
from RATE_model.system.processes import in_order, in_processes

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = [
    *("TMaze_new/TMaze_new_src/train_tmaze.py", "VizDoom/VizDoom_src/inference_vizdoom.py", "Atari/reproduce.py"),
    *("MinigridMemory/get_data/collect_traj.py", "tools/check_parity.py", "benchmarks/rollout.py"),
    *("download_d4rl_datasets.py", "-m RATE_model.original"),
]


@pytest.mark.parametrize("name", SIGNALS)
def test_every_signal_ends_a_script(name, capsys):
    before = signal.getsignal(getattr(signal, name))
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(5)
    assert stop.value.code == 128 + getattr(signal, name)
    assert capsys.readouterr().err == f"stopped by {name}\n"
    assert signal.getsignal(getattr(signal, name)) == before


def test_sighup_stays_ignored_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_on_user_error(), Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.requested is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_any_thread_can_poll_inside_the_context():
    found = []

    def ask():
        try:
            stop_if_asked()
        except Interrupted as interruption:
            found.append(interruption.name)

    with Interrupts():
        ask()
        assert found == []
        os.kill(os.getpid(), signal.SIGUSR2)
        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
    ask()
    assert found == ["SIGUSR2"]


def test_a_thread_sees_a_signal_to_the_main_thread():
    stopped = threading.Event()

    def work():
        try:
            while True:
                stop_if_asked()
                time.sleep(0.01)
        except Interrupted:
            stopped.set()

    with pytest.raises(SystemExit, match="143"), exit_on_user_error():
        thread = threading.Thread(target=work)
        thread.start()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            assert stopped.wait(60)
    stop_if_asked()


class Finalized:
    """Waits in its finalizer."""

    def __init__(self, action):
        self.action = action

    def __del__(self):
        self.action()


class WithCallback:
    """Waits in the callback of a weak reference."""

    def __init__(self, action):
        WithCallback.reference = weakref.ref(self, lambda _: action())


@pytest.mark.parametrize("kind", [Finalized, WithCallback])
def test_a_signal_inside_a_finalizer_is_not_lost(kind, capfd):
    """Python does not propagate exceptions from there."""
    before = sys.unraisablehook
    with pytest.raises(SystemExit, match="143"), exit_on_user_error():
        kind(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(60)))
        time.sleep(60)
    assert capfd.readouterr().err == "stopped by SIGTERM\n" and sys.unraisablehook is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_errors_of_finalizers_are_still_shown(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    with exit_on_user_error():
        Finalized(lambda: 1 / 0)
    assert isinstance(shown[0].exc_value, ZeroDivisionError)


def sleep_beside_a_file(path):
    try:
        Path(path).touch()
        time.sleep(60)
    finally:
        Path(path).unlink()


def sleep_in_a_finalizer(path):
    try:
        Finalized(lambda: (Path(path).touch(), time.sleep(60)))
        time.sleep(60)
    finally:
        Path(path).unlink()


@pytest.mark.parametrize(("run", "work"), [(in_processes, sleep_beside_a_file), (in_order, sleep_in_a_finalizer)])
def test_workers_stop_during_a_task_and_clean_up(tmp_path, capfd, run, work):
    tasks = [str(tmp_path / name) for name in "ab"]

    def send_when_working():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.05)
        started.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGTERM)

    started = []
    threading.Thread(target=send_when_working).start()
    with pytest.raises(SystemExit) as stop, exit_on_user_error():
        list(run(work, tasks, 2))
    assert stop.value.code == 143 and time.monotonic() - started[0] < 30
    assert not list(tmp_path.iterdir()) and capfd.readouterr().err == "stopped by SIGTERM\n"


def at_the_first_import(folder: Path, action: str) -> dict[str, str]:
    """An environment in which an action runs when a script first imports a third-party package."""
    (folder / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Late:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in ('torch', 'numpy', 'tqdm', 'yaml'): {action}\n"
        "sys.meta_path.insert(0, Late())\n"
    )
    return os.environ | {"PYTHONPATH": str(folder)}


def test_ctrl_c_during_imports_shows_no_traceback(tmp_path):
    environment = at_the_first_import(tmp_path, "os.kill(os.getpid(), signal.SIGINT)")
    for script in SCRIPTS:
        done = subprocess.run(
            [sys.executable, *script.split(), "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n"), script


def test_too_little_memory_to_start_is_one_line(tmp_path):
    environment = at_the_first_import(tmp_path, "raise ImportError('libx.so: failed to map segment')")
    done = subprocess.run(
        [sys.executable, SCRIPTS[0], "--help"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("error: cannot start") and done.stderr.count("\n") == 1
