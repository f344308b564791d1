"""Several processes of one run: they wait for each other, and none hangs because another one is gone.

Which part of this a launcher does already: docs/adr/0005-peers-watch-each-other.md.
"""

import json
import os
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any

from tuneprune.errors import ConfigError, TunePruneError
from tuneprune.system.signals import EXIT_RESUMABLE, Stopped, interrupt, on_signals

HEARTBEAT = 0.5
"""Seconds between two heartbeats."""
SILENCE = 60.0
"""Seconds without a heartbeat after which a process counts as lost."""
START = timedelta(minutes=10)
"""Time in which all processes have to appear."""
NOTICE = 15.0
"""Seconds after which a message names how many processes have not appeared yet."""
GRACE = 5.0
"""Seconds that a process has to exit in order once another one is gone."""
FAILED, BUG = 2, 1
ALONE = "unset WORLD_SIZE to run alone"
LOST = "exited unexpectedly; it may have been killed, or memory ran out. Run again with --resume."
ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")


class PeerLost(BaseException):
    """Another process of the run failed or was lost; `rank` is its rank, where that is known.

    Like KeyboardInterrupt it comes from outside, at any moment, and is not an error of the code it interrupts.
    """

    def __init__(self, sentence: str, rank: int | None = None) -> None:
        super().__init__(sentence)
        self.rank = rank


@dataclass(frozen=True)
class ExitReport:
    """How a process ended: its exit status, and a sentence where that is not 0."""

    rank: int
    status: int
    sentence: str = ""

    def as_error(self) -> BaseException:
        """The exception that it causes in the other processes."""
        return Stopped(self.sentence) if self.status == EXIT_RESUMABLE else PeerLost(self.sentence, self.rank)


def exit_report(rank: int, error: BaseException | None) -> ExitReport:
    """The report of a process that ends with this exception."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return ExitReport(rank, 0)
    if isinstance(error, Stopped):
        return ExitReport(rank, EXIT_RESUMABLE, str(error))
    if isinstance(error, TunePruneError | PeerLost):
        return ExitReport(rank, FAILED, str(error) if isinstance(error, PeerLost) else f"Process {rank}: {error}")
    words = next(iter(str(error).strip().splitlines()), "")
    return ExitReport(rank, BUG, f"Process {rank} ended: {type(error).__name__}: {words}")


class Peers:
    """This process among those that were launched together.

    Every process sends heartbeats and its exit report to a store that all can reach, and watches the others. When one
    ended early or sends no more heartbeats, the main thread gets an exception. Where it cannot take one, as inside a
    transfer that waits for the lost process, this process ends after a grace period. No file is damaged by that, as
    files appear whole or not at all.
    """

    def __init__(self, rank: int, size: int, store: Any, *, is_host: bool) -> None:  # noqa: ANN401  (torch's store)
        self.rank, self.size, self.store, self.is_host = rank, size, store, is_host
        self.others = [other for other in range(size) if other != rank]
        self.lost: ExitReport | None = None
        """The first process that ended early."""
        self._barriers = 0
        self._exiting = threading.Event()
        self._watch = threading.Thread(target=self._watch_others, name="peers", daemon=True)
        self._watch.start()

    def wait_for_all(self) -> None:
        """Wait until all processes are here; a signal and the loss of a process interrupt it."""
        self._barriers += 1
        place, pause = f"barrier/{self._barriers}", 0.001
        self.store.add(place, 1)
        while self.store.add(place, 0) < self.size:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def cause_of(self, error: BaseException | None) -> BaseException | None:
        """The exception for the early end of another process, where that may have caused `error`."""
        if not isinstance(error, Exception | PeerLost) or isinstance(error, TunePruneError):
            return None
        deadline = time.monotonic() + 4 * HEARTBEAT
        while self.lost is None and time.monotonic() < deadline:
            time.sleep(HEARTBEAT / 10)
        return self.lost.as_error() if self.lost else None

    def report_exit(self, error: BaseException | None) -> int:
        """Tell the others how this process ends, in time before a launcher ends them; returns its exit status."""
        self._exiting.set()
        self._watch.join()
        own = exit_report(self.rank, error)
        deadline = time.monotonic() + (4 * HEARTBEAT if own.status else 2 * GRACE)
        with suppress(RuntimeError):  # the store went down with the process that hosts it
            self.store.set(f"left/{self.rank}", json.dumps(asdict(own)))
            while (own.status or self.is_host) and self._any_running() and time.monotonic() < deadline:
                time.sleep(HEARTBEAT / 10)
        return own.status

    def _any_running(self) -> bool:
        """Whether another process that appeared has not reported its exit."""
        lost = () if self.lost is None else (self.lost.rank,)
        appeared = [other for other in self.others if other not in lost and self.store.add(f"beat/{other}", 0)]
        return not all(self.store.check([f"left/{other}"]) for other in appeared)

    def _watch_others(self) -> None:
        beats: dict[int, int] = {}
        heard = dict.fromkeys(self.others, time.monotonic() + START.total_seconds() - SILENCE)
        notice = time.monotonic() + NOTICE
        while self.lost is None and not self._exiting.wait(HEARTBEAT):
            absent = [other for other in heard if not beats.get(other)]
            if absent and time.monotonic() > notice:
                notice = float("inf")
                if self.rank == min({*range(self.size)} - {*absent}):
                    _print(
                        f"waiting for {len(absent)} of {self.size} processes (WORLD_SIZE={self.size}). Start them with"
                        f" torchrun, or {ALONE}."
                    )
            try:
                self.store.add(f"beat/{self.rank}", 1)
                self.lost = self._look(beats, heard)
            except RuntimeError:
                self.lost = self._report_for(0) if self.rank else None
        if self.lost is None:
            return
        interrupt(self.lost.as_error())
        if not self._exiting.wait(GRACE):
            _print(f"tuneprune: {self.lost.sentence}")
            os._exit(self.lost.status)

    def _look(self, beats: dict[int, int], heard: dict[int, float]) -> ExitReport | None:
        """The report of a process that ended early or has been silent for too long."""
        for other in [*heard]:
            if self.store.check([f"left/{other}"]):
                found = ExitReport(**json.loads(self.store.get(f"left/{other}")))
                if found.status:
                    return found
                del heard[other]
                continue
            beat = self.store.add(f"beat/{other}", 0)
            if beat != beats.get(other, 0):
                beats[other], heard[other] = beat, time.monotonic()
            elif time.monotonic() - heard[other] > SILENCE:
                return self._report_for(other, appeared=other in beats)
        return None

    def _report_for(self, other: int, *, appeared: bool = True) -> ExitReport:
        """The report for a process that could not write one."""
        minutes = START.total_seconds() / 60
        absent = f"did not appear within {minutes:g} minutes. Start all with torchrun, or {ALONE}."
        return ExitReport(other, FAILED, f"Process {other} of {self.size} {LOST if appeared else absent}")


_present: list[Peers] = []
"""This process among its peers, where it has any."""


def world_size() -> int:
    """Number of processes that a launcher started as one run, this one included; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1  # `check_launcher` refuses the rest


