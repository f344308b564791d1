"""Inputs that look wrong but are valid."""

import pytest
import yaml
from helpers import tiny_runs


def test_a_base_that_was_quantised_once(tmp_path, model_folder, tuneprune):
    """A model that transformers dequantised and saved is a valid base."""
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    quantised = AutoModelForCausalLM.from_pretrained(
        model_folder, quantization_config=BitsAndBytesConfig(load_in_8bit=True), device_map="cpu"
    )
    folder = tmp_path / "again"
    quantised.dequantize().save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
    assert tuneprune("inspect", folder) == 0


def test_prompts_and_completions_in_a_perplexity_task(tmp_path, model_folder, tuneprune):
    path = tmp_path / "asked.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"text": "c"}\n')
    task = {"kind": "perplexity", "path": str(path)}
    assert tuneprune("validate", tiny_runs.write_run(tmp_path, model_folder, evaluate={"tasks": [task]})) == 0


def test_anchors_stand_for_what_they_name(tmp_path, model_folder, tuneprune):
    run_file = tiny_runs.write_run(tmp_path, model_folder)
    content = yaml.safe_load(run_file.read_text())
    source = content["data"].pop("calibration")[0]["path"]
    text = yaml.safe_dump(content | {"recover": None}).replace(
        "data:", f"data:\n  calibration: &own [{{path: {source}}}]"
    )
    run_file.write_text(text.replace("recover: null", "recover: {<<: {clip: 1}, clip: 2}"))
    assert tuneprune("validate", run_file) == 0
