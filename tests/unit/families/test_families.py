"""What every supported family is, read off its config and checked against its weights."""

import copy

import pytest
import torch
from tiny import (
    CASES,
    DENSE,
    NO_NARROW_HEADS,
    NO_NARROW_STREAM,
    VARIANTS,
    exact_norms,
    logits,
    random_masks,
    tiny_model,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralForCausalLM,
    Phi3Config,
)

from tuneprune import families
from tuneprune.compress import compress
from tuneprune.errors import UnsupportedModel
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan

PACKED = ("phi3", "gpt_neox")
PLAIN = ("starcoder2", "phi", "gpt_neox")
NO_PRE_NORM = ("olmo2",)


@pytest.mark.parametrize("variant", VARIANTS)
def test_describe_says_what_the_weights_are(variant):
    model = tiny_model(variant)
    architecture = families.describe(model)
    names = dict(model.named_modules())
    assert architecture.family == model.config.model_type
    assert (architecture.hidden, len(architecture.blocks)) == (32, 2)
    assert names[architecture.embed].weight.shape == names[architecture.head].weight.shape == (64, 32)
    assert architecture.tied == (names[architecture.embed].weight is names[architecture.head].weight)
    assert names[architecture.final_norm].weight.shape == (32,)
    for block in architecture.blocks:
        attention = block.attention
        norms = (block.attention_norm, block.mlp_norm, block.attention_post_norm, block.mlp_post_norm)
        assert (block.attention_norm is None) == (block.mlp_norm is None) == (variant in NO_PRE_NORM)
        assert {path for path in names if "layernorm" in path and path.startswith(block.path)} == {*norms} - {None}
        for path in (norm for norm in norms if norm is not None):
            assert names[path].weight.shape == (32,)
            assert hasattr(names[path], "bias") == architecture.norms.is_centred
        assert attention.q.rows == attention.num_heads * attention.head_dim
        assert attention.k.rows == attention.v.rows == attention.num_kv_heads * attention.head_dim
        if variant in DENSE:
            assert (block.mlp.gate is None) == (variant in PLAIN)
            assert {part.rows for part in block.mlp.producers} == {block.mlp.width} == {48}
        assert attention.head_dim == (16 if variant == "qwen3" else 8)
        assert (attention.qk_norm is not None) == hasattr(names[attention.path], "q_norm")
        for path, projection in zip(attention.qk_norm or (), (attention.q, attention.k), strict=False):
            width = projection.rows if attention.qk_norm_joins_heads else attention.head_dim
            assert names[path].weight.shape == (width,)
        assert len(attention.inputs) == (1 if variant in PACKED else 3)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_block_adds_to_the_stream_is_what_its_output_modules_say(variant):
    model = tiny_model(variant)
    block = families.describe(model).blocks[0]
    seen = {}

    def look(name):
        return lambda _, inputs, output: seen.update({name: (inputs, output)})

    for path in (block.path, block.attention_output, block.mlp_output):
        model.get_submodule(path).register_forward_hook(look(path))
    logits(model)
    inputs, output = seen[block.path]
    share = getattr(model.config, "residual_multiplier", 1.0)
    added = share * (seen[block.attention_output][1] + seen[block.mlp_output][1])
    torch.testing.assert_close(inputs[0] + added, output[0] if isinstance(output, tuple) else output)