def has_peers() -> bool:
    """Whether other processes were launched with this one, and it knows where to find them."""
    return world_size() > 1 and "MASTER_PORT" in os.environ


def check_launcher() -> None:
    """Refuse an environment that promises processes that were not started, or asks for an engine that is not used.

    Raises:
        ConfigError: names the variables.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if not size.isdecimal() or (int(size) > 1 and missing):
        raise ConfigError(
            f"The environment has WORLD_SIZE={size:.20}, but not what a launcher sets with it"
            f" ({', '.join(missing) or 'a number of processes'}). Unset WORLD_SIZE to run alone, or start the processes"
            " with torchrun."
        )
    engines = [name for name in ENGINES if os.environ.get(name, "").lower() in ("1", "true", "yes")]
    if engines:
        raise ConfigError(
            f"The environment has {engines[0]}={os.environ[engines[0]]}, which asks accelerate for an engine that"
            " is not used here: every process holds the whole model. Unset it, or choose another configuration with"
            " `accelerate config`."
        )


@contextmanager
def watch_peers() -> Iterator[None]:
    """Inside, processes that `accelerate launch` or torchrun started end together; does nothing for one alone.

    Raises:
        PeerLost: another process failed or was lost.
        Stopped: another process was stopped.
    """
    if not has_peers():
        yield
        return
    error: BaseException | None = None
    peers: Peers | None = None
    try:
        with on_signals(lambda: None):  # a signal takes effect after this: joining waits minutes for a missing process
            peers = join(int(os.environ["RANK"]), world_size())
            _present.append(peers)
        yield
    except BaseException as raised:
        error = (peers and peers.cause_of(raised)) or raised
        if error is raised:
            raise
        raise error from None
    finally:
        _present.clear()
        if peers is not None and peers.report_exit(error) == 0:
            from torch import distributed

            if distributed.is_initialized():
                distributed.destroy_process_group()  # only now: it can hang where another process is gone


def join(rank: int, size: int) -> Peers:
    """The other processes, through the store by which torch's processes find each other.

    Raises:
        PeerLost: the process that hosts the store does not appear.
    """
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    options = {"is_master": is_host, "timeout": START, "wait_for_workers": False, "multi_tenant": True}
    try:
        store = TCPStore(host, port, size, **options)
    except RuntimeError as error:
        raise PeerLost(f"Process {rank} of {size} cannot reach process 0 at {host}:{port}: {error}", 0) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Peers(rank, size, PrefixStore(f"tuneprune/{attempt}", store), is_host=is_host)


def wait_for_all(accelerator: Any) -> None:  # noqa: ANN401  (accelerate's, whose barrier serves where nobody watches)
    """Wait for all processes of the run."""
    if _present:
        _present[0].wait_for_all()
    else:
        accelerator.wait_for_everyone()


@contextmanager
def transfer() -> Iterator[None]:
    """A transfer between processes inside; a lost connection is an error that a user can read.

    Raises:
        PeerLost: the connection broke.
    """
    try:
        yield
    except RuntimeError as error:
        words = re.sub(r"^\[\S*\] ", "", str(error).strip()).partition(". ")[0]
        raise PeerLost(f"The connection to another process broke ({words}): it {LOST}") from error


def _print(text: str) -> None:
    with suppress(OSError):  # the terminal may be gone
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
