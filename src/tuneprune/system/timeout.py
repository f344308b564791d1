"""A time limit for untrusted patterns and templates, which may never finish."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tuneprune.errors import TunePruneError


@contextmanager
def time_limit(seconds: float, refusal: TunePruneError) -> Iterator[None]:
    """Raises `refusal` in the body after that many seconds.

    It works in the main thread of a system with timers (not on Windows); elsewhere there is no limit. It interrupts
    Python code and regular expressions: other compiled code does not check for signals.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def refuse(*_: object) -> None:
        raise refusal

    before = signal.signal(signal.SIGALRM, refuse)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again every second, in case the first is caught
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
