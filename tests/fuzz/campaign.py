"""Fuzz a target: every case succeeds or is refused in one sentence, quickly and in little memory."""

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
"""Processor seconds for a case, which usually takes one or less."""
MEMORY = 2**30
"""Bytes by which the peak memory of this process may rise in a campaign."""


AT_THE_END = "is a file. Name a folder."
"""The error that ends some commands on purpose once the changed file was read, to save the rest of the work."""


class Hang(BaseException):
    """A case that hangs; not an Exception, so that `except Exception` does not catch it."""


def command_line(monkeypatch):
    """The command line in this process; returns exit status and stderr."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["tuneprune", *arguments])
        printed = io.StringIO()
        with redirect_stderr(printed), redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                commands.main()
            except SystemExit as leave:
                return int(leave.code or 0), printed.getvalue()
        return 0, printed.getvalue()

    return call


@contextmanager
def patience():
    def give_up(*_):
        raise Hang

    before = signal.signal(signal.SIGPROF, give_up)  # processor time, as the machine may be busy
    signal.setitimer(signal.ITIMER_PROF, PATIENCE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run(target: Target, folder: Path, call, examples: int, number: int, counts: dict[str, int]) -> None:
    """Count accepted and refused cases in `counts`; `number` is the seed for choosing them.

    Raises:
        AssertionError, Exception: the unchanged file is refused, or the smallest case that is neither accepted nor
            refused, or takes too long or too much memory.
    """
    status, printed = attempt(target, folder, (folder / target.file).read_bytes(), call)
    assert status == 0 or AT_THE_END in printed, f"refused unchanged: {printed}"
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
            status, printed = attempt(target, folder, content, call)
        lines = [line for line in printed.splitlines() if line.startswith("tuneprune: ")]
        assert status in (0, 2), (status, printed)
        assert len(lines) == (status == 2), printed
        assert "Traceback" not in printed
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak
        assert used < MEMORY, f"{used / 2**30:.1f} GiB more memory"
        outcome = "refused" if status and AT_THE_END not in printed else "accepted"
        counts[outcome] = counts.get(outcome, 0) + 1

    case()


def examples(default: int) -> int:
    """Number of cases of a target: few by default, or TUNEPRUNE_FUZZ_EXAMPLES."""
    return int(os.environ.get("TUNEPRUNE_FUZZ_EXAMPLES", default))
