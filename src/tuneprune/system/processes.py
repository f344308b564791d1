"""The processes of one run among each other: they meet, and none waits for one that has gone."""

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

BEAT = 0.5
"""Seconds between two signs of life."""
SILENCE = 60.0
"""Seconds without a sign of life after which a process counts as lost."""
START = timedelta(minutes=10)
"""How long all processes may take to appear."""
GRACE = 5.0
"""Seconds that a process has to leave in order once another has gone."""
FAILED, BUG = 2, 1
LOST = "is gone without a word, as when it is killed or memory runs out. Run again with --resume."


ENGINES = ("ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP", "ACCELERATE_USE_MEGATRON_LM")
AWAITED = 15.0
"""Seconds after which it is said that other processes have not appeared yet."""


class PeerLost(BaseException):
    """Another process of the run failed or was lost; `rank` says which, where that is known.

    Like KeyboardInterrupt it comes from outside, at any moment, and is no error of what runs then.
    """

    def __init__(self, sentence: str, rank: int | None = None) -> None:
        super().__init__(sentence)
        self.rank = rank


@dataclass(frozen=True)
class Farewell:
    """How a process left: its exit status, and a sentence where that is not 0."""

    rank: int
    status: int
    sentence: str = ""

    def as_error(self) -> BaseException:
        """What it means for the others."""
        return Stopped(self.sentence) if self.status == EXIT_RESUMABLE else PeerLost(self.sentence, self.rank)


class Peers:
    """This process among those that were launched together.

    Every process beats in a store that all can reach, says there how it leaves, and watches the others. When one has
    left before its time or no longer beats, the main thread gets an exception; where it cannot take one, as inside a
    transfer that waits for the other, the process ends after a moment of grace. Nothing is lost by that which was not
    lost already: files appear whole or not at all.
    """

    def __init__(self, rank: int, size: int, store: Any, *, is_host: bool) -> None:  # noqa: ANN401  (torch's store)
        self.rank, self.size, self.store, self.is_host = rank, size, store, is_host
        self.others = [other for other in range(size) if other != rank]
        self.gone: Farewell | None = None
        """The first process that left before its time."""
        self._meetings = 0
        self._leaving = threading.Event()
        self._watch = threading.Thread(target=self._watch_others, name="peers", daemon=True)
        self._watch.start()

    def meet(self) -> None:
        """Wait for all processes to come here; a signal and the loss of a process end it."""
        self._meetings += 1
        place, pause = f"meeting/{self._meetings}", 0.001
        self.store.add(place, 1)
        while self.store.add(place, 0) < self.size:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)

    def cause_of(self, error: BaseException | None) -> BaseException | None:
        """The exception that another process's leaving stands behind, where `error` is but its consequence."""
        if not isinstance(error, Exception | PeerLost) or isinstance(error, TunePruneError):
            return None
        deadline = time.monotonic() + 4 * BEAT
        while self.gone is None and time.monotonic() < deadline:
            time.sleep(BEAT / 10)
        return self.gone.as_error() if self.gone else None

    def leave(self, error: BaseException | None) -> int:
        """Say how this process leaves, and give the others time to hear it before a launcher ends them; its status."""
        self._leaving.set()
        self._watch.join()
        own = farewell(self.rank, error)
        deadline = time.monotonic() + (4 * BEAT if own.status else 2 * GRACE)
        with suppress(RuntimeError):  # the store is gone with the process that had it
            self.store.set(f"left/{self.rank}", json.dumps(asdict(own)))
            while (own.status or self.is_host) and self._remaining() and time.monotonic() < deadline:
                time.sleep(BEAT / 10)
        return own.status

    def _remaining(self) -> bool:
        """Whether a process that ever appeared has not left."""
        lost = () if self.gone is None else (self.gone.rank,)
        appeared = [other for other in self.others if other not in lost and self.store.add(f"beat/{other}", 0)]
        return not all(self.store.check([f"left/{other}"]) for other in appeared)

    def _watch_others(self) -> None:
        beats: dict[int, int] = {}
        heard = dict.fromkeys(self.others, time.monotonic() + START.total_seconds() - SILENCE)
        notice = time.monotonic() + AWAITED
        while self.gone is None and not self._leaving.wait(BEAT):
            absent = [other for other in heard if not beats.get(other)]
            if absent and time.monotonic() > notice:
                notice = float("inf")
                self._say_who_is_awaited(absent)
            try:
                self.store.add(f"beat/{self.rank}", 1)
                self.gone = self._look(beats, heard)
            except RuntimeError:
                self.gone = self._lost(0) if self.rank else None
        if self.gone is None:
            return
        interrupt(self.gone.as_error())
        if not self._leaving.wait(GRACE):
            with suppress(OSError):
                sys.stderr.write(f"tuneprune: {self.gone.sentence}\n")
                sys.stderr.flush()
            os._exit(self.gone.status)

    def _look(self, beats: dict[int, int], heard: dict[int, float]) -> Farewell | None:
        """Who left before the end or has been silent for too long."""
        for other in [*heard]:
            if self.store.check([f"left/{other}"]):
                found = Farewell(**json.loads(self.store.get(f"left/{other}")))
                if found.status:
                    return found
                del heard[other]
                continue
            beat = self.store.add(f"beat/{other}", 0)
            if beat != beats.get(other, 0):
                beats[other], heard[other] = beat, time.monotonic()
            elif time.monotonic() - heard[other] > SILENCE:
                return self._lost(other, was_here=other in beats)
        return None

    def _say_who_is_awaited(self, absent: list[int]) -> None:
        if self.rank != min({*range(self.size)} - {*absent}):
            return
        with suppress(OSError):
            sys.stderr.write(
                f"waiting for {len(absent)} of {self.size} processes (WORLD_SIZE={self.size}). Start them with"
                " torchrun, or unset WORLD_SIZE to run alone.\n"
            )
            sys.stderr.flush()

    def _lost(self, other: int, *, was_here: bool = True) -> Farewell:
        if was_here:
            return Farewell(other, FAILED, f"Process {other} of {self.size} {LOST}")
        minutes = START.total_seconds() / 60
        return Farewell(
            other,
            FAILED,
            f"Process {other} of {self.size} did not appear within {minutes:g} minutes. Start all with torchrun, or"
            " unset WORLD_SIZE to run alone.",
        )


