"""Stopping on a signal: the first one asks the run to save and stop, the second one ends the process."""

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
"""Sent by another thread of this process to interrupt the main thread."""
REPEATED_WITHIN = 5.0
"""Seconds in which one signal may reach a launched process twice: from its sender and from the launcher."""
SHOW_CURSOR = "\x1b[?25h"
NOHUP = (signal.SIGHUP, signal.SIG_IGN)
"""SIGHUP is ignored, as `nohup` asks: the process continues when its terminal is lost."""


class Stopped(BaseException):
    """A signal stopped the run; what is saved is enough to resume it. Like KeyboardInterrupt, it is not an error."""


def stop_with(message: str) -> Callable[[], NoReturn]:
    """A function for `on_signals` that raises `Stopped` with this message."""

    def stop() -> NoReturn:
        raise Stopped(message)

    return stop


stop_at_once = stop_with("Stopped.")
stop_resumable = stop_with("Stopped. Everything finished so far is saved; run again with --resume.")
stop_unwritten = stop_with("Stopped. Nothing was written; what was there before is untouched.")
stop_partly_done = stop_with("Stopped. What was finished stays; run the same command again for the rest.")


@contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP calls `act`; a second one ends the process wherever it is.

    Blocks can be nested; the innermost one acts. A block that ends although its `act` was called (a library swallowed
    the exception, or nobody checked what `act` noted) passes the signal on to the block around it, and the outermost
    block to the process. Where a library turned the exception into an error of its own, the exception is raised again.

    Does nothing outside of the main thread, the only one that can handle signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    is_outermost = not _open
    handler = SignalHandler() if is_outermost else _open[0]
    handler.acts.append(act)
    try:
        if handler.received:
            act()  # an earlier signal, after which nothing stopped
        yield
        if handler.received and len(handler.acts) > 1:
            handler.acts[-2]()
    except Exception:
        if handler.stop is not None:  # a library caught it and raised another, such as an ImportError
            raise handler.stop from None
        raise
    finally:
        handler.acts.pop()
        if is_outermost:
            handler.close()
    if is_outermost and handler.received:
        signal.raise_signal(handler.received)


def restore_default_handlers() -> None:
    """After a stop, when everything is saved: another signal ends the process without a message."""
    for number in () if is_launched() else STOPPING:
        signal.signal(number, signal.SIG_DFL)


def interrupt(error: BaseException) -> None:
    """Raise `error` in the main thread as soon as it runs Python; from another thread, inside `on_signals`."""
    for handler in _open:
        handler.error = error
        signal.pthread_kill(threading.main_thread().ident or 0, INTERRUPTING)


class SignalHandler:
    """Handles the signals of this process while a block of `on_signals` is open.

    Python runs a handler only between two bytecodes, so a long call into a library delays it. A thread therefore reads
    the signals too: it prints at once that the first one was received, and ends the process at the second one.
    """

    def __init__(self) -> None:
        self.acts: list[Callable[[], None]] = []
        self.received = 0
        """The first signal, or 0."""
        self.stop: BaseException | None = None
        """The exception that `act` raised."""
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
        """Restore the former handlers; ignore signals instead where a launcher may still repeat the one received."""
        _open.remove(self)
        for number, former in self.former.items():
            signal.signal(number, signal.SIG_IGN if is_launched() and (self.received or self.error) else former)
        signal.set_wakeup_fd(self.former_wakeup)
        os.write(self.writer, b"\0")
        self.watch.join()
        os.close(self.writer)
        os.close(self.reader)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received:  # repeated by a launcher; without one, the second signal has its default effect
            return
        self.received = number
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
                _print(f"{signal.Signals(number).name}: stopping. A second signal exits at once.")
            elif not is_launched() or time.monotonic() - first > REPEATED_WITHIN:
                os._exit(128 + number)


_open: list[SignalHandler] = []
"""The handler of this process while it has one; signals belong to the process."""


def is_launched() -> bool:
    """Whether `accelerate launch` or torchrun started this process, perhaps among others."""
    return "WORLD_SIZE" in os.environ


def is_main_process() -> bool:
    """Whether this is the first of the launched processes, the one that writes to the terminal."""
    return os.environ.get("RANK", "0") == "0"


def _print(text: str) -> None:
    """Print a line on stderr, and show the cursor: a progress bar hides it, and a killed process leaves it hidden."""
    if not is_main_process():
        return
    with suppress(OSError, ValueError):  # the terminal may be gone
        sys.stderr.write(f"{SHOW_CURSOR if sys.stderr.isatty() else ''}tuneprune: {text}\n")
        sys.stderr.flush()
