"""Stopping a run on a signal, such that it can be resumed."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """A signal ended the run; what is saved is enough to resume it. Like KeyboardInterrupt, it is no error."""


def stop_now() -> NoReturn:
    """What a signal means outside of a tuning.

    Raises:
        Stopped: always.
    """
    raise Stopped("Stopped. Everything finished so far is saved; run again with --resume.")


def leave_nothing() -> NoReturn:
    """What a signal means for a command that writes aside and renames at the end.

    Raises:
        Stopped: always.
    """
    raise Stopped("Stopped. Nothing was written; what was there before is untouched.")


@contextmanager
def on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM calls `act`; a second one ends the process as usual.

    Does nothing outside of the main thread, the only one that may handle signals.
    """

    def handle(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        act()

    is_main = threading.current_thread() is threading.main_thread()
    previous = {number: signal.signal(number, handle) for number in STOPPING} if is_main else {}
    try:
        yield
    finally:
        for number, former in previous.items():
            signal.signal(number, former)
