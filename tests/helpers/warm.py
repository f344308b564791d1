"""Runs proofs in forked children of one process, for tests that are not about the fresh process itself."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from tuneprune.export.probes.fresh_process import run_child


class WarmProcesses:
    """Replaces `run_child`; its process starts at the first call."""

    def __init__(self, scratch: Path) -> None:
        self.errors, self.server = scratch / "errors", None

    def run(self, program, arguments, environment):
        """The attributes of `run_child`'s result that are used."""
        if ".gguf." in program.__name__:  # imports nothing slow, and llama.cpp can hang in a fork
            return run_child(program, arguments, environment)
        if self.server is None:
            warm = [sys.executable, "-P", str(Path(__file__).with_name("warm_server.py"))]
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

    def close(self) -> None:
        """End the process, if there is one."""
        if self.server is not None:
            with self.server:
                self.server.stdin.close()
