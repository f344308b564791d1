import pytest

from tuneprune.export.probes import fresh
from tuneprune.export.targets.mlx import target


@pytest.fixture(scope="module", autouse=True)
def _warm_proofs(warm_processes):
    with pytest.MonkeyPatch.context() as patched:
        for module in (fresh, target):
            patched.setattr(module, "run_tied", warm_processes.run)
        yield
