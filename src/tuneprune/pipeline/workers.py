"""Cells in processes of their own: one that fails takes no other along, and the peak memory of each is its own."""

import fcntl
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from tuneprune.errors import TunePruneError
from tuneprune.pipeline.comparison_runs import Cell, perform
from tuneprune.report.numbers import seconds_text
from tuneprune.system.progress import Progress
from tuneprune.system.signals import Stopped, on_signals, stop_resumable

STOPPED = 75


class Relay(Progress):
    """Sends what a cell says to the process that started it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def stage(self, name: str) -> None:
        """Send it on."""
        self.send("stage", name)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Send it on."""
        self.send("step", dict(metrics))

    def item(self, task: str, done: int, total: int) -> None:
        """Send it on."""
        self.send("item", task, done, total)

    def note(self, text: str) -> None:
        """Send it on."""
        self.send("note", text)

    def send(self, *message: object) -> None:
        """A message of whatever kind; lost where nobody listens."""
        with suppress(OSError):  # the signal to stop is on its way
            self.connection.send(message)


@dataclass
class Worker:
    """A process at work on one cell."""

    cell: Cell
    process: Any
    connection: Connection
    started: float = field(default_factory=time.monotonic)
    cpu_seconds: float | None = None
    failure: str | None = None


class Crew:
    """Works off cells, at most `jobs` at a time, each as soon as what it needs is complete."""

    def __init__(self, cells: Sequence[Cell], out: Path, jobs: int, progress: Progress) -> None:
        self.out, self.jobs, self.progress = out, jobs, progress
        self.waiting = [cell for cell in cells if not cell.is_complete(out)]
        self.total = len(self.waiting)
        self.workers: list[Worker] = []
        self.failed: dict[str, str] = {}
        self.context = _context()

    def work(self) -> dict[str, str]:
        """One sentence for every cell that failed, once all others are complete.

        Raises:
            Stopped: a signal; every cell saved its state first.
        """
        try:
            while self.waiting or self.workers:
                self._start_ready()
                self._listen()
        except BaseException:
            self._stop()
            raise
        return self.failed

    def _start_ready(self) -> None:
        for cell in [*self.waiting]:
            broken = [name for name in cell.needs if name in self.failed]
            if broken:
                self.waiting.remove(cell)
                self.failed[cell.name] = f"needs {broken[0]}, which failed."
            elif len(self.workers) < self.jobs and all((self.out / n / "reference.json").exists() for n in cell.needs):
                self.waiting.remove(cell)
                self.workers.append(self._start(cell))

    def _start(self, cell: Cell) -> Worker:
        log = self.out / "logs" / f"{cell.name}.txt"
        log.parent.mkdir(exist_ok=True)
        receiver, sender = self.context.Pipe(duplex=False)
        threads = 1 if self.jobs > 1 else None
        process = self.context.Process(target=work_on, args=(cell, self.out, log, threads, sender), name=cell.name)
        self._say(f"== {cell.name} ({self.total - len(self.waiting)} of {self.total})")
        process.start()
        sender.close()
        return Worker(cell, process, receiver)

    def _listen(self) -> None:
        """Wait for news; pass it on."""
        if not self.workers:
            return
        ready = wait([worker.connection for worker in self.workers])
        for worker in [worker for worker in self.workers if worker.connection in ready]:
            try:
                kind, *rest = worker.connection.recv()
            except EOFError:  # the process is at its end
                self._finish(worker)
                continue
            if kind == "failure":
                worker.failure = rest[0]
            elif kind == "cpu":
                worker.cpu_seconds = rest[0]
            elif kind == "note":
                self.progress.note(f"{worker.cell.name}: {rest[0]}")
            elif self.jobs == 1:
                getattr(self.progress, kind)(*rest)

    def _finish(self, worker: Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)
        name, status = worker.cell.name, worker.process.exitcode
        if status == 0 and worker.cell.is_complete(self.out):
            took = seconds_text(time.monotonic() - worker.started)
            self._say(f"{name}: done in {took}, {seconds_text(worker.cpu_seconds)} of CPU time")
        elif status == STOPPED:
            raise Stopped(f"{name} was stopped. Everything finished so far is saved; run again with --resume.")
        else:
            self.failed[name] = worker.failure or _ended(status)
            self._say(f"{name}: FAILED: {self.failed[name]}")

    def _stop(self) -> None:
        """Let every process save its state and end."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            while True:  # what it still says is read, or it could wait for ever to be heard
                try:
                    worker.connection.recv()
                except (EOFError, OSError):
                    break
            worker.process.join()

    def _say(self, text: str) -> None:
        self.progress.stage(text)


def work_on(cell: Cell, out: Path, log: Path, threads: int | None, connection: Connection) -> None:
    """What a process does: one cell, its output in a file of its own; ends with the command line's exit status."""
    os.setsid()  # the terminal's Ctrl-C is for the process that started this one, which then tells all
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fcntl.flock(stream, fcntl.LOCK_EX)  # a killed comparison's process may still be saving this very cell
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes started from here
        torch.set_num_threads(threads)
    relay = Relay(connection)
    status = _guarded(lambda: perform(cell, out, relay), relay)
    relay.send("cpu", time.process_time())
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of libraries must not keep a finished cell alive


def _guarded(act: Callable[[], None], relay: Relay) -> int:
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with on_signals(stop_resumable):
            act()
    except Stopped:
        return STOPPED
    except TunePruneError as error:
        relay.send("failure", str(error))
        return error.exit_status
    except Exception as error:  # any bug of one cell: the others go on
        traceback.print_exc()
        text = next(iter(str(error).strip().splitlines()), "")
        relay.send("failure", f"{type(error).__name__}: {text} (the log has the traceback).")
        return 1
    return 0


def _end_with_parent() -> None:
    """A process whose parent was killed saves its state and ends, so that a resumed comparison is alone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _context() -> Any:  # noqa: ANN401  (a context's processes are of its own kind)
    """Forks of one process that has imported everything; fresh processes where a GPU's driver forbids forks."""
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tuneprune.pipeline.workers"])
    return context


def _ended(status: int) -> str:
    if status < 0:
        name = signal.Signals(-status).name
        hint = ", as happens when memory runs out" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}."
    return f"ended with status {status}."
