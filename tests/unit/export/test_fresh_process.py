"""Programs in processes of their own do not outlive whoever started them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from tuneprune.errors import TunePruneError
from tuneprune.export.probes.fresh_process import run_child, run_fresh

SLEEPER = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
STARTER = """
import sys
from types import ModuleType
from tuneprune.export.probes.fresh_process import run_child
from tuneprune.system.signals import on_signals, stop_resumable
program = ModuleType("sleeper")
program.__file__ = sys.argv[1]
with on_signals(stop_resumable):
    run_child(program, [sys.argv[2]], {})
"""


def appeared(path):
    """The process id in a file that a process writes when it begins."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return int(path.read_text())


def is_running(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_program_ends_with_the_process_that_started_it(tmp_path, number):
    program, note = tmp_path / "sleeper.py", tmp_path / "pid"
    program.write_text(SLEEPER)
    starter = subprocess.Popen([sys.executable, "-c", STARTER, program, note], stderr=subprocess.PIPE, text=True)
    pid = appeared(note)
    os.kill(starter.pid, number)
    said = starter.communicate(timeout=20)[1]
    deadline = time.monotonic() + 5
    while is_running(pid):
        assert time.monotonic() < deadline, "it goes on"
        time.sleep(0.01)
    assert starter.returncode == (-number if number == signal.SIGKILL else 1)
    assert ("Stopped" in said) == (number != signal.SIGKILL)


def test_a_killed_program_is_told_with_the_likely_cause_and_the_way_on(tmp_path):
    victim = tmp_path / "victim.py"
    victim.write_text("import os, signal, sys; print('!', file=sys.stderr); os.kill(os.getpid(), signal.SIGKILL)")
    program = ModuleType("victim")
    program.__file__ = str(victim)
    with pytest.raises(TunePruneError, match=r"probably because memory ran out\. Free memory; .* --resume"):
        run_fresh(program, "model", [])


def test_program_answers_as_if_alone(tmp_path):
    (tmp_path / "neighbour.py").write_text("")
    program = tmp_path / "program.py"
    program.write_text("import sys\nprint(sys.argv[1:], __name__)\nimport neighbour")
    module = type(sys)("program")
    module.__file__ = str(program)
    child = run_child(module, ["one", "two"], {})
    assert child.returncode == 1
    assert child.stdout == "['one', 'two'] __main__\n"
    assert "No module named 'neighbour'" in child.stderr
