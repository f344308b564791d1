"""The description of every supported family, compared with its weights."""

import pytest
import torch
from helpers.tiny import (
    DENSE,
    VARIANTS,
    logits,
    tiny_model,
)
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    Phi3Config,
)

from tuneprune import families
from tuneprune.errors import UnsupportedModel

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
    """GPT-NeoX: zeroing the query and key rows of head 1 makes that head attend evenly, and no other."""
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


def test_describing_does_not_need_weights_in_memory():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2))
    assert families.describe(model).blocks[1].mlp.width == 11008
    assert families.stock_class(model.config) is LlamaForCausalLM
