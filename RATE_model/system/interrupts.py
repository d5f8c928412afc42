"""Signals that ask a process to stop. They take effect within seconds, with the exit code that shells expect.

A process has three phases. While modules are imported there is nothing to clean up, so it exits at once
(`quit_on_signals`, called by `script`). Inside a script's main a signal becomes an exception, so files are closed and
temporary files removed (`raising_interrupts`). During training the signal is only recorded, so that the state can be
saved first; loops over many small steps check it between steps (`Interrupts`, `stop_if_asked`).

Imports only the standard library: scripts import it before anything else.
"""

import _thread
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = tuple(
    name for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # schedulers announce the end of a job with the last two

SIGNAL_CODES = tuple(128 + getattr(signal, name) for name in SIGNALS)
"""Exit codes of a process stopped by one of these signals."""


class RaisedBySignal(BaseException):
    """Raised by a signal handler; `keep_raising` makes sure that it is not lost."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class Interrupted(RaisedBySignal, KeyboardInterrupt):
    """A signal asked the process to stop. Like Ctrl-C's exception, it is not caught by ``except Exception``."""


def exit_code(interruption: KeyboardInterrupt) -> int:
    """128 + the signal's number, as in shells."""
    return 128 + signal.Signals[signal_name(interruption)]


def signal_name(interruption: KeyboardInterrupt) -> str:
    """SIGTERM, ...; SIGINT for Python's own Ctrl-C exception."""
    return interruption.name if isinstance(interruption, Interrupted) else "SIGINT"


def quit_on_signals() -> None:
    """From now on, exit at once on a signal, with one line instead of a traceback from the middle of an import.

    The same goes for imports that fail for lack of memory.
    """

    def quit_now(name: str) -> None:
        os.write(2, f"stopped by {name}\n".encode())
        os._exit(128 + signal.Signals[name])

    _install(quit_now)
    sys.excepthook = _report


def _report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Exception hook: an import that failed for lack of a resource prints one line and exits with status 2."""
    said = str(error).partition("\n")[0]
    if isinstance(error, MemoryError) or re.search("cannot allocate memory|failed to map segment|Too many open", said):
        os.write(2, f"error: cannot start, too few resources ({said or kind.__name__}); raise the limits\n".encode())
        os._exit(2)
    sys.__excepthook__(kind, error, trace)


@contextmanager
def raising_interrupts() -> Iterator[None]:
    """Inside, a signal raises Interrupted in the main thread, whatever it is doing; other threads can poll."""
    global _raised

    def interrupt(name: str) -> None:
        global _raised
        _raised = name
        raise Interrupted(name)

    restore = _install(interrupt)
    try:
        yield
    finally:
        _raised = None
        restore()


class Interrupts:
    """Context manager that turns signals into a request to stop at the next opportunity.

    ``requested`` is None or the name of the first signal. A loop that has saved its state calls ``stop()``, which
    raises Interrupted; code without state to save calls `stop_if_asked`. A second SIGINT raises Interrupted at once.
    The previous handlers are restored on exit. Outside the main thread, where Python allows no handlers, no signal is
    ever recorded.
    """

    def __init__(self) -> None:
        self.requested: str | None = None
        self._restore: Callable[[], None] = _do_nothing
        self._outer: Interrupts | None = None

    def __enter__(self) -> "Interrupts":
        global _innermost
        self._restore = _install(self._note)
        self._outer, _innermost = _innermost, self
        return self

    def __exit__(self, *exception: object) -> None:
        global _innermost
        _innermost = self._outer
        self._restore()

    def stop(self) -> None:
        """Raise Interrupted if a stop has been requested."""
        if self.requested is not None:
            raise Interrupted(self.requested)

    def _note(self, name: str) -> None:
        if self.requested is not None:
            if name == "SIGINT":
                raise Interrupted(name)
            return
        self.requested = name
        hint = "; press Ctrl-C again to stop at once" if name == "SIGINT" else ""
        os.write(2, f"\n{name}: stopping after this step{hint}\n".encode())  # print() is not reentrant


# Signals go to a process as a whole, so any thread may check whether one arrived.
_innermost: Interrupts | None = None
_raised: str | None = None


def stop_if_asked() -> None:
    """Raise Interrupted, in any thread, if a signal arrived inside the innermost `Interrupts`; almost free.

    Also if one was raised in the main thread, which then waits for this thread to end.
    """
    if _innermost is not None:
        _innermost.stop()
    if _raised is not None:
        raise Interrupted(_raised)


def received() -> str | None:
    """The signal received inside `Interrupts` or `raising_interrupts`, or None; callable from any thread."""
    return _raised if _innermost is None else _innermost.requested or _raised


def request(name: str) -> None:
    """Act as if this process had received a signal, unless it already has one; callable from any thread."""
    if received() is not None:
        return
    if _innermost is not None:
        _innermost._note(name)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, getattr(signal, name))  # wakes it if it is waiting


def keep_raising() -> Callable[[], None]:
    """Make sure that no handler's exception is lost; returns a function that undoes this.

    A handler can run inside finalizers and weak reference callbacks, where Python prints and drops an exception
    instead of propagating it. The signal is then sent again a little later.
    """
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if isinstance(lost.exc_value, RaisedBySignal):
            # Not threading.Thread: the finalizer may have interrupted code that holds that module's locks.
            _thread.start_new_thread(_send_again, (lost.exc_value.name,))
        else:
            before(lost)

    def undo() -> None:
        sys.unraisablehook = before

    sys.unraisablehook = hook
    return undo


def _send_again(name: str) -> None:
    time.sleep(0.01)
    signal.pthread_kill(threading.main_thread().ident or 0, getattr(signal, name))


def _install(action: Callable[[str], None]) -> Callable[[], None]:
    """Route all signals to ``action``; returns a function that restores the previous handlers.

    Only the main thread can do this; elsewhere it is a no-op.
    """
    if threading.current_thread() is not threading.main_thread():
        return _do_nothing
    process = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            action(signal.Signals(number).name)
        elif number == signal.SIGTERM:  # must kill a forked child; everything else is left to its parent
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    stop_keeping, previous = keep_raising(), {}
    for name in SIGNALS:
        number = getattr(signal, name)
        if name == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup: the process should outlive its terminal
        previous[number] = signal.signal(number, handle)

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        stop_keeping()

    return restore


def _do_nothing() -> None:
    pass
