"""Law 4: writing the residual stream in another basis changes nothing, for every family whose norms allow it."""

import pytest
import torch
from helpers.precision import EXACT
from helpers.tiny import VARIANTS, logits, random_masks, tiny_model

from tuneprune import families
from tuneprune.compress import compress, cut, rewrite
from tuneprune.errors import PlanMismatch
from tuneprune.structure import spaces
from tuneprune.structure.edits import EVERYWHERE, Keep, Rotate
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan

pytestmark = pytest.mark.usefixtures("full_precision")

ROTATED = [variant for variant in VARIANTS if families.describe(tiny_model(variant)).is_rotatable]


@pytest.fixture(params=ROTATED)
def model(request):
    return tiny_model(request.param)


def random_basis(size, seed):
    draw = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=draw, dtype=torch.float64))[0]


def parts(model, space_name):
    architecture = families.describe(model)
    return architecture, spaces.build(space_name, architecture, model)


def test_one_basis_everywhere_changes_nothing(model):
    architecture, space = parts(model, "width")
    expected, before = logits(model), [p.clone() for p in model.parameters()]
    plan = Plan((Rotate(EVERYWHERE, random_basis(architecture.hidden, 0)),), space.fingerprint)
    rotated = rewrite(model, architecture, space, plan)
    torch.testing.assert_close(logits(rotated), expected, **EXACT)
    assert any((p - old).abs().max() > 0.1 for p, old in zip(rotated.parameters(), before, strict=False))
    assert sum(p.numel() for p in rotated.parameters()) == space.num_parameters + plan.added(space)
    assert (plan.added(space) > 0) == architecture.tied  # the head becomes a tensor of its own


def test_a_rotated_model_of_the_dense_shape_is_a_stock_model(model):
    architecture, space = parts(model, "width")
    expected = logits(model)
    plan = Plan((Rotate(EVERYWHERE, random_basis(architecture.hidden, 1)),), space.fingerprint)
    small = compress(model, architecture, space, plan)
    assert not hasattr(small.config, "pruned")
    assert not small.config.tie_word_embeddings
    torch.testing.assert_close(logits(small), expected, **EXACT)


def test_bases_of_another_size_or_at_some_norms_only_are_refused(model):
    architecture, space = parts(model, "width")
    plan = Plan((Rotate(EVERYWHERE, random_basis(8, 0)),), space.fingerprint)
    with pytest.raises(PlanMismatch, match=r"do not fit a residual stream of 32 dims|must be square, with a width"):
        rewrite(model, architecture, space, plan)
    plan = Plan((Rotate(architecture.final_norm, random_basis(32, 0)),), space.fingerprint)
    with pytest.raises(PlanMismatch, match="one basis for all, or one for each of the 5 norms"):
        rewrite(model, architecture, space, plan)


@pytest.mark.parametrize("variant", ["gemma2", "gemma3", "olmo2", "starcoder2", "phi", "gpt_neox"])
def test_families_whose_norms_do_not_commute_are_refused(variant):
    model = tiny_model(variant)
    architecture, space = parts(model, "width")
    assert variant not in ROTATED
    plan = Plan((Rotate(EVERYWHERE, random_basis(32, 0)),), space.fingerprint)
    with pytest.raises(PlanMismatch, match=r"its (LayerNorms|norms of what .*) do not commute"):
        rewrite(model, architecture, space, plan)


def rotated_everywhere(architecture, space, masks):
    bases = [Rotate(site.norm, random_basis(32, seed)) for seed, site in enumerate(architecture.sites())]
    return Plan((*bases, *Plan.from_masks(masks, space).edits), space.fingerprint)


def test_a_basis_for_every_norm_changes_nothing(model):
    architecture, space = parts(model, "residual")
    expected = logits(model)
    plan = rotated_everywhere(architecture, space, space.ones())
    small = compress(model, architecture, space, plan)
    torch.testing.assert_close(logits(small), expected, **EXACT)
    assert sum(p.numel() for p in small.parameters()) == space.num_parameters + plan.added(space)


@pytest.mark.parametrize("is_global", [True, False])
def test_rotated_and_masked_equals_rotated_and_cut(model, is_global):
    architecture, space = parts(model, "residual")
    masks = random_masks(space)
    plan = rotated_everywhere(architecture, space, masks)
    if is_global:
        edits = (Rotate(EVERYWHERE, random_basis(32, 0)), *plan.of_kind(Keep))
        plan = Plan(edits, space.fingerprint)
    dense = logits(model)
    model = rewrite(model, architecture, space, plan)
    with Gates(model, space)(plan.masks(space)):
        expected = logits(model)
    assert (expected - dense).abs().max() > 1e-3
    small = cut(model, architecture, space, plan)
    torch.testing.assert_close(logits(small), expected, **EXACT)
    counted = space.count(plan.widths(space)) + plan.added(space)
    assert sum(p.numel() for p in small.parameters()) == counted
    assert hasattr(small.config, "pruned") == (not is_global or families.describe_config(small.config).hidden == 32)
