"""Command lines in processes that die where a campaign tells them to."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
KILLED = -signal.SIGKILL


class Server:
    """Forks of one process that has imported everything; one command line at a time."""

    def __init__(self):
        paths = [TESTS.parent / "src", TESTS]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fault_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **offline, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def run(self, arguments, log, *, after=None, fault=None, **told):
        """The exit status of a command line, killed `after` this many seconds, or as `fault` says.

        Further keywords are what `fault_server.py` reads from the environment: `step`, `loaded`.
        """
        env = {f"TUNEPRUNE_{name.upper()}": str(value) for name, value in told.items()}
        env |= {} if fault is None else {"TUNEPRUNE_FAULT": json.dumps(fault)}
        pid = self.ask(argv=[*map(str, arguments)], log=str(log), env=env)
        if after is not None:
            time.sleep(after)
            os.kill(pid, signal.SIGKILL)  # the number is still in use: the server has not waited for the process yet
        return self.ask(wait=pid)

    def close(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
