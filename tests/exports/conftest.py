import pytest

from tuneprune.export.probes import fresh_process


@pytest.fixture(scope="module", autouse=True)
def _warm_proofs(warm_processes):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fresh_process, "run_child", warm_processes.run)
        yield