_present: list[Peers] = []
"""This process among its peers, where it has any."""


def farewell(rank: int, error: BaseException | None) -> Farewell:
    """How a process leaves with this exception; those that others caused count as theirs."""
    if error is None or (isinstance(error, SystemExit) and not error.code):
        return Farewell(rank, 0)
    if isinstance(error, Stopped):
        return Farewell(rank, EXIT_RESUMABLE, str(error))
    if isinstance(error, TunePruneError):
        return Farewell(rank, FAILED, str(error) if isinstance(error, PeerLost) else f"Process {rank}: {error}")
    words = next(iter(str(error).strip().splitlines()), "")
    return Farewell(rank, BUG, f"Process {rank} ended: {type(error).__name__}: {words}")


def world_size() -> int:
    """Number of processes that a launcher started as one run, this one included; 1 without a launcher."""
    size = os.environ.get("WORLD_SIZE", "1")
    return int(size) if size.isdecimal() else 1  # `check_launcher` refuses the rest


def has_peers() -> bool:
    """Whether other processes were launched with this one, and it knows where to find them."""
    return world_size() > 1 and "MASTER_PORT" in os.environ


def check_launcher() -> None:
    """Refuse an environment that speaks of processes that nobody started, or of an engine that is not used here.

    Raises:
        ConfigError: names the variables.
    """
    size = os.environ.get("WORLD_SIZE", "1")
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if not size.isdecimal() or (int(size) > 1 and missing):
        raise ConfigError(
            f"The environment has WORLD_SIZE={size:.20}, but not what a launcher sets beside it"
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
def together() -> Iterator[None]:
    """Inside, the processes that `accelerate launch` or torchrun started leave together; does nothing for one alone.

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
        with on_signals(lambda: None):  # acts at the end of the block: a process that never came is missed for minutes
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
        if peers is not None and peers.leave(error) == 0:
            _end_transfers()


def _end_transfers() -> None:
    """Take leave of the others' libraries too, which may take for ever where one of them is gone."""
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()


def join(rank: int, size: int) -> Peers:
    """The other processes, through the store by which torch's processes find each other.

    Raises:
        PeerLost: the process that has the store does not appear.
    """
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]

    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    is_host = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    options = {"is_master": is_host, "timeout": START, "wait_for_workers": False, "multi_tenant": True}
    try:
        store = TCPStore(host, port, size, **options)
    except RuntimeError as error:
        raise PeerLost(f"Process {rank} of {size} does not reach process 0 at {host}:{port}: {error}", 0) from error
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return Peers(rank, size, PrefixStore(f"tuneprune/{attempt}", store), is_host=is_host)


def meet(accelerator: Any) -> None:  # noqa: ANN401  (accelerate's, whose barrier serves where nobody watches)
    """Wait for all processes of the run."""
    if _present:
        _present[0].meet()
    else:
        accelerator.wait_for_everyone()


@contextmanager
def transfer() -> Iterator[None]:
    """A transfer between processes inside; the loss of one is an error that a user can read.

    Raises:
        PeerLost: the connection broke.
    """
    try:
        yield
    except RuntimeError as error:
        words = re.sub(r"^\[\S*\] ", "", str(error).strip()).partition(". ")[0]
        raise PeerLost(f"The connection to another process broke ({words}): it {LOST}") from error
