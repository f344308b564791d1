import pytest

from tuneprune.export.probes import fresh_process
from tuneprune.export.targets.mlx import target


@pytest.fixture(scope="module", autouse=True)
def _warm_proofs(warm_processes):
    with pytest.MonkeyPatch.context() as patched:
        for module in (fresh_process, target):
            patched.setattr(module, "run_child", warm_processes.run)
        yield
