import json
import os
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import tiny_runs

from tuneprune.cli import commands
from tuneprune.export.probes import fresh_process

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def _warm_proofs(warm_processes):
    """Reuse processes, as imports take most of the time of a proof; unit/export/test_proof.py uses fresh ones."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fresh_process, "run_child", warm_processes.run)
        yield


@pytest.fixture
def tuneprune(monkeypatch):
    """The command line in this process; gives the exit status."""

    def call(*arguments):
        monkeypatch.setattr("sys.argv", ["tuneprune", *map(str, arguments)])
        try:
            commands.main()
        except SystemExit as leave:
            return leave.code or 0
        return 0

    return call


class Server:
    """The command line in processes that can be killed."""

    def __init__(self, **environment):
        paths = [str(REPOSITORY / "src"), str(REPOSITORY / "tests")]
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
        )

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *arguments, log, **env):
        return self.ask(argv=[*map(str, arguments)], log=str(log), env=env)

    def wait(self, pid):
        return self.ask(wait=pid)

    def run(self, *arguments, log):
        return self.wait(self.start(*arguments, log=log))

    def run_until(self, path, number, *arguments, log):
        """Start, send a signal as soon as `path` exists, and give the exit status."""
        pid = self.start(*arguments, log=log)
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} did not appear: {log.read_text()}"
            time.sleep(0.001)
        os.kill(pid, number)
        return self.wait(pid)


@contextmanager
def serving(**environment):
    """Start a server with further environment variables."""
    server = Server(**environment)
    with server.process:
        yield server
        server.process.stdin.close()
        assert server.process.wait(30) == 0


@pytest.fixture(scope="session")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def stranger():
    """A server whose processes use another hash seed."""
    with serving(PYTHONHASHSEED="2") as server:
        yield server


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, model_folder, server):
    """A folder with a run file, and a finished run of it in `whole`."""
    folder = tmp_path_factory.mktemp("runs")
    run_file = tiny_runs.write_run(
        folder, model_folder, tune={"lora": {"rank": 2, "dropout": 0.1}}, recover={"lora": {"rank": 4}}
    )
    assert server.run("run", run_file, "--out", folder / "whole", log=folder / "log") == 0, (folder / "log").read_text()
    return folder
