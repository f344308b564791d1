"""`tuneprune recover`: a pruned model, stock or ragged, is tuned without changing its shape, proven and evaluated."""

import json
import signal

import pytest
import yaml
from e2e.refusals import assert_refused
from helpers import tiny_runs
from helpers.tiny import layers_for
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

CASES = {
    "stock": ("llama", "width", "uniform"),
    "ragged in the stream": ("llama3", "disp", "free"),
    "ragged heads": ("qwen3", "head_dim", "free"),
    "ragged and packed": ("phi3", "head_dim", "free"),
    "narrow stream": ("mistral", "residual", "free"),
    "mixture": ("mixtral", "experts", "free"),
}


def smaller(folder, tuneprune, variant, space, per_layer):
    """A model that `compress` made of a dense one with a random plan."""
    base = tiny_runs.save_model(folder / "base", variant, **layers_for(space), max_position_embeddings=128)
    sections = {"space": space, "method": {"name": "random"}, "budget": {"keep": 0.8, "per_layer": per_layer}}
    run_file = tiny_runs.write_run(folder / "planned", base, **sections)
    if space == "residual":
        run_file = tiny_runs.write_run(folder / "planned", base, **sections | {"method": {"name": "slicegpt"}})
    assert tuneprune("plan", run_file, "--out", folder / "plan") == 0
    assert tuneprune("compress", base, "--plan", folder / "plan" / "plan", "--out", folder / "small") == 0
    return folder / "small"


def run_file_of(folder, **tune):
    """A run file without the sections about pruning."""
    path = tiny_runs.write_run(folder, folder / "nowhere", tune={"steps": 12, **tune})
    content = yaml.safe_load(path.read_text())
    kept = {key: value for key, value in content.items() if key in ("data", "tune", "evaluate")}
    path.write_text(yaml.safe_dump(kept))
    return path


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


@pytest.mark.parametrize("name", CASES)
def test_recover(tmp_path, tuneprune, capsys, name):
    small = smaller(tmp_path, tuneprune, *CASES[name])
    out, run_file = tmp_path / "out", run_file_of(tmp_path)
    before = {path: path.read_bytes() for path in small.iterdir() if path.is_file()}
    capsys.readouterr()
    assert tuneprune("recover", small, run_file, "--out", out) == 0
    assert {path: path.read_bytes() for path in small.iterdir() if path.is_file()} == before
    proof, record = (json.loads((out / file).read_text()) for file in ("proof.json", "record.json"))
    assert proof["logits"]["max_rel_diff"] < 1e-5
    assert proof["generation"]["cached_equals_uncached"]
    old, new = load(small), load(out / "model")
    assert proof["loader"]["needs_remote_code"] == (small / "modeling_pruned.py").exists()
    assert {n: p.shape for n, p in old.named_parameters()} == {n: p.shape for n, p in new.named_parameters()}
    changed = [n for n, p in new.named_parameters() if not p.equal(old.get_parameter(n))]
    assert changed
    assert all("proj" in n or "dense" in n for n in changed)
    scores = record["scores"]
    assert scores["after"]["test"]["perplexity"] < scores["before"]["test"]["perplexity"]
    assert record["training"]["recover_steps"] == 12
    steps = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert {line["phase"] for line in steps} == {"recover"}
    shown = capsys.readouterr()
    assert "perplexity" in shown.out
    assert str(out / "model") in shown.out
    card = (out / "model" / "README.md").read_text()
    assert "# small, fine-tuned" in card
    assert "| test | perplexity |" in card
    assert "Reloaded model equals the tuned model: passed" in card
    assert not any(word in card for word in ("masked", "Budget", "pruned model"))


