"""Laws 1 to 3: masked == compressed, count == numel, keep-all is the identity; for every family and space."""

import copy

import pytest
import torch
from tiny import SPACES, VARIANTS, logits, random_masks, tiny_model
from transformers import AutoModelForCausalLM

from tuneprune import families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.budget import count_parameters
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan


@pytest.fixture(params=VARIANTS)
def model(request):
    return tiny_model(request.param)


def parts(model, space_name):
    architecture = families.describe(model)
    return architecture, spaces.build(space_name, architecture, model)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("space_name", SPACES)
def test_masked_equals_compressed(model, space_name, uniform):
    architecture, space = parts(model, space_name)
    masks = random_masks(space, uniform=uniform)
    with Gates(model, space)(masks):
        expected = logits(model)
    dense = logits(model)
    assert (expected - dense).abs().max() > 1e-3  # the removal does something
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    # Hugging Face's RMSNorm computes in float32, so a q/k norm over fewer dims agrees to float32 rounding only.
    tolerance = 1e-5 if space_name == "head_dim" and model.config.model_type == "qwen3" else 1e-9
    torch.testing.assert_close(logits(small), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("space_name", SPACES)
def test_count_is_the_number_of_parameters(model, space_name, uniform):
    architecture, space = parts(model, space_name)
    masks = random_masks(space, seed=3, uniform=uniform)
    soft = {name: mask.clone().requires_grad_() for name, mask in masks.items()}
    left = space.parameters_left(soft)
    left.backward()
    assert all((mask.grad > 0).all() for mask in soft.values())  # every unit costs something
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    assert round(left.item()) == count_parameters(space, masks) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("space_name", SPACES)
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


def test_uniform_width_is_the_stock_class_without_extra_code(model):
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


@pytest.mark.parametrize("space_name", SPACES)
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
