"""The same seed gives the same result, whatever the hash seed and the folder; another seed gives another result.

`benchmarks/determinism.py` does the same with every method, on a larger model.
"""

import json

import pytest
import torch
from helpers import tiny_runs

METHODS = {"atp": tiny_runs.METHOD, "slicegpt": {"name": "slicegpt"}}
LORA = {"tune": {"steps": 3, "lora": {"rank": 2, "dropout": 0.1}}}


def reproducible(run_folder):
    """Every file whose bytes depend only on the seed, and the scores."""
    folders = (run_folder / "plan", run_folder / "model")
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file() and path.name != "README.md"]
    found = {str(path.relative_to(run_folder)): path.read_bytes() for path in files}
    return found | {"scores": json.loads((run_folder / "record.json").read_text())["scores"]}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name, content in one.items() if content != other[name]] == []


def run(where, folder, run_file, *settings):
    """The reproducible files of a run."""
    log = folder.with_suffix(".txt")
    log.parent.mkdir(exist_ok=True)
    assert where.run("run", run_file, *settings, "--out", folder, log=log) == 0, log.read_text()
    return reproducible(folder)


@pytest.mark.parametrize("method", METHODS)
def test_same_seed_gives_the_same_bytes_and_another_one_does_not(tmp_path, model_folder, server, stranger, method):
    sections = {"method": METHODS[method], "space": "residual", "reference": False, **LORA}
    run_file = tiny_runs.write_run(tmp_path, model_folder, **sections)
    one = run(server, tmp_path / "one", run_file)
    assert_equal(one, run(stranger, tmp_path / "elsewhere" / "two", run_file))
    other = run(server, tmp_path / "other", run_file, "--set", "seed=1")
    assert one["plan/plan.safetensors"] != other["plan/plan.safetensors"]
    assert one["model/model.safetensors"] != other["model/model.safetensors"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", METHODS)
def test_deterministic_run_on_a_gpu_gives_the_same_bytes(tmp_path, model_folder, server, stranger, method):
    sections = {"method": METHODS[method], "space": "residual", "reference": False, "deterministic": True, **LORA}
    run_file = tiny_runs.write_run(tmp_path, model_folder, **sections)
    assert_equal(run(server, tmp_path / "one", run_file), run(stranger, tmp_path / "two", run_file))
