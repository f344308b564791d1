"""A limit in time on what runs a stranger's pattern or template, neither of which has to come to an end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tuneprune.errors import TunePruneError


@contextmanager
def time_limit(seconds: float, refusal: TunePruneError) -> Iterator[None]:
    """Raises `refusal` in the body once it has taken so long.

    It takes the main thread and a system with timers (any but Windows); elsewhere there is no limit. What is
    interrupted has to be Python or a regular expression: other compiled code does not look at signals.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def refuse(*_: object) -> None:
        raise refusal

    before = signal.signal(signal.SIGALRM, refuse)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)  # again each second, where somebody has caught the first
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