def test_scores_before_are_those_of_evaluate(tmp_path, tuneprune, capsys):
    """The scores before the tuning are those that `evaluate` gives."""
    small = smaller(tmp_path, tuneprune, "llama", "disp", "free")
    run_file = run_file_of(tmp_path)
    content = yaml.safe_load(run_file.read_text())
    run_file.write_text(yaml.safe_dump(content | {"evaluate": {"suite": "clinic", "limit": 4}}))
    assert tuneprune("recover", small, run_file, "--out", tmp_path / "out") == 0
    scores = json.loads((tmp_path / "out" / "record.json").read_text())["scores"]
    for folder, side in ((small, "before"), (tmp_path / "out" / "model", "after")):
        capsys.readouterr()
        assert tuneprune("evaluate", folder, "--suite", "clinic", "--limit", "4", "--trust-remote-code") == 0
        found = json.loads(capsys.readouterr().out)
        for task, metrics in scores[side].items():
            assert metrics == pytest.approx(found[task], rel=1e-5), (side, task)


def test_the_run_file_of_the_pruning_run_works_too(tmp_path, tuneprune):
    """The sections about pruning are ignored, and the `recover` section sets the tuning."""
    small = smaller(tmp_path, tuneprune, "llama", "width", "free")
    run_file = tiny_runs.write_run(tmp_path, tmp_path / "nowhere", recover={"steps": 3})
    assert tuneprune("recover", small, run_file, "--out", tmp_path / "out", "--set", "tune.lora.rank=3") == 0
    settings = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert settings["model"] == str(small)
    assert (settings["tune"]["steps"], settings["tune"]["lora"]["rank"]) == (3, 3)
    assert not settings.keys() & {"method", "budget", "space", "recover"}


def test_a_recovered_model_is_recovered_again(tmp_path, tuneprune):
    small = smaller(tmp_path, tuneprune, "llama", "disp", "free")
    run_file = run_file_of(tmp_path, steps=2)
    for source, out in ((small, "once"), (tmp_path / "once" / "model", "twice")):
        assert tuneprune("recover", source, run_file, "--out", tmp_path / out) == 0
    assert load(tmp_path / "twice" / "model").config.pruned == load(small).config.pruned
    assert "# once/model, fine-tuned" in (tmp_path / "twice" / "model" / "README.md").read_text()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)])
def test_stopped_and_resumed(tmp_path, tuneprune, server, number, status):
    small = smaller(tmp_path, tuneprune, "llama", "disp", "free")
    run_file, log = run_file_of(tmp_path, steps=8, checkpoint_every=2), tmp_path / "log"
    arguments = ("recover", small, run_file, "--out")
    assert server.run(*arguments, tmp_path / "whole", log=log) == 0, log.read_text()
    moment = tmp_path / "stopped" / "checkpoints" / "step-000002"
    assert server.run_until(moment, number, *arguments, tmp_path / "stopped", log=log) == status, log.read_text()
    assert not (tmp_path / "stopped" / "record.json").exists()
    assert server.run(*arguments, tmp_path / "stopped", "--resume", log=log) == 0, log.read_text()
    for file in ("model/model.safetensors", "scores.json"):
        assert (tmp_path / "whole" / file).read_bytes() == (tmp_path / "stopped" / file).read_bytes()
    assert server.run(*arguments, tmp_path / "stopped", "--resume", log=log) == 0  # done: nothing to do


def test_refusals(tmp_path, model_folder, tuneprune, capsys):
    run_file, out = run_file_of(tmp_path), tmp_path / "out"
    small = smaller(tmp_path, tuneprune, "llama", "disp", "free")

    def refused(fragments, *arguments, model=small):
        capsys.readouterr()
        assert_refused(capsys, tuneprune("recover", model, run_file, "--out", out, *arguments), fragments)
        assert not out.exists()

    refused(["no folder ./nowhere"], model="./nowhere")
    refused(["`tune.stepps`", "Did you mean `steps`?"], "--set", "tune.stepps=3")
    refused(["unknown key `metod`"], "--set", "metod=atp")
    refused(["tune.max_length=4096", "context of"], "--set", "tune.max_length=4096")
    refused(["hff"], "--set", "export=[hff]")
    refused(["`tune`"], "--set", "tune=3")
    tensors = load_file(small / "model.safetensors")
    lost = tensors.pop("model.layers.1.mlp.up_proj.weight")
    assert lost.numel()
    save_file(tensors, small / "model.safetensors", metadata={"format": "pt"})
    refused(["lacks 1 weights", "model.layers.1.mlp.up_proj.weight"])
    (small / "model.safetensors").write_bytes(b"no")
    refused(["cannot load"])
