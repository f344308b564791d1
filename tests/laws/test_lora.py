"""Laws 7 and 9: cutting after LoRA is exact, in every mode, for every family and space."""

import copy

import pytest
import torch
from helpers.precision import EXACT
from helpers.tiny import CASES, logits, random_masks, tiny_model

from tuneprune import families
from tuneprune.compress import compress
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan
from tuneprune.structure.weights import group_norms, lora_entries, lora_norms, scale_lora
from tuneprune.train.config import LoraOptions
from tuneprune.train.lora import inject_lora, merge_lora

pytestmark = pytest.mark.usefixtures("full_precision")


@pytest.fixture(params=CASES, ids="-".join)
def tuned(request):
    """A model with random LoRA on all linears of its blocks, its architecture, and a space with random masks."""
    variant, name = request.param
    model = tiny_model(variant)
    architecture = families.describe(model)
    space = spaces.build(name, architecture, model)
    inject_lora(model, architecture, LoraOptions(rank=3, alpha=6, dropout=0.1), seed=0)
    torch.manual_seed(7)
    for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
        parameter.data = 0.3 * torch.randn_like(parameter, dtype=torch.float64)
    return model.eval(), architecture, space, random_masks(space)


def masked_logits(model, space, masks, mode="masked"):
    with Gates(model, space)(masks, mode):
        return logits(model)


def project(model, space, masks):
    for group in space.groups:
        scale_lora(model, group, masks[group.name])


def test_merging_changes_no_output_and_leaves_no_adapter(tuned):
    model, architecture, _, _ = tuned
    expected = logits(model)
    merge_lora(model, architecture)
    torch.testing.assert_close(logits(model), expected, **EXACT)
    assert model.state_dict().keys() == type(model)(model.config).state_dict().keys()
    assert families.describe(model) == architecture


def test_masked_lora_equals_merged_and_compressed(tuned):
    model, architecture, space, masks = tuned
    expected = masked_logits(model, space, masks)
    merge_lora(model, architecture)
    torch.testing.assert_close(masked_logits(model, space, masks), expected, **EXACT)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    torch.testing.assert_close(logits(small), expected, **EXACT)


def test_open_lora_differs_from_masked_until_it_is_projected(tuned):
    model, architecture, space, masks = tuned
    expected = masked_logits(model, space, masks)
    linears = set(architecture.linears())
    is_open = any(gate.module in linears for group in space.groups for gate in group.tuning_gates)
    # a norm leaves none open, and experts have none
    assert ((masked_logits(model, space, masks, "open") - expected).abs().max() > 1e-4) == is_open
    project(model, space, masks)
    torch.testing.assert_close(masked_logits(model, space, masks), expected, **EXACT)  # the cut loses nothing
    torch.testing.assert_close(masked_logits(model, space, masks, "open"), expected, **EXACT)
    merge_lora(model, architecture)
    small = compress(model, architecture, space, Plan.from_masks(masks, space))
    torch.testing.assert_close(logits(small), expected, **EXACT)


def test_open_equals_masked_while_training_too(tuned):
    model, _, space, masks = tuned
    project(model, space, masks)
    model.train()
    found = []
    for mode in ("masked", "open"):
        torch.manual_seed(11)  # the same dropout
        found.append(masked_logits(model, space, masks, mode))
    torch.testing.assert_close(found[1], found[0], **EXACT)


def test_keeping_everything_is_the_identity_with_lora_in_every_mode(tuned):
    model, _, space, _ = tuned
    expected = logits(model)
    for mode in ("masked", "open"):
        assert torch.equal(masked_logits(model, space, space.ones(), mode), expected)
    project(model, space, space.ones())
    assert torch.equal(logits(model), expected)


def test_projection_takes_lora_from_removed_units_and_from_no_other(tuned):
    model, _, space, masks = tuned
    before = {group.name: lora_norms(model, group) for group in space.groups}
    project(model, space, masks)
    for group in (group for group in space.groups if lora_entries(model, group)):
        kept = masks[group.name] == 1
        after = lora_norms(model, group)
        assert (after[~kept] == 0).all()
        assert (after[kept] > 0).all()
        assert torch.equal(after[kept], before[group.name][kept])


def test_group_norms_see_the_weights_that_compression_will_cut(tuned):
    model, architecture, space, _ = tuned
    wrapped = {group.name: group_norms(model, group) for group in space.groups}
    merged = copy.deepcopy(model)
    merge_lora(merged, architecture)
    for group in space.groups:
        torch.testing.assert_close(group_norms(merged, group), wrapped[group.name])