@pytest.mark.parametrize("variant", DENSE)
def test_a_block_is_parallel_where_the_mlp_does_not_see_what_attention_wrote(variant):
    model = tiny_model(variant)
    block = families.describe(model).blocks[0]
    seen = []
    model.get_submodule(block.mlp.path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(model)
    model.get_submodule(block.attention.out).weight.data.mul_(-0.7)
    logits(model)
    assert torch.equal(*seen) == block.parallel


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_leading_dims_that_rope_turns_are_known(variant):
    model = tiny_model(variant)
    for layer, block in enumerate(families.describe(model).blocks):
        stock = model.get_submodule(block.attention.path)
        turns = getattr(stock, "use_rope", True)
        assert block.attention.rotary_dim == (getattr(stock, "rotary_ndims", block.attention.head_dim) if turns else 0)
        assert (block.attention.rotary_dim == 0) == (variant == "smollm3" and layer == 1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_linear_of_the_blocks_is_listed_once(variant):
    model = tiny_model(variant)
    inside = [
        name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".layers." in name
    ]
    assert sorted(families.describe(model).linears()) == sorted(inside)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_config_alone_describes_the_same(variant):
    model = tiny_model(variant)
    assert families.describe_config(model.config) == families.describe(model)


def test_packed_projections_fill_their_linear_without_a_gap():
    block = families.describe(tiny_model("phi3")).blocks[1]
    attention, mlp = block.attention, block.mlp
    assert [(part.start, part.rows) for part in (attention.q, attention.k, attention.v)] == [
        (0, 32),
        (32, 16),
        (48, 16),
    ]
    assert [(part.start, part.rows) for part in mlp.producers] == [(0, 48), (48, 48)]


def test_experts_are_the_first_dimension_of_all_their_tensors():
    model = tiny_model("qwen3_moe")
    for block in families.describe(model).blocks:
        experts = block.feed_forward
        tensors = {name for name, _ in model.named_parameters() if name.startswith(f"{block.path}.mlp.")}
        assert set(experts.params) == tensors
        assert all(len(model.get_parameter(name)) == experts.num_experts == 8 for name in tensors)


def test_layers_with_an_mlp_among_layers_with_experts_are_refused():
    with pytest.raises(UnsupportedModel, match="some layers have an MLP instead of experts"):
        families.describe(tiny_model("qwen3_moe", mlp_only_layers=[0]))


def test_interleaved_projections_are_the_heads_of_the_stock_class():
    """GPT-NeoX: rows of head 1's keys, zeroed, make that head attend evenly, and no other."""
    model = tiny_model("gpt_neox")
    attention = families.describe(model).blocks[0].attention
    width, head = attention.head_dim, 1
    packed = model.get_submodule(attention.k.module)
    for projection in (attention.q, attention.k):
        first = projection.start + head * projection.interleaved * width
        packed.weight.data[first : first + width] = 0
        packed.bias.data[first : first + width] = 0
    model.set_attn_implementation("eager")
    weights = model(torch.arange(6)[None], output_attentions=True).attentions[0][0, :, -1]
    even = torch.full((6,), 1 / 6, dtype=weights.dtype)
    assert [torch.allclose(row, even) for row in weights] == [False, True, False, False]


def test_all_parts_of_the_rotary_setting_are_read():
    partial = families.describe_config(Phi3Config(hidden_size=3072, num_attention_heads=24, partial_rotary_factor=0.75))
    assert (partial.blocks[0].attention.head_dim, partial.blocks[0].attention.rotary_dim) == (128, 96)
    whole = families.describe_config(LlamaConfig(hidden_size=96, num_attention_heads=4, head_dim=32))
    assert (whole.blocks[0].attention.head_dim, whole.blocks[0].attention.rotary_dim) == (32, 32)


def test_the_known_families_are_found_by_their_files():
    assert {VARIANTS[variant][0].model_type for variant in VARIANTS} <= set(families.registry())
    for model_type, family in families.registry().items():
        assert model_type in family.MODEL_TYPES
        assert callable(family.describe)
        assert callable(family.uniform)


def test_an_unknown_family_is_refused_with_the_list():
    model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=8, n_positions=8))
    with pytest.raises(UnsupportedModel, match=r"`gpt2` is not supported; known families are gemma2, .*phi3.*qwen3"):
        families.describe(model)


def test_a_near_miss_gets_a_suggestion():
    config = LlamaConfig()
    config.model_type = "lama"
    with pytest.raises(UnsupportedModel, match="Did you mean `llama`"):
        families.describe_config(config)


def test_a_model_without_its_language_modelling_head_is_refused():
    config = LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    with pytest.raises(UnsupportedModel, match=r"no module `model\.layers\.0.*causal language model"):
        families.describe(LlamaModel(config))


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
    torch.testing.assert_close(logits(small), expected, rtol=1e-9, atol=1e-9)


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
def test_fewer_heads_are_hosted_where_other_readers_take_a_head_size(variant, changes, host, monkeypatch):
    model = tiny_model(variant, **changes)
    exact_norms(model, monkeypatch)
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
    torch.testing.assert_close(logits(small), expected, rtol=1e-9, atol=1e-9)


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
            if group.kind == "hidden" and variant not in {"llama_mha_biased", *NO_NARROW_STREAM}:
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


def test_describing_does_not_need_weights_in_memory():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2))
    assert families.describe(model).blocks[1].mlp.width == 11008
    assert families.stock_class(model.config) is LlamaForCausalLM
