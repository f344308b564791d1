"""The steps after the cut continue those before it, and tune what `recover` says, for every method alike."""

import json

import pytest
import yaml
from helpers import tiny_runs
from safetensors.torch import load_file

from tuneprune.data import Stream
from tuneprune.report import RunRecord
from tuneprune.train import TuneConfig

STEPS, ROWS = tiny_runs.TUNE["steps"], tiny_runs.TUNE["batch_size"]
METHODS = {
    "atp": (tiny_runs.METHOD, 3),
    "atp static": (tiny_runs.METHOD | {"decision": "static"}, 0),
    "loraprune": ({"name": "loraprune"}, 5),
    "pat": ({"name": "pat"}, STEPS),
    "magnitude": ({"name": "magnitude"}, 0),
}
"""Methods with the steps that they take before the cut."""


def write_run(folder, model, method, **sections):
    """A run file with exactly these options of the method."""
    path = tiny_runs.write_run(folder, model, **sections)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"method": method}))
    return path


def logged(folder):
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def rates(lines):
    return {line["step"]: line["learning_rate"] for line in lines}


def expected_rates(first, last, learning_rate):
    config = TuneConfig(steps=STEPS, learning_rate=learning_rate)
    return {step + 1: pytest.approx(config.learning_rate_at(step, first)) for step in range(first, last)}


@pytest.mark.parametrize("name", METHODS)
def test_a_run_draws_every_batch_once(tmp_path, tuneprune, model_folder, monkeypatch, name):
    (method, before), drawn, draw = METHODS[name], [], Stream.next

    def noted(stream):
        batch = draw(stream)
        if "train.jsonl" in stream.last_origins()[0]:
            drawn.append(stream.state_dict())
        return batch

    monkeypatch.setattr(Stream, "next", noted)
    space = {"space": "residual", "budget": {"keep": 0.8}} if name == "pat" else {}
    run_file = write_run(tmp_path, model_folder, method, reference=False, **space)
    out = tmp_path / "out"
    assert tuneprune("run", run_file, "--out", out) == 0
    assert drawn == [{"epoch": 0, "row": ROWS * step} for step in range(1, STEPS + 1)]
    record = RunRecord.load(out / "record.json").training
    assert (record.steps, record.recover_steps) == (before, STEPS - before)
    assert [line["step"] for line in logged(out)] == list(range(1, before + 1))
    assert [line["step"] for line in logged(out / "recover")] == list(range(before + 1, STEPS + 1))


@pytest.mark.parametrize("name", ["atp", "magnitude"])
def test_every_weight_of_the_smaller_model_is_tuned(tmp_path, tuneprune, model_folder, name):
    method, before = METHODS[name]
    recover = {"train": "all", "learning_rate": 0.002}
    out = tmp_path / "out"
    assert tuneprune("run", write_run(tmp_path, model_folder, method, recover=recover), "--out", out) == 0
    proof = json.loads((out / "proof.json").read_text())
    assert proof["cut"]["max_rel_diff"] < 1e-5
    assert proof["logits"]["max_rel_diff"] < 1e-5
    assert proof["generation"]["cached_equals_uncached"]
    old, new = (load_file(folder / "model.safetensors") for folder in (model_folder, out / "model"))
    assert old.keys() == new.keys()
    assert not any(old[key].shape == new[key].shape and old[key].equal(new[key]) for key in new)  # norms, embeddings
    assert rates(logged(out)) == expected_rates(0, before, tiny_runs.TUNE["learning_rate"])
    assert rates(logged(out / "recover")) == expected_rates(before, STEPS, 0.002)
    assert rates(logged(out / "reference")) == expected_rates(0, STEPS, 0.002)
    assert "LoRA tuning" not in (out / "model" / "README.md").read_text()


def test_a_comparison_tunes_all_alike_after_the_cut(tmp_path, model_folder, server):
    run_file = tiny_runs.write_run(tmp_path, model_folder, recover={"train": "blocks", "learning_rate": 0.002})
    out, log = tmp_path / "out", tmp_path / "log"
    arguments = ("compare", run_file, "--methods", "atp,magnitude", "--keep", "0.6", "--seeds", "0", "--out", out)
    assert server.run(*arguments, log=log) == 0, log.read_text()
    reference = out / "reference-seed0" / "reference"
    assert rates(logged(reference)) == expected_rates(0, STEPS, 0.002)
    for name in ("atp", "magnitude"):
        cell, before = out / f"{name}-keep0.6-seed0", METHODS[name][1]
        assert rates(logged(cell / "recover")) == expected_rates(before, STEPS, 0.002)
        training = RunRecord.load(cell / "record.json").training
        assert training.steps + training.recover_steps == STEPS
    for tuned in (reference, out / "atp-keep0.6-seed0" / "recover", out / "magnitude-keep0.6-seed0" / "recover"):
        state = (tuned / "checkpoints" / f"step-{STEPS:06d}" / "state.json").read_text()
        assert "input_layernorm.weight" in state
        assert "lora_" not in state
        assert "embed_tokens" not in state
