"""Two processes of one run, as torchrun would start them, on the fork server."""

import socket
import time


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def environment(rank, port):
    """The variables that `accelerate launch` and torchrun set."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


class Two:
    """Two processes started with the same arguments, or the second one with `others`."""

    def __init__(self, server, folder, *arguments, others=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.server, port = server, free_port()
        self.logs = [folder / f"log{rank}" for rank in range(2)]
        self.pids = [
            server.start(*given, log=log, **environment(rank, port))
            for rank, (given, log) in enumerate(zip((arguments, others or arguments), self.logs, strict=True))
        ]

    def until(self, path):
        """Wait until a file exists."""
        deadline = time.monotonic() + 60
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} did not appear: {self.said()}"
            time.sleep(0.001)
        return self

    def end(self):
        """The exit statuses of both."""
        return [self.server.wait(pid) for pid in self.pids]

    def said(self):
        return [log.read_text() for log in self.logs]
