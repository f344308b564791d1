"""The runs of a comparison in a process each: a crash stays local, and peak memory is measured for each run."""

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
from tuneprune.pipeline.comparison_runs import ComparisonRun, perform
from tuneprune.report.numbers import seconds_text
from tuneprune.system.progress import Progress
from tuneprune.system.signals import EXIT_RESUMABLE, Stopped, on_signals, stop_resumable


class Relay(Progress):
    """Sends the progress of a run to the process that started it."""

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
        """Send a message of any kind; it is lost if the receiver has closed the connection."""
        with suppress(OSError):  # the signal to stop is on its way
            self.connection.send(message)


@dataclass
class Worker:
    """A process that performs one run."""

    planned: ComparisonRun
    process: Any
    connection: Connection
    started: float = field(default_factory=time.monotonic)
    cpu_seconds: float | None = None
    failure: str | None = None


class Pool:
    """Performs runs, at most `jobs` at a time, each as soon as the references it needs are complete."""

    def __init__(self, runs: Sequence[ComparisonRun], out: Path, jobs: int, progress: Progress) -> None:
        self.out, self.jobs, self.progress = out, jobs, progress
        self.waiting = [planned for planned in runs if not planned.is_complete(out)]
        self.total = len(self.waiting)
        self.workers: list[Worker] = []
        self.failed: dict[str, str] = {}
        self.context = _context()

    def work(self) -> dict[str, str]:
        """One sentence for every run that failed, once all others are complete.

        Raises:
            Stopped: a signal; every run saved its state first.
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
        for planned in [*self.waiting]:
            broken = [name for name in planned.needs if name in self.failed]
            is_ready = all((self.out / name / "reference.json").exists() for name in planned.needs)
            if broken:
                self.waiting.remove(planned)
                self.failed[planned.name] = f"needs {broken[0]}, which failed."
            elif is_ready and len(self.workers) < self.jobs:
                self.waiting.remove(planned)
                self.workers.append(self._start(planned))

    def _start(self, planned: ComparisonRun) -> Worker:
        name, log = planned.name, self.out / "logs" / f"{planned.name}.txt"
        log.parent.mkdir(exist_ok=True)
        receiver, sender = self.context.Pipe(duplex=False)
        threads = 1 if self.jobs > 1 else None
        process = self.context.Process(target=work_on, args=(planned, self.out, log, threads, sender), name=name)
        self.progress.stage(f"== {name} ({self.total - len(self.waiting)} of {self.total})")
        process.start()
        sender.close()
        return Worker(planned, process, receiver)

    def _listen(self) -> None:
        """Wait for messages of the processes, and pass them on."""
        if not self.workers:
            return
        ready = wait([worker.connection for worker in self.workers])
        for worker in [worker for worker in self.workers if worker.connection in ready]:
            try:
                kind, *rest = worker.connection.recv()
            except EOFError:  # the process has ended
                self._finish(worker)
                continue
            if kind == "failure":
                worker.failure = rest[0]
            elif kind == "cpu":
                worker.cpu_seconds = rest[0]
            elif kind == "note":
                self.progress.note(f"{worker.planned.name}: {rest[0]}")
            elif self.jobs == 1:
                getattr(self.progress, kind)(*rest)

    def _finish(self, worker: Worker) -> None:
        worker.process.join()
        worker.connection.close()
        self.workers.remove(worker)
        name, status = worker.planned.name, worker.process.exitcode
        if status == 0 and worker.planned.is_complete(self.out):
            took = seconds_text(time.monotonic() - worker.started)
            self.progress.stage(f"{name}: done in {took}, {seconds_text(worker.cpu_seconds)} of CPU time")
        elif status == EXIT_RESUMABLE:
            raise Stopped(f"{name} was stopped. Everything finished so far is saved; run again with --resume.")
        else:
            self.failed[name] = worker.failure or _ended(status)
            self.progress.stage(f"{name}: FAILED: {self.failed[name]}")

    def _stop(self) -> None:
        """Let every process save its state and end."""
        for worker in self.workers:
            worker.process.terminate()
        for worker in self.workers:
            with suppress(EOFError, OSError):
                while True:  # read what it still sends, or it could block on a full pipe
                    worker.connection.recv()
            worker.process.join()


def work_on(planned: ComparisonRun, out: Path, log: Path, threads: int | None, connection: Connection) -> None:
    """Perform one run in this process, its output in a file of its own; exit with the status of the command line."""
    os.setsid()  # Ctrl-C reaches only the process that started this one, which then stops all others
    threading.Thread(target=_end_with_parent, daemon=True).start()
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    fcntl.flock(stream, fcntl.LOCK_EX)  # a process of a killed comparison may still be saving the same run
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes started from here
        torch.set_num_threads(threads)
    relay = Relay(connection)
    status = _status_of(lambda: perform(planned, out, relay), relay)
    relay.send("cpu", time.process_time())
    connection.close()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of libraries must not keep a finished process alive


def _status_of(act: Callable[[], None], relay: Relay) -> int:
    """The exit status of `act`; the sentence of an error is sent to the parent process."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        with on_signals(stop_resumable):
            act()
    except Stopped:
        return EXIT_RESUMABLE
    except TunePruneError as error:
        relay.send("failure", str(error))
        return error.exit_status
    except Exception as error:  # a bug that shows in one run must not end the others
        traceback.print_exc()
        text = next(iter(str(error).strip().splitlines()), "")
        relay.send("failure", f"{type(error).__name__}: {text} (the log has the traceback).")
        return 1
    return 0


def _end_with_parent() -> None:
    """Save the state and end once the parent process was killed, so that a resumed comparison is alone."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _context() -> Any:  # noqa: ANN401  (every context has its own Process class)
    """Forks of one process that has imported everything; fresh processes with CUDA, which does not survive a fork."""
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
