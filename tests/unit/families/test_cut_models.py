"""Cut models: the stock class that they become, and what is refused."""

import copy

import pytest
import torch
from helpers.precision import EXACT
from helpers.tiny import (
    CASES,
    DENSE,
    NO_NARROW_HEADS,
    NO_NARROW_STREAM,
    NO_ODD_STREAM,
    VARIANTS,
    logits,
    random_masks,
    tiny_model,
)
from transformers import (
    MistralForCausalLM,
)

from tuneprune import families
from tuneprune.compress import compress
from tuneprune.errors import UnsupportedModel
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan


@pytest.mark.parametrize("name", ["width", "head_dim", "disp"])  # the others leave a stock model
def test_a_model_already_cut_to_its_own_widths_is_refused(name):
    model = tiny_model("llama")
    architecture = families.describe(model)
    space = spaces.build(name, architecture, model)
    small = compress(model, architecture, space, Plan.from_masks(random_masks(space), space))
    with pytest.raises(UnsupportedModel, match=r"but the config says .* Use the dense model"):
        families.describe(small)


@pytest.mark.parametrize("variant", DENSE)
def test_a_model_cut_to_stock_widths_can_be_described_and_cut_again(variant):
    model = tiny_model(variant)
    for seed in (1, 2):
        architecture = families.describe(model)
        space = spaces.build("width", architecture, model)
        if architecture.blocks[0].attention.num_kv_heads > 1:
            masks = random_masks(space, seed=seed, uniform=True)
        else:
            masks = space.ones()
        if variant in NO_NARROW_HEADS:
            masks |= {block.attention.path: torch.ones(4) for block in architecture.blocks}
        model = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert families.describe(model).blocks[0].mlp.width in (12, 24)


@pytest.mark.parametrize("changes", [{}, {"rope_parameters": VARIANTS["llama3"][2]["rope_parameters"]}])
def test_a_head_count_llama_refuses_is_hosted_by_mistral_with_the_same_logits(changes):
    model = tiny_model("llama", num_key_value_heads=4, **changes)
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    masks = space.ones()
    for block in architecture.blocks:
        masks[block.attention.path][2] = 0  # three heads do not divide a hidden size of 32
        model.get_submodule(block.attention.out).weight.data[:, 16:24] = 0
    expected = logits(model)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert type(small) is MistralForCausalLM
    assert small.config.num_attention_heads == 3
    torch.testing.assert_close(logits(small), expected, **EXACT)


@pytest.mark.parametrize(
    ("variant", "changes", "host"),
    [
        ("qwen2", {}, "seed_oss"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}, "qwen2"),
        ("phi3", {}, "mistral"),
        ("phi3", {"sliding_window": 8}, "mistral"),
        ("phi3", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "phi3"),
        ("phi3", {"resid_pdrop": 0.1}, "phi3"),
    ],
)
def test_fewer_heads_are_hosted_where_other_readers_take_a_head_size(variant, changes, host, full_precision):
    model = tiny_model(variant, **changes)
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    masks = random_masks(space, uniform=True)
    for block in architecture.blocks:
        masks |= {block.attention.path: torch.ones(2)}
    plan = Plan.from_masks(masks, space)
    assert compress(copy.deepcopy(model), architecture, space, plan).config.model_type == variant
    masks |= {block.attention.path: torch.tensor([0.0, 1.0]) for block in architecture.blocks}
    with Gates(model, space)(masks):
        expected = logits(model)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert small.config.model_type == host
    assert (small.config.num_attention_heads, small.config.head_dim) == (2, 8)
    torch.testing.assert_close(logits(small), expected, **EXACT)


def test_a_llama_with_biases_has_no_such_host():
    model = tiny_model("llama_mha_biased")
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    widths = {group.name: 3 if group.kind == "kv_group" else 24 for group in space.groups}
    assert families.uniform_config(model.config, architecture, space, widths) is None


@pytest.mark.parametrize("variant", VARIANTS)
def test_stock_widths_need_equal_layers_and_whole_other_groups(variant):
    model = tiny_model(variant)
    architecture = families.describe(model)
    for name in (space for case, space in CASES if case == variant):
        space = spaces.build(name, architecture, model)
        whole = {group.name: group.size for group in space.groups}
        config = families.uniform_config(model.config, architecture, space, whole)
        assert config.to_dict() | {"head_dim": None} == model.config.to_dict() | {"head_dim": None}
        for group in space.groups:
            ragged = whole | {group.name: group.size - 1}
            config = families.uniform_config(model.config, architecture, space, ragged)
            if group.kind == "hidden" and variant not in NO_ODD_STREAM | NO_NARROW_STREAM:
                assert config.hidden_size == 31
                assert config.rms_norm_eps == pytest.approx(model.config.rms_norm_eps * 32 / 31)
            elif name == "depth":
                assert config.num_hidden_layers == 1
            else:
                assert config is None


@pytest.mark.parametrize("variant", DENSE)
def test_dropped_layers_leave_the_description_of_the_smaller_model(variant):
    model = tiny_model(variant, num_hidden_layers=4)
    architecture = families.describe(model)
    space = spaces.build("depth", architecture, model)
    dropped = [architecture.blocks[layer].path for layer in (0, 2)]
    masks = space.ones() | {path: torch.zeros(1) for path in dropped}
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    attentions = [module for module in small.modules() if hasattr(module, "layer_idx") and hasattr(module, "scaling")]
    assert [attention.layer_idx for attention in attentions] == [0, 1]
    assert small.config.num_hidden_layers == 2
    assert families.describe(small) == architecture.without(dropped)
    assert architecture.without([]) == architecture


def test_settings_of_single_layers_follow_their_layers():
    kinds = ["full_attention", "sliding_attention"] * 2
    model = tiny_model("qwen2", num_hidden_layers=4, layer_types=kinds, use_sliding_window=True, sliding_window=4)
    architecture = families.describe(model)
    space = spaces.build("depth", architecture, model)
    masks = space.ones() | {"model.layers.0": torch.zeros(1)}
    with Gates(model, space)(masks):
        expected = logits(model)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert small.config.layer_types == kinds[1:]
    assert torch.equal(logits(small), expected)
