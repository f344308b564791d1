"""The first signal asks to stop, the second one ends the process, whatever is running and whoever sends them."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from tuneprune.system.signals import Stopped, on_signals, stop_resumable

BUSY = """
import hashlib, os, sys, time
from tuneprune.system.signals import on_signals, stop_resumable
with on_signals(stop_resumable):
    print("ready", flush=True)
    {work}
print("ended", flush=True)
"""
IN_PYTHON = "for _ in range(600): time.sleep(0.1)"
IN_ONE_CALL = "hashlib.pbkdf2_hmac('sha256', b'', b'', 10**9)"  # minutes without a Python bytecode
CLEANING = """
    try:
        print("at work", flush=True)
        time.sleep(60)
    finally:
        time.sleep(60)
"""


class Busy:
    """A process that works inside `on_signals`."""

    def __init__(self, work, **environment):
        self.process = subprocess.Popen(
            [sys.executable, "-c", BUSY.format(work=work)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout.readline() == "ready\n"

    def send(self, *numbers):
        for number in numbers:
            self.process.send_signal(number)
        return self

    def heard(self):
        """Wait for the line that says that it is stopping."""
        return self.process.stderr.readline()

    def end(self):
        """Its exit status and the rest of its output."""
        with self.process:
            status = self.process.wait(20)
            # not `communicate`, which misses what reading a line has buffered
            return status, self.process.stdout.read() + self.process.stderr.read()


def test_second_signal_ends_a_call_into_a_library():
    busy = Busy(IN_ONE_CALL)
    time.sleep(0.5)  # until the call has started
    busy.send(signal.SIGTERM)
    assert "SIGTERM: stopping" in busy.heard()  # at once, though the call continues
    busy.send(signal.SIGINT)
    assert busy.end() == (128 + signal.SIGINT, "")


def test_second_signal_ends_waiting_python_code():
    busy = Busy(CLEANING)
    assert busy.process.stdout.readline() == "at work\n"
    busy.send(signal.SIGINT)
    assert "SIGINT: stopping" in busy.heard()
    busy.send(signal.SIGTERM)
    status, printed = busy.end()
    assert status in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert printed == ""


def test_lost_terminal_stops():
    busy = Busy(IN_PYTHON).send(signal.SIGHUP)
    assert "SIGHUP: stopping" in busy.heard()
    status, printed = busy.end()
    assert status == 1
    assert "Stopped" in printed


def test_lost_terminal_is_ignored_under_nohup():
    work = "import signal; print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)"
    nohup = subprocess.run(
        ["nohup", sys.executable, "-c", BUSY.format(work=work)], capture_output=True, text=True, check=True
    )
    assert nohup.stdout == "ready\nTrue\nended\n"


def test_signal_repeated_by_a_launcher_counts_once():
    busy = Busy(IN_PYTHON, WORLD_SIZE="2", RANK="0").send(signal.SIGTERM, signal.SIGTERM)
    busy.heard()
    status, printed = busy.end()
    assert status == 1
    assert "Stopped" in printed


def send_here(number):
    """A signal to this process, and time for it to arrive."""
    os.kill(os.getpid(), number)
    time.sleep(5)


def test_handlers_are_restored(capfd):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    with pytest.raises(Stopped), on_signals(stop_resumable):
        send_here(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    assert capfd.readouterr().err.count("stopping") == 1


def test_unchecked_signal_reaches_the_outer_block():
    noted = []
    with pytest.raises(Stopped), on_signals(stop_resumable), on_signals(lambda: noted.append(1)):
        os.kill(os.getpid(), signal.SIGINT)
    assert noted == [1]


@pytest.fixture
def python_handler():
    """Python's own handler for SIGINT; a shell makes background processes ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_handler")
def test_unchecked_signal_reaches_the_process():
    with pytest.raises(KeyboardInterrupt), on_signals(lambda: None):
        os.kill(os.getpid(), signal.SIGINT)


def test_block_after_a_swallowed_signal_acts_on_it():
    noted = []

    def careless():
        with suppress(BaseException):
            send_here(signal.SIGINT)
        with on_signals(lambda: noted.append(1)):
            assert noted == [1]

    with pytest.raises(Stopped), on_signals(stop_resumable):
        careless()


def test_stop_that_a_library_turns_into_an_error_stays_a_stop():
    def lazily_imported():
        try:
            send_here(signal.SIGTERM)
        except BaseException as error:
            raise ModuleNotFoundError("requirements") from error

    with pytest.raises(Stopped), on_signals(stop_resumable):
        lazily_imported()


def test_error_after_a_noted_signal_stays_an_error():
    def fail():
        os.kill(os.getpid(), signal.SIGTERM)
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError), on_signals(lambda: None):
        fail()
