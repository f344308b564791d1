"""A format says which width it cannot divide, and what would make it possible, before anything is trained."""

import pytest
import torch
from helpers.tiny import random_masks, tiny_model

from tuneprune import export, families
from tuneprune.compress import cut
from tuneprune.errors import UnsupportedExport
from tuneprune.export import targets
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

ALIGNED = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 2, "num_key_value_heads": 2}


def shape(variant, space_name="width", channels=None, **sizes):
    model = tiny_model(variant, dtype=torch.float32, **sizes)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    masks = random_masks(space)
    for group in space.groups:
        if channels and group.kind == "mlp_channel":
            masks[group.name] = (torch.arange(group.size) < channels).float()
    return export.Shape.of(cut(model, architecture, space, Plan.from_masks(masks, space)).config)


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_nf4_takes_widths_that_its_blocks_divide(variant):
    targets.build("bnb:type=nf4").refuse(shape(variant, channels=128, **ALIGNED))


def test_nf4_names_the_width_in_the_way_and_the_way_out():
    with pytest.raises(UnsupportedExport, match=r"an MLP of width 100\. .*budget\.multiple_of: 64.*bnb:type=int8"):
        targets.build("bnb:type=nf4").refuse(shape("llama", channels=100, **ALIGNED))
    with pytest.raises(UnsupportedExport, match="a part of the residual stream of width"):
        targets.build("bnb:type=nf4").refuse(shape("llama", "disp", channels=128, **ALIGNED))


@pytest.mark.parametrize("name", ["bnb", "torchao", "torchao:type=int8_dynamic"])
@pytest.mark.parametrize("space_name", ["width", "head_dim", "disp", "residual"])
def test_int8_takes_any_width(name, space_name):
    targets.build(name).refuse(shape("llama", space_name))


@pytest.mark.parametrize("name", ["bnb", "torchao", "bnb:type=nf4"])
def test_mixtures_are_refused(name):
    with pytest.raises(UnsupportedExport, match="experts in packed tensors"):
        targets.build(name).refuse(shape("mixtral", "experts"))
