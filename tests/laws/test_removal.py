"""Laws 1 to 3: masked == compressed, count == numel, keep-all is the identity; for every family and space."""

import copy

import pytest
import torch
from helpers.precision import EXACT
from helpers.tiny import CASES, DENSE, MIXTURES, NO_NARROW_HEADS, REFUSED, logits, random_masks, tiny_model
from transformers import AutoModelForCausalLM

from tuneprune import families
from tuneprune.budget import count_parameters
from tuneprune.compress import compress
from tuneprune.errors import UnsupportedModel
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan

pytestmark = pytest.mark.usefixtures("full_precision")


@pytest.fixture(params=CASES, ids="-".join)
def case(request):
    """A variant and a space that it can be pruned in."""
    return request.param


@pytest.fixture
def model(case):
    return tiny_model(case[0])


@pytest.fixture
def space_name(case):
    return case[1]


def parts(model, space_name):
    architecture = families.describe(model)
    return architecture, spaces.build(space_name, architecture, model)


@pytest.mark.parametrize("uniform", [False, True])
def test_masked_equals_compressed(model, space_name, uniform):
    architecture, space = parts(model, space_name)
    masks = random_masks(space, uniform=uniform)
    with Gates(model, space)(masks):
        expected = logits(model)
    dense = logits(model)
    assert (expected - dense).abs().max() > 1e-3  # the removal does something
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    torch.testing.assert_close(logits(small), expected, **EXACT)


@pytest.mark.parametrize("uniform", [False, True])
def test_count_is_the_number_of_parameters(model, space_name, uniform):
    architecture, space = parts(model, space_name)
    masks = random_masks(space, seed=3, uniform=uniform)
    soft = {name: mask.clone().requires_grad_() for name, mask in masks.items()}
    left = space.parameters_left(soft)
    left.backward()
    assert all((mask.grad > 0).all() for mask in soft.values())  # every unit costs something
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert round(left.item()) == count_parameters(space, masks) == sum(p.numel() for p in small.parameters())


def test_keeping_everything_is_the_identity_bit_for_bit(model, space_name):
    architecture, space = parts(model, space_name)
    dense = logits(model)
    with Gates(model, space)(space.ones()):
        assert torch.equal(logits(model), dense)
    small = compress(copy.deepcopy(model), architecture, space, Plan.from_masks(space.ones(), space))
    assert torch.equal(logits(small), dense)
    assert type(small) is type(model)
    assert not hasattr(small.config, "pruned")
    assert space.num_parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("variant", [variant for variant in DENSE if variant not in NO_NARROW_HEADS])
def test_uniform_width_is_the_stock_class_without_extra_code(variant):
    model = tiny_model(variant)
    architecture, space = parts(model, "width")
    small = compress(model, architecture, space, Plan.from_masks(random_masks(space, uniform=True), space))
    assert type(small).__module__.startswith("transformers.models.")
    assert not hasattr(small.config, "pruned")


def test_a_stock_class_in_half_precision_keeps_the_frequencies_of_rope_in_full():
    dense = tiny_model("llama", dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(dense.config, dtype=torch.bfloat16)
    architecture, space = parts(model, "width")
    small = compress(model, architecture, space, Plan.from_masks(random_masks(space, uniform=True), space))
    assert small.dtype == torch.bfloat16
    assert torch.equal(small.model.rotary_emb.inv_freq, dense.model.rotary_emb.inv_freq)


def test_a_stock_class_that_derives_the_head_size_keeps_its_heads_and_loses_channels_alone():
    model = tiny_model("gpt_neox")
    architecture, space = parts(model, "width")
    masks = random_masks(space, uniform=True) | {block.attention.path: torch.ones(4) for block in architecture.blocks}
    with Gates(model, space)(masks):
        expected = logits(model)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert not hasattr(small.config, "pruned")
    torch.testing.assert_close(logits(small), expected, **EXACT)


@pytest.mark.parametrize(("variant", "space_name"), sorted(REFUSED))
def test_what_a_family_cannot_do_is_refused_with_the_spaces_that_work(variant, space_name):
    way_out = r"(needs .* Use space `width`|cannot cut mixtures .* Use space `experts`)"
    with pytest.raises(UnsupportedModel, match=rf"space `{space_name}` {way_out}"):
        parts(tiny_model(variant), space_name)


@pytest.mark.parametrize("variant", DENSE)
def test_models_without_experts_refuse_to_lose_some(variant):
    with pytest.raises(UnsupportedModel, match=r"needs a mixture of experts.* Use space `width` or `disp`\."):
        parts(tiny_model(variant), "experts")


@pytest.mark.parametrize("variant", MIXTURES)
def test_as_many_experts_everywhere_are_the_stock_class(variant):
    model = tiny_model(variant)
    architecture, space = parts(model, "experts")
    small = compress(model, architecture, space, Plan.from_masks(random_masks(space, uniform=True), space))
    assert not hasattr(small.config, "pruned")
    assert small.config.num_experts == 4


@pytest.mark.parametrize("ragged", [False, True])
def test_fewer_experts_than_a_token_goes_to_are_all_asked(ragged):
    model = tiny_model("qwen3_moe")
    architecture, space = parts(model, "experts")
    masks = {group.name: (torch.arange(8) == 3 + ragged * group.layer).float() for group in space.groups}
    if ragged:
        masks[space.groups[1].name][:] = 1
    with Gates(model, space)(masks):
        expected = logits(model)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert hasattr(small.config, "pruned") == ragged
    torch.testing.assert_close(logits(small), expected, **EXACT)


@pytest.mark.parametrize("use_cache", [True, False])
def test_compressed_models_generate_what_the_masked_model_does(model, space_name, use_cache):
    architecture, space = parts(model, space_name)
    masks = random_masks(space, seed=5)
    prompt = torch.tensor([[1, 9, 17, 33], [1, 4, 5, 6]])
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with Gates(model, space)(masks):
        expected = model.generate(prompt, use_cache=True, **settings)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert torch.equal(small.generate(prompt, use_cache=use_cache, **settings), expected)
