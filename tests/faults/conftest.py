import sys

import pytest
from faults.server import Server


@pytest.fixture(scope="session")
def fault_server():
    if sys.platform != "linux":
        pytest.skip("names of open files are read from /proc")
    with Server() as server:
        yield server
