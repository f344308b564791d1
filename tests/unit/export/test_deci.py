"""DeciLM: what it holds, under which names, and that its config says so after a reload."""

import json

import pytest
import torch
from exports.matrix import cell
from helpers.tiny import tiny_model
from helpers.toy_tokenizer import tiny_tokenizer
from safetensors.torch import load_file
from transformers import AutoConfig

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.errors import TunePruneError, UnsupportedExport
from tuneprune.export import targets
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan


def save(folder, family="llama", space_name="width", *, heads=(2, 2), channels=(30, 20), **changes):
    """A tiny model with these numbers of KV groups and channels in its two layers."""
    model = tiny_model(family, dtype=torch.float32, **changes)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    masks = space.ones()
    for group in space.groups:
        kept = {"kv_group": heads, "mlp_channel": channels}.get(group.kind, (group.size, group.size - 1))[group.layer]
        masks[group.name][kept:] = 0
    export.write(compress(model, architecture, space, Plan.from_masks(masks, space)), tiny_tokenizer(), folder)
    return folder


def convert(source, out, name="deci"):
    return export.convert(source, targets.build(name), out, export.take_reference(source))


@pytest.mark.parametrize("family", ["llama", "llama_mha_biased", "phi3", "seed_oss"])
def test_every_block_has_its_widths(tmp_path, family):
    found = convert(save(tmp_path / "model", family), tmp_path / "deci")
    assert found["proof"]["status"] == "structure"
    config = AutoConfig.from_pretrained(tmp_path / "deci", trust_remote_code=True)
    assert type(config).__name__ == "DeciConfig"
    assert [block.ffn.intermediate_size for block in config.block_configs] == [30, 20]
    assert not hasattr(config.block_configs[0].ffn, "ffn_mult")
    assert config.qkv_bias == (family in ("llama_mha_biased", "seed_oss"))
    tensors = load_file(tmp_path / "deci" / "model.safetensors")
    assert tensors["model.layers.1.mlp.up_proj.weight"].shape == (20, 32)
    assert tensors["model.layers.1.self_attn.k_proj.weight"].shape == (config.num_key_value_heads * 8, 32)
    config.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["block_configs"][1]["ffn"] == {
        "no_op": False,
        "intermediate_size": 20,
    }
    cell("deci", family, "width", "ragged", "structure", "equal numbers of query heads only")


@pytest.mark.parametrize(
    ("family", "space", "settings", "why"),
    [
        ("qwen3", "width", {}, "not that of qwen3"),
        ("llama", "width", {"heads": (2, 1)}, "one number of query heads"),
        ("llama", "head_dim", {}, "rotary pairs"),
        ("mistral", "width", {}, "no sliding window"),
    ],
)
def test_what_it_cannot_hold_is_refused(tmp_path, family, space, settings, why):
    source = save(tmp_path / "model", family, space, **settings)
    with pytest.raises(UnsupportedExport, match=f"deci: .*{why}.*transformers backend"):
        convert(source, tmp_path / "deci")


def test_widths_that_gpus_cannot_share_are_refused(tmp_path):
    source = save(tmp_path / "model")
    convert(source, tmp_path / "two", "deci:tp=2")
    with pytest.raises(UnsupportedExport, match="deci:tp=4: layer 0 has 4 query heads, 2 KV heads and 30 channels"):
        convert(source, tmp_path / "four", "deci:tp=4")


def test_a_missing_tensor_is_found(tmp_path, monkeypatch):
    source = save(tmp_path / "model")
    monkeypatch.setattr(
        "tuneprune.export.targets.deci.target._tensors", lambda weights, shape: {"lm_head.weight": torch.ones(1)}
    )
    with pytest.raises(TunePruneError, match="tensors differ"):
        convert(source, tmp_path / "deci")
