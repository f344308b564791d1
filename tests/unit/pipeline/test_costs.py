"""Speed compared with twins, and memory, as a run measures them."""

import pytest
import torch
from helpers.tiny import random_masks
from helpers.tiny_runs import save_model, write_run

from tuneprune import export
from tuneprune.compress import compress
from tuneprune.config import load_run_file
from tuneprune.errors import TunePruneError
from tuneprune.pipeline import costs
from tuneprune.pipeline.job import prepare
from tuneprune.report import Proof
from tuneprune.structure.plan import Plan
from tuneprune.system.progress import Progress

WIDER = {"intermediate_size": 256, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
MEMORY = {"weight_bytes": 1, "cache_bytes_per_token": 1, "libraries_bytes": 1, "loaded_bytes": 1, "peaks": []}


def measured(tmp_path, *, uniform=False, space="width", **sections):
    model = save_model(tmp_path / "base", "llama", **WIDER)
    config = load_run_file(write_run(tmp_path / "data", model, space=space, **sections))
    job = prepare(config, tmp_path / "run", resume=False, progress=Progress())
    plan = Plan.from_masks(random_masks(job.space, uniform=uniform), job.space)
    return job, plan, compress(job.fresh_model(), job.architecture, job.space, plan)


@pytest.fixture
def quick(monkeypatch):
    """Speed by few repeats, and no fresh processes."""
    measure = costs.evaluate.measure_speed
    few = {"prompt_tokens": 4, "new_tokens": 2, "repeats": 2}
    monkeypatch.setattr(costs.evaluate, "measure_speed", lambda models, **given: measure(models, **given, **few))
    monkeypatch.setattr(export, "memory_use", lambda *_, **__: MEMORY)


@pytest.mark.parametrize("space", ["width", "head_dim", "disp"])
def test_a_ragged_model_is_compared_with_stock_ones_of_its_size(tmp_path, quick, space):
    job, plan, small = measured(tmp_path, space=space, speed=True)
    found = costs.measure_costs(job, plan, small)
    size = sum(parameter.numel() for parameter in small.parameters())
    assert "uniform" in found["speed"]["twins"]
    for twin in found["speed"]["twins"].values():
        assert abs(twin["parameters"] - size) <= 0.05 * size
    assert set(found["speed"]["settings"][0]["twins"]) == set(found["speed"]["twins"])
    assert found["speed"]["verdict"].startswith("The pruned model is")
    assert 0 <= found["speed"]["odd_matrices"] <= found["speed"]["matrices"]
    assert found["memory"]["pruned"] == MEMORY


def test_a_stock_model_needs_no_twin(tmp_path, quick):
    job, plan, small = measured(tmp_path, uniform=True, speed=True)
    speed = costs.measure_costs(job, plan, small)["speed"]
    assert speed["twins"] == {}
    assert speed["twins_missing"] is None
    assert "twins" not in speed["settings"][0]


def test_twins_that_do_not_fit_in_memory_are_left_out_with_the_reason(tmp_path, quick, monkeypatch):
    monkeypatch.setattr(costs, "free_memory", lambda _: 1000)
    job, plan, small = measured(tmp_path, speed=True)
    speed = costs.measure_costs(job, plan, small)["speed"]
    assert speed["twins"] == {}
    assert "more than is free" in speed["twins_missing"]


def test_memory_that_cannot_be_measured_loses_no_run_and_names_no_folder(tmp_path, quick, monkeypatch):
    def fail(model, **_):
        raise TunePruneError(f"{model}: the model does not run in a fresh process: MemoryError")

    monkeypatch.setattr(export, "memory_use", fail)
    job, plan, small = measured(tmp_path, speed=True)
    memory = costs.measure_costs(job, plan, small)["memory"]
    assert memory["problem"] == "the pruned folder: the model does not run in a fresh process: MemoryError"
    assert "dense" not in memory


def test_nothing_is_measured_where_the_run_file_says_so(tmp_path):
    job, plan, small = measured(tmp_path, speed=False)
    assert costs.measure_costs(job, plan, small) == {}


def test_what_was_measured_fits_the_proof(tmp_path, quick):
    job, plan, small = measured(tmp_path, speed=True)
    found = costs.measure_costs(job, plan, small)
    fields = Proof.model_fields
    assert set(found) <= set(fields)
    for name, value in found.items():
        kind = next(kind for kind in fields[name].annotation.__args__ if kind is not type(None))
        assert kind.model_validate(value)


def test_both_models_compute_in_the_precision_of_the_dense_one(tmp_path, quick):
    job, plan, small = measured(tmp_path, speed=True)
    found = costs.measure_costs(job, plan, small.to(torch.bfloat16))
    assert found["speed"]["dtype"] == found["memory"]["dtype"] == "float32"
    assert small.dtype == torch.float32
