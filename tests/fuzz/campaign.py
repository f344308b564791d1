"""One target fuzzed: every case ends well or is refused in one sentence, soon, and in little memory."""

import io
import os
import resource
import signal
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings

from fuzz.targets import Target, attempt
from tuneprune.cli import commands

PATIENCE_S = 20
"""Seconds of the processor for a case, which takes one or less."""
MEMORY = 2**30
"""Bytes that the peak of this process may rise by in a campaign."""


AT_THE_END = "is a file. Name a folder."
"""What some commands are made to end with, when the changed file has been read and what follows would take long."""


class Hang(BaseException):
    """A case that does not come to its end: no `except Exception` catches it."""


def command_line(monkeypatch):
    """The command line in this process; gives exit status and what it said to stderr."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["tuneprune", *arguments])
        said = io.StringIO()
        with redirect_stderr(said), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                commands.main()
            except SystemExit as leave:
                return int(leave.code or 0), said.getvalue()
        return 0, said.getvalue()

    return call


@contextmanager
def patience():
    def give_up(*_):
        raise Hang

    before = signal.signal(signal.SIGPROF, give_up)  # the processor's seconds: the machine may be busy
    signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(target: Target, folder: Path, call, examples: int, number: int, counts: dict[str, int]) -> None:
    """Count in `counts` how many cases were accepted and refused; `number` is the seed of their choice.

    Raises:
        AssertionError, Exception: a file that is refused unchanged, or the smallest case that was neither, or took too
            long or too much memory.
    """
    status, said = attempt(target, folder, (folder / target.file).read_bytes(), call)
    assert status == 0 or AT_THE_END in said, f"refused as it was: {said}"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    phases = (Phase.explicit, Phase.generate, Phase.shrink)

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        print_blob=False,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    @given(target.content)
    def case(content):
        with patience():
            status, said = attempt(target, folder, content, call)
        lines = [line for line in said.splitlines() if line.startswith("tuneprune: ")]
        assert status in (0, 2), (status, said)
        assert len(lines) == (status == 2), said
        assert "Traceback" not in said
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak
        assert used < MEMORY, f"{used / 2**30:.1f} GiB more memory"
        outcome = "refused" if status and AT_THE_END not in said else "accepted"
        counts[outcome] = counts.get(outcome, 0) + 1

    case()


def examples(default: int) -> int:
    """How many cases a target gets: few in CI, as many as TUNEPRUNE_FUZZ_EXAMPLES says elsewhere."""
    return int(os.environ.get("TUNEPRUNE_FUZZ_EXAMPLES", default))
