"""Collects answers for docs/bad-input.md, if they are to be written instead of compared."""

import pytest
from e2e.bad_input import messages


@pytest.fixture(scope="session")
def answers(request):
    """All answers for the table with `--write-messages`, else None."""
    if not request.config.getoption("--write-messages"):
        yield None
        return
    collected = {}
    yield collected
    messages.write(collected)
