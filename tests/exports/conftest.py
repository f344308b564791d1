import pytest

from tuneprune.export import fresh
from tuneprune.export.targets import mlx


@pytest.fixture(scope="module", autouse=True)
def _warm_proofs(warm_processes):
    with pytest.MonkeyPatch.context() as patched:
        for module in (fresh, mlx):
            patched.setattr(module, "run_tied", warm_processes.run)
        yield
