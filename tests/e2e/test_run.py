"""`tuneprune run`: every documented file and number is present and correct."""

import json

import pytest
import yaml
from helpers import tiny_runs
from helpers.tiny import layers_for
from transformers import AutoModelForCausalLM

FILES = {
    "config.yaml",
    "plan/plan.json",
    "plan/plan.safetensors",
    "model/config.json",
    "model/generation_config.json",
    "model/model.safetensors",
    "model/tokenizer.json",
    "model/README.md",
    "proof.json",
    "record.json",
    "report.html",
}


def result_of(out):
    return json.loads((out / "proof.json").read_text()), json.loads((out / "record.json").read_text())


def assert_budget_met(parameters):
    target = round(parameters["target"] * parameters[f"dense_{parameters['of']}"])
    kept = parameters[f"kept_{parameters['of']}"]
    assert kept <= target
    assert target - kept < parameters["largest_unit"]


CASES = [
    ("llama", "atp", "width", {}),
    ("llama", "atp", "width", {"per_layer": "uniform"}),
    ("llama", "atp", "head_dim", {}),
    ("llama", "atp", "disp", {"of": "prunable"}),
    ("qwen2", "atp", "width", {"per_layer": "uniform", "multiple_of": 8}),
    ("qwen3", "atp", "head_dim", {}),
    ("phi3", "atp", "disp", {}),
    ("phi3", "magnitude", "width", {}),
    ("llama", "random", "disp", {}),
    ("llama", "flap", "width", {}),
    ("qwen3", "atp", "depth", {}),
    ("gemma2", "short", "depth", {"of": "prunable"}),
    ("phi3", "llm_pruner", "width", {}),
    ("llama", "tomoe", "head_dim", {}),
]


@pytest.mark.parametrize(("variant", "method", "space", "budget"), CASES)
def test_run(tmp_path, tuneprune, capsys, variant, method, space, budget):
    model = tiny_runs.save_model(tmp_path / "base", variant, **layers_for(space))
    options = tiny_runs.METHOD if method == "atp" else {}
    run_file = tiny_runs.write_run(tmp_path, model, space=space, budget=budget)
    content = yaml.safe_load(run_file.read_text())
    content["method"] = {**options, "name": method}
    run_file.write_text(yaml.safe_dump(content))
    out = tmp_path / "out"

    assert tuneprune("run", run_file, "--out", out) == 0

    present = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert present >= FILES
    assert {"metrics.jsonl", "recover/metrics.jsonl"} & present
    proof, record = result_of(out)
    assert_budget_met(proof["parameters"])
    assert proof["logits"]["max_rel_diff"] < 1e-5
    assert proof["generation"]["cached_equals_uncached"]
    if space != "width" or budget.get("per_layer") == "uniform":  # other widths may be equal by chance
        assert proof["loader"]["needs_remote_code"] == (space not in ("width", "depth"))
    small = load(out / "model", proof["loader"])
    assert sum(p.numel() for p in small.parameters()) == proof["parameters"]["kept_total"]
    assert (proof["parameters"].get("active_total") is not None) == (method == "tomoe")
    assert set(record["scores"]) == {"dense", "dense_tuned", "pruned"}
    assert record["relative_performance"]["mean"] > 0
    logs = [out / "metrics.jsonl", out / "recover" / "metrics.jsonl"]  # before the cut, and after it
    steps = [json.loads(line) for log in logs if log.exists() for line in log.read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 7))
    before = {"atp": "control", "tomoe": "control"}.get(method, "recover")
    after = "frozen" if method == "tomoe" else "recover"  # which routes until the end
    assert [line["phase"] for line in steps] == [before] * 3 + [after] * 3
    captured = capsys.readouterr()
    assert str(out / "report.html") in captured.out
    assert "Loading weights" not in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("method", ["flap", "atp"])
def test_compensation_changes_the_weights_and_not_the_decision(tmp_path, tuneprune, method):
    model = tiny_runs.save_model(tmp_path / "base")
    options = tiny_runs.METHOD if method == "atp" else {"name": method, "batches": 2}
    found = {}
    for name in ("none", "obs"):
        sections = {"compensate": {"name": name, "batches": 2}, "reference": False}
        run_file = tiny_runs.write_run(tmp_path, model, **sections)
        content = yaml.safe_load(run_file.read_text())
        run_file.write_text(yaml.safe_dump(content | {"method": options}))
        out = tmp_path / name
        assert tuneprune("run", run_file, "--out", out) == 0
        proof, _ = result_of(out)
        assert proof["logits"]["max_rel_diff"] < 1e-5
        found[name] = [(out / file).read_bytes() for file in ("plan/plan.safetensors", "model/model.safetensors")]
    assert found["none"][0] == found["obs"][0]
    assert found["none"][1] != found["obs"][1]


def load(folder, loader):
    if loader["needs_remote_code"]:
        return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert type(model).__name__ == loader["class"]
    return model
