import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tuneprune.export import fresh
from tuneprune.export.fresh import run_tied
from tuneprune.export.targets import mlx


class WarmProcesses:
    """Takes the place of `run_tied`; the process behind it starts when it is first asked."""

    def __init__(self, scratch):
        self.errors, self.server = scratch / "errors", None

    def run(self, program, arguments, environment):
        if ".gguf." in program.__name__:  # needs nothing that is slow to import, and llama.cpp may hang in a fork
            return run_tied(program, arguments, environment)
        if self.server is None:
            warm = [sys.executable, str(Path(__file__).with_name("warm.py"))]
            with self.errors.with_name("log").open("w") as log:
                pipe = subprocess.PIPE
                self.server = subprocess.Popen(warm, stdin=pipe, stdout=pipe, stderr=log, text=True)
        self.errors.unlink(missing_ok=True)
        request = {
            "program": program.__file__,
            "argv": [*arguments],
            "env": {**environment},
            "errors": str(self.errors),
        }
        self.server.stdin.write(json.dumps(request) + "\n")
        self.server.stdin.flush()
        status = int(self.server.stdout.readline())
        return SimpleNamespace(returncode=status, stderr=self.errors.read_text(errors="replace"))


@pytest.fixture(scope="session", autouse=True)
def _warm_processes(tmp_path_factory):
    warm = WarmProcesses(tmp_path_factory.mktemp("warm"))
    with pytest.MonkeyPatch.context() as patched:
        for module in (fresh, mlx):
            patched.setattr(module, "run_tied", warm.run)
        yield
    if warm.server is not None:
        with warm.server:
            warm.server.stdin.close()
