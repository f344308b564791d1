"""Stopping on a signal: the first one asks, such that the run can be resumed; the second one ends the process."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

EXIT_RESUMABLE = 75
"""Exit status of a run that was stopped after saving: `--resume` continues it."""
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
INTERRUPTING = signal.SIGUSR1
"""By which another thread of this process reaches the main one."""
REPEATED_WITHIN = 5.0
"""Seconds in which a signal may reach a launched process twice, from its sender and from the launcher."""
SHOW_CURSOR = "\x1b[?25h"
NOHUP = (signal.SIGHUP, signal.SIG_IGN)
"""A lost terminal that whoever started the process wants ignored."""


class Stopped(BaseException):
    """A signal ended the run; what is saved is enough to resume it. Like KeyboardInterrupt, it is no error."""


def stop_now() -> NoReturn:
    """What a signal means outside of a tuning.

    Raises:
        Stopped: always.
    """
    raise Stopped("Stopped. Everything finished so far is saved; run again with --resume.")


def leave() -> NoReturn:
    """What a signal means where there is nothing to save.

    Raises:
        Stopped: always.
    """
    raise Stopped("Stopped.")


def leave_nothing() -> NoReturn:
    """What a signal means for a command that writes aside and renames at the end.

    Raises:
        Stopped: always.
    """
    raise Stopped("Stopped. Nothing was written; what was there before is untouched.")


def leave_finished() -> NoReturn:
    """What a signal means for a command whose results appear one by one, each whole.

    Raises:
        Stopped: always.
    """
    raise Stopped("Stopped. What was finished stays; run the same command again for the rest.")


@contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP calls `act`; a second one ends the process wherever it is.

    Blocks may stand in each other: the innermost one acts. A block that ends although its `act` was called, as when a
    library swallowed its exception or nobody looked at what it noted, hands the signal to the block around it, the
    outermost one to the process. Where a library turned the exception into an error of its own, it is raised again.

    Does nothing outside of the main thread, the only one that may handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_outermost = not _open
    desk = Desk() if is_outermost else _open[0]
    desk.acts.append(act)
    try:
        if desk.came:
            act()  # it came before, and nobody stopped
        yield
        if desk.came and len(desk.acts) > 1:
            desk.acts[-2]()
    except Exception:
        if desk.stop is not None:  # what a library made of it, such as an import that failed
            raise desk.stop from None
        raise
    finally:
        desk.acts.pop()
        if is_outermost:
            desk.close()
    if is_outermost and desk.came:
        signal.raise_signal(desk.came)


def let_through() -> None:
    """After a stop: another signal ends the process without a word; what there was to save is saved."""
    for number in () if is_launched() else STOPPING:
        signal.signal(number, signal.SIG_DFL)


def interrupt(error: BaseException) -> None:
    """Raise `error` in the main thread as soon as it runs Python; from another thread, inside `on_signals`."""
    for desk in _open:
        desk.error = error
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPTING)


class Desk:
    """Where the signals of this process arrive while a block of `on_signals` is open.

    Python calls a handler between two steps of its own, so a long call into a library delays it. A thread therefore
    watches beside it: it says at once that the signal was heard, and ends the process at the second one.
    """

    def __init__(self) -> None:
        self.acts: list[Callable[[], None]] = []
        self.came = 0
        self.stop: BaseException | None = None
        """What the act raised."""
        self.error: BaseException | None = None
        handled = [number for number in STOPPING if (number, signal.getsignal(number)) != NOHUP]
        self.reader, self.writer = os.pipe()
        os.set_blocking(self.writer, False)
        self.former_wakeup = signal.set_wakeup_fd(self.writer, warn_on_full_buffer=False)
        self.former: dict[int, Any] = {number: signal.signal(number, self._handle) for number in handled}
        self.former[INTERRUPTING] = signal.signal(INTERRUPTING, self._raise)
        self.watch = threading.Thread(target=self._watch, name="signals", daemon=True)
        self.watch.start()
        _open.append(self)

    def close(self) -> None:
        """Leave signals to whom they belonged before; to nobody where a launcher may still repeat the one that came."""
        _open.remove(self)
        for number, former in self.former.items():
            signal.signal(number, signal.SIG_IGN if is_launched() and (self.came or self.error) else former)
        signal.set_wakeup_fd(self.former_wakeup)
        os.write(self.writer, b"\0")
        self.watch.join()
        os.close(self.writer)
        os.close(self.reader)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.came:  # of a launcher; without one, the second signal does not arrive here
            return
        self.came = number
        if not is_launched():
            for each in STOPPING:
                signal.signal(each, signal.SIG_DFL)
        try:
            self.acts[-1]()
        except BaseException as stop:
            self.stop = stop
            raise

    def _raise(self, *_: object) -> None:
        if self.error is not None:
            raise self.error

    def _watch(self) -> None:
        first: float | None = None
        while number := os.read(self.reader, 1)[0]:
            if number not in STOPPING:
                continue
            if first is None:
                first = time.monotonic()
                _say(f"{signal.Signals(number).name}: stopping. A second signal leaves at once.")
            elif not is_launched() or time.monotonic() - first > REPEATED_WITHIN:
                os._exit(128 + number)


_open: list[Desk] = []
"""The desk of this process while it has one; signals belong to the process."""


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process, perhaps among others."""
    return "WORLD_SIZE" in os.environ


def _say(text: str) -> None:
    """A line for who sent the signal; a progress bar hides the cursor, which a process that is killed leaves so."""
    if os.environ.get("RANK", "0") != "0":
        return
    with suppress(OSError, ValueError):  # the terminal may be what was lost
        sys.stderr.write(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}tuneprune: {text}\n")
        sys.stderr.flush()
