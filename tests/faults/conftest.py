import pytest
from server import Server


@pytest.fixture(scope="session")
def fault_server():
    with Server() as server:
        yield server
