"""Signals that ask a process to end: Ctrl-C (SIGINT), SIGTERM and SIGHUP.

A program of ours (`end_at_signals`) ends with one line and the status 128 + the signal's number. A
run that has something to save (`asked_to_end`) saves it first; a second signal ends it at once.
"""

from __future__ import annotations

import atexit
import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

NAMES = {
    getattr(signal, name): shown
    for name, shown in (("SIGINT", "Ctrl-C"), ("SIGTERM", "SIGTERM"), ("SIGHUP", "SIGHUP"))
    if hasattr(signal, name)
}
"""What messages call the signals that are heard."""

TOGETHER = 0.25
"""Seconds within which signals are one: terminals, `timeout` and launchers send theirs twice."""


removed_at_end: set[str] = set()
"""Temporary files and folders, which a process that ends at once removes."""


class Asked:
    """Whether a signal has asked this process to end."""

    def __init__(self) -> None:
        self.number: int | None = None
        """The first signal, None until there is one."""

    def save(self) -> None:
        """Takes note that from here on there is something to save, which the caller does."""


class Program(Asked):
    """The signals of a process that is ours alone.

    A thread of its own acts on them: Python's handlers have to wait while the first thread imports,
    compiles or reads, and an exception there, in the middle of XLA, has crashed it. `advice` ends
    the line that a signal is answered with.
    """

    def __init__(self, advice: str) -> None:
        super().__init__()
        self._advice, self._since = advice, 0.0
        self._saves, self._lock = False, threading.RLock()
        self.tell: Callable[[str, int], None] | None = None
        """Given the line and the status, ends the other hosts of a run, and this one."""
        listen, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in NAMES:
            if signal.getsignal(number) != signal.SIG_IGN:  # as of nohup, or in the background
                signal.signal(number, _wake)
                signal.siginterrupt(number, False)
        atexit.register(_ignore)
        threading.Thread(target=self._listen, args=(listen,), name="signals", daemon=True).start()

    def save(self) -> None:
        """Leaves the first signal to the caller from here on; ends at once if there was one."""
        with self._lock:
            self._saves = True

    def saved(self) -> None:
        """Ends at the first signal again, and now if there was one."""
        with self._lock:
            self._saves = False
            if self.number is not None:
                self._end(self.number)

    def forget(self) -> None:
        """Leaves what was asked to the caller's error, which ends the process."""
        with self._lock:
            self._saves = False

    def _listen(self, pipe: int) -> None:
        while True:
            for number in os.read(pipe, 1):
                if number in NAMES:
                    self._hear(number)

    def _hear(self, number: int) -> None:
        with self._lock:
            first = self.number is None
            if first:
                self.number, self._since = number, time.monotonic()
            if number == getattr(signal, "SIGHUP", None):
                _leave_terminal()
            if first and self._saves:
                return
            if first:
                self._end(number)
            if time.monotonic() - self._since > TOGETHER:
                self._end(number, "ended at once by a second")

    def _end(self, number: int, what: str = "stopped by") -> None:
        line, status = f"{what} {NAMES[number]}{self._advice}", 128 + number
        if self.tell is None:
            end(line, status)
        self.tell(line, status)


def _wake(number: int, frame: FrameType | None) -> None:
    """Does nothing: a signal that has a handler writes its number to the thread's pipe."""


def _ignore() -> None:
    """Has a process whose work is done end with its own status.

    Python gives signals their default back when it ends, and one in that moment would kill it.
    """
    for number in NAMES:
        signal.signal(number, signal.SIG_IGN)


def _leave_terminal() -> None:
    """Has what is printed go nowhere where the terminal has gone, or printing would raise."""
    for stream in (1, 2):
        try:
            os.write(stream, b"")
        except OSError:
            _silence(stream)


def _remove(path: str) -> None:
    """Removes a temporary file, or a folder with all that is in it."""
    with contextlib.suppress(OSError):
        if os.path.isdir(path):  # noqa: PTH112  pathlib takes as long to import as all else here
            import shutil  # whoever made the folder has imported it

            shutil.rmtree(path, ignore_errors=True)
        else:
            os.unlink(path)  # noqa: PTH108


def _silence(stream: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream)
    os.close(nowhere)


def end(line: str, status: int, *, linger: float = 0.0) -> NoReturn:
    """Ends this process and its children with an error's line; leaves no temporary files.

    `linger` is in seconds, after the line.
    """
    for child in multiprocessing.active_children():
        child.kill()
    for path in tuple(removed_at_end):
        _remove(path)
    with contextlib.suppress(OSError):
        # Not by `print`, whose lock the first thread may hold. ^C and bars leave a line open.
        os.write(2, f"{chr(10) * os.isatty(2)}error: {line}\n".encode(errors="backslashreplace"))
    if linger:
        _silence(2)  # other threads' lines: this one is the last
        time.sleep(linger)
    os._exit(status)


_program: Program | None = None


def end_at_signals(advice: str = ".") -> None:
    """Has this process, a program of ours, end with one line at a signal.

    To be called first, before what takes seconds to import. `advice` follows the signal's name.
    """
    global _program  # noqa: PLW0603  signals are the process's
    if _program is None:
        _program = Program(advice)


def program() -> Program | None:
    """Returns the signals of this process where it is a program of ours."""
    return _program


@contextlib.contextmanager
def asked_to_end() -> Iterator[Asked]:
    """Gives whether a signal has asked for the block's end, which is to save and raise.

    In a program of ours, a signal ends the process at once before the block calls `save`, and after
    the block; else the first signal of the block is left to it, and a second one does what it did
    before. Python allows that in the main thread only; in others nothing is heard.
    """
    if _program is not None:
        try:
            yield _program
        except BaseException:
            _program.forget()
            raise
        _program.saved()
        return
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.getsignal(number) for number in NAMES}
    heard = [number for number in NAMES if before[number] != signal.SIG_IGN]

    def restore() -> None:
        for number in heard:
            signal.signal(number, before[number])

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        asked.number = number
        restore()

    for number in heard:
        signal.signal(number, ask)
    try:
        yield asked
    finally:
        restore()


@contextlib.contextmanager
def children_without_signals() -> Iterator[None]:
    """Has processes that the block starts hear none of the signals, which go to whole groups.

    Whoever starts them ends them. A signal's mask is inherited, from the first instruction on.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # which unblocks signals when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, NAMES)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
