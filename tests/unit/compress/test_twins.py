import pytest
import torch
from helpers.tiny import MIXTURES, NO_NARROW_HEADS, VARIANTS, logits, tiny_model
from transformers import LlamaConfig, LlamaForCausalLM

from tuneprune import families
from tuneprune.compress.twins import TOLERANCE, uniform_twin
from tuneprune.structure import spaces


def wide_llama(**changes):
    settings = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 3, "vocab_size": 64}
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(**settings | {"num_attention_heads": 8, "num_key_value_heads": 4} | changes)
        )
    architecture = families.describe(model)
    return model.config, architecture, spaces.build("width", architecture, model)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_has_a_twin_that_runs_and_has_the_size_it_says(variant):
    dense = tiny_model(variant, dtype=torch.float32)
    architecture = families.describe(dense)
    space = spaces.build("experts" if variant in MIXTURES else "width", architecture, dense)
    kept = {group.name: max(1, group.size // 2) for group in space.groups}
    heads = [group for group in space.groups if group.kind == "kv_group"]
    if variant in NO_NARROW_HEADS:
        kept |= {group.name: group.size for group in heads}
    target = space.count(kept)
    twin = uniform_twin(dense.config, architecture, space, target, {"kv_group": 0.5})
    assert twin is not None
    assert abs(twin.parameters - target) <= TOLERANCE * target
    model = twin.build(torch.device("cpu"), torch.float32)
    assert sum(parameter.numel() for parameter in model.parameters()) == twin.parameters
    assert not hasattr(model.config, "pruned")
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_share_of_heads_is_that_of_the_pruned_model_where_the_size_allows(share):
    config, architecture, space = wide_llama()
    twin = uniform_twin(config, architecture, space, round(0.6 * space.num_parameters), {"kv_group": share})
    assert twin.widths["kv_group"] == 4 * share


def test_aligned_widths_are_multiples():
    config, architecture, space = wide_llama()
    twin = uniform_twin(config, architecture, space, round(0.6 * space.num_parameters), {"kv_group": 0.5}, 128)
    assert twin.widths["mlp_channel"] % 128 == 0
    assert twin.widths["kv_group"] * architecture.blocks[0].attention.queries_per_kv * 32 % 128 == 0


def test_there_is_no_twin_where_the_size_or_the_alignment_is_out_of_reach():
    config, architecture, space = wide_llama()
    assert uniform_twin(config, architecture, space, space.num_parameters // 100, {}) is None
    assert uniform_twin(config, architecture, space, space.num_parameters // 2, {}, 2048) is None
