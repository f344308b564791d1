"""The answers that are written into docs/bad-input.md instead of being compared with it."""

import pytest
from e2e.bad_input import messages


@pytest.fixture(scope="session")
def answers(request):
    """Collects all answers for the table, with `--write-messages`; None where they are compared with it."""
    if not request.config.getoption("--write-messages"):
        yield None
        return
    collected = {}
    yield collected
    messages.write(collected)
