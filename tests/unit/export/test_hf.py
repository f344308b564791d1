"""Writing a folder: what is in it, what it replaces, and what a failing disk leaves behind."""

import ast
import json

import pytest
import torch
from helpers.tiny import logits, random_masks, tiny_model
from helpers.tiny_runs import letter_tokenizer
from helpers.toy_tokenizer import tiny_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, logging

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.errors import ConfigError, TunePruneError
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan
from tuneprune.system.progress import remark

logging.disable_progress_bar()


def pruned(variant="llama", space_name="disp", uniform=False, **changes):
    model = tiny_model(variant, dtype=torch.float32, **changes)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    return compress(model, architecture, space, Plan.from_masks(random_masks(space, uniform=uniform), space))


def test_ragged_folder_is_complete(tmp_path):
    loader = export.write(pruned("qwen3"), tiny_tokenizer(), tmp_path / "model")
    assert loader == export.Loader("PrunedQwen3ForCausalLM", needs_remote_code=True, host_model_type="qwen3")
    assert {file.name for file in (tmp_path / "model").iterdir()} == {
        "config.json",
        "export.json",
        "generation_config.json",
        "model.safetensors",
        "modeling_pruned.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["model_type"] == "qwen3"
    assert config["architectures"] == ["PrunedQwen3ForCausalLM"]
    assert config["auto_map"] == {
        "AutoModel": "modeling_pruned.PrunedQwen3Model",
        "AutoModelForCausalLM": "modeling_pruned.PrunedQwen3ForCausalLM",
    }
    assert str(tmp_path) not in json.dumps(config)


def test_config_of_a_ragged_model_loads_without_trust(tmp_path):
    export.write(pruned("phi3"), tiny_tokenizer(), tmp_path / "model")
    assert type(AutoConfig.from_pretrained(tmp_path / "model")).__name__ == "Phi3Config"


def test_shipped_file_imports_only_torch_and_transformers(tmp_path):
    export.write(pruned(), tiny_tokenizer(), tmp_path / "model")
    text = (tmp_path / "model" / "modeling_pruned.py").read_text()
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"collections", "contextlib", "typing", "torch", "transformers"}


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        (
            "phi3",
            {
                "head_dim": 8,
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e4, "partial_rotary_factor": 0.75},
            },
        ),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 12345.0}}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}),
        ("llama3", {}),
    ],
)
def test_legacy_rope_names_do_not_change_what_transformers_reads(tmp_path, variant, changes):
    model = pruned(variant, "width", uniform=True, **changes)
    export.write(model, tiny_tokenizer(), tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["rope_theta"] == model.config.rope_parameters["rope_theta"]
    assert AutoConfig.from_pretrained(tmp_path / "model").rope_parameters == model.config.rope_parameters


def test_shards_as_asked(tmp_path):
    export.write(pruned(), tiny_tokenizer(), tmp_path / "model", max_shard_size="20KB")
    shards = list((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert export.weight_bytes(tmp_path / "model") == sum(shard.stat().st_size for shard in shards)


def test_generation_settings_travel(tmp_path):
    model = pruned()
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.3, eos_token_id=2)
    export.write(model, tiny_tokenizer(), tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").temperature == 0.3


def test_tokenizer_is_of_a_class_that_transformers_4_knows_too(tmp_path):
    tokenizer = tiny_tokenizer()
    export.write(pruned(), tokenizer, tmp_path / "model")
    settings = json.loads((tmp_path / "model" / "tokenizer_config.json").read_text())
    assert settings["tokenizer_class"] == "PreTrainedTokenizerFast"
    loaded = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded("the cat sat")["input_ids"] == tokenizer("the cat sat")["input_ids"]
    export.write(pruned(), loaded, tmp_path / "again")
    again = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert again["tokenizer_class"] == "PreTrainedTokenizerFast"


@pytest.mark.parametrize(("stops", "kept"), [(7, [7, 2]), ([7, 9], [7, 9, 2]), (None, 2), (2, 2), ([9, 2], [9, 2])])
def test_the_result_stops_where_its_texts_end(tmp_path, caplog, stops, kept):
    remark.cache_clear()
    model = pruned()
    model.generation_config = GenerationConfig(eos_token_id=stops)
    export.write(model, letter_tokenizer(), tmp_path / "model")
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == kept
    said = [record.getMessage() for record in caplog.records if "eos_token_id" in record.getMessage()]
    assert len(said) == (stops != kept)
    if said:
        assert f"eos_token_id={stops}" in said[0]
        assert "</s>" in said[0]


def test_a_stop_without_an_embedding_is_not_added(tmp_path):
    tokenizer = letter_tokenizer()
    tokenizer.add_tokens([f"<{number}>" for number in range(40)])
    tokenizer.eos_token = "<39>"
    export.write(pruned(), tokenizer, tmp_path / "model")
    assert 69 not in [GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id]


def test_earlier_export_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    export.write(pruned(), tiny_tokenizer(), folder)
    export.write(pruned(space_name="width", uniform=True), tiny_tokenizer(), folder)
    assert not (folder / "modeling_pruned.py").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("earlier", [True, False])
def test_full_disk_leaves_everything_as_it_was(tmp_path, monkeypatch, earlier):
    folder = tmp_path / "model"
    model, tokenizer = pruned(), tiny_tokenizer()
    if earlier:
        export.write(pruned(space_name="width", uniform=True), tokenizer, folder)
    before = {file.name: file.read_bytes() for file in folder.glob("*")}

    def refuse(*arguments, **settings):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", refuse)
    with pytest.raises(TunePruneError, match=r"No space left on device.*untouched"):
        export.write(model, tokenizer, folder)
    assert {file.name: file.read_bytes() for file in folder.glob("*")} == before
    assert [entry.name for entry in tmp_path.iterdir()] == (["model"] if earlier else [])


def test_other_peoples_files_are_not_replaced(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="would be lost"):
        export.write(pruned(), tiny_tokenizer(), tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        export.write(pruned(), tiny_tokenizer(), tmp_path / "thesis.tex")
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def saved_by_transformers(folder):
    tiny_model("llama").save_pretrained(folder)


def with_notes(folder):
    (folder / "notes.md").write_text("mine")


def tuned_in_place(folder):
    tiny_model("llama", hidden_size=64).save_pretrained(folder)


def with_more_below(folder):
    (folder / "checkpoint-5").mkdir()
    (folder / "checkpoint-5" / "model.safetensors").write_bytes(b"weights")


@pytest.mark.parametrize("change", [with_notes, tuned_in_place, with_more_below])
def test_an_export_that_somebody_added_to_is_not_replaced(tmp_path, change):
    folder = tmp_path / "model"
    export.write(pruned(), tiny_tokenizer(), folder)
    change(folder)
    before = {file: file.is_file() and file.read_bytes() for file in folder.rglob("*")}
    with pytest.raises(ConfigError, match="would be lost"):
        export.write(pruned(), tiny_tokenizer(), folder)
    assert {file: file.is_file() and file.read_bytes() for file in folder.rglob("*")} == before


def test_a_model_of_another_program_is_not_replaced(tmp_path):
    saved_by_transformers(tmp_path)
    with pytest.raises(ConfigError, match=r"no export\.json .* would be lost"):
        export.write(pruned(), tiny_tokenizer(), tmp_path)


def test_an_export_with_its_card_is_replaced(tmp_path):
    export.write(pruned(), tiny_tokenizer(), tmp_path / "model")
    export.add_to_export(tmp_path / "model", {"README.md": "ä card"})
    export.write(pruned(), tiny_tokenizer(), tmp_path / "model")
    assert not (tmp_path / "model" / "README.md").exists()


def test_llama_with_heads_that_do_not_divide_its_width_loads_as_mistral(tmp_path):
    model, tokenizer = tiny_model("llama", num_key_value_heads=4), tiny_tokenizer()
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    masks = space.ones()
    for group in space.groups:
        if group.kind == "kv_group":
            masks[group.name] = torch.tensor([1.0, 0.0, 1.0, 1.0])
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    loader = export.write(small, tokenizer, tmp_path / "model")
    assert loader == export.Loader("MistralForCausalLM", needs_remote_code=False, host_model_type="mistral")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(logits(again), logits(small))
    assert AutoTokenizer.from_pretrained(tmp_path / "model")("the cat")["input_ids"] == [4, 5]
