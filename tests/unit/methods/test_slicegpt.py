"""SliceGPT: principal axes of hand-made data, nothing sliced is nothing changed, and the walk along cut layers."""

import copy
from types import SimpleNamespace

import pytest
import torch
from helpers.precision import FLOAT32, within
from helpers.tiny import VARIANTS, logits, tiny_model
from helpers.tiny_tuning import hooks_of, setting

from tuneprune import families, methods
from tuneprune.budget import Budget
from tuneprune.calibration.residual_stream import Moments, Walk, principal_axes
from tuneprune.compress import compress, rewrite
from tuneprune.errors import UnreachableBudget, UnsupportedModel
from tuneprune.pipeline.record import parameter_counts
from tuneprune.structure.edits import Keep, Rotate


def plan_of(made, keep, **options):
    return methods.build({"name": "slicegpt", "batches": 2} | options).begin(made.subject, Budget(keep=keep)).plan()


def test_principal_axes_of_hand_made_moments():
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.double)  # the wide axis points along (0.6, 0.8)
    values, basis = principal_axes(turn @ torch.diag(torch.tensor([9.0, 1.0]).double()) @ turn.T, damping=0.1)
    assert values.tolist() == pytest.approx([9.5, 1.5], rel=FLOAT32)  # a tenth of the mean diagonal, 5, more
    expected = torch.tensor([[0.6, 0.8], [0.8, -0.6]]).double()  # largest entries positive
    torch.testing.assert_close(basis, expected, **within(FLOAT32))


def test_moments_are_of_normalised_tokens_without_padding():
    moments = Moments(2, torch.device("cpu"), epsilon=0.0)
    stream = torch.tensor([[[3.0, 4.0], [0.0, 2.0], [70.0, 70.0]]])
    moments.add(stream, torch.tensor([[True, True, False]]))
    # (3, 4) over its root mean square sqrt(12.5), (0, 2) over sqrt(2)
    expected = torch.tensor([[9 / 12.5, 12 / 12.5], [12 / 12.5, 16 / 12.5 + 2.0]]).double()
    torch.testing.assert_close(moments.total, expected, **within(FLOAT32))  # tokens are in it


@pytest.mark.parametrize("variant", [v for v in VARIANTS if families.describe(tiny_model(v)).is_rotatable])
def test_nothing_sliced_is_nothing_changed(tmp_path, variant):
    made = setting(tmp_path, variant=variant, space_name="residual", lora=False)
    expected = logits(made.model)
    small = compress(made.model, made.architecture, made.space, plan_of(made, 1.0))
    if not made.architecture.tied:  # a head of its own is paid with dims
        torch.testing.assert_close(logits(small), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if families.describe(tiny_model(v)).is_rotatable])
@pytest.mark.parametrize("kind", ["stock", "skip"])
def test_its_bases_alone_change_nothing(tmp_path, variant, kind):
    made = setting(tmp_path, variant=variant, space_name="residual", lora=False)
    expected = logits(made.model)
    plan = plan_of(made, 0.7, variant=kind)
    whole = type(plan)(tuple(plan.of_kind(Rotate)), plan.space)
    rotated = rewrite(made.model, made.architecture, made.space, whole)
    torch.testing.assert_close(logits(rotated), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["llama", "llama3", "qwen3"])
@pytest.mark.parametrize("kind", ["stock", "skip"])
@pytest.mark.parametrize("multiple_of", [1, 4])
def test_everything_that_is_added_is_paid(tmp_path, variant, kind, multiple_of):
    made = setting(tmp_path, variant=variant, space_name="residual", lora=False)
    budget = Budget(keep=0.7, multiple_of=multiple_of)
    plan = methods.build({"name": "slicegpt", "variant": kind, "batches": 2}).begin(made.subject, budget).plan()
    assert hooks_of(made.model) == 0
    width = plan.widths(made.space)["residual"]
    small = compress(made.model, made.architecture, made.space, plan)

    def counted(width):
        skips = 4 * width**2 if kind == "skip" else 0  # two in each of two layers
        heads = 64 * width if made.architecture.tied else 0
        return made.space.count({"residual": width}) + skips + heads

    assert sum(parameter.numel() for parameter in small.parameters()) == counted(width)
    assert plan.added(made.space) == counted(width) - made.space.count({"residual": width})
    assert width % multiple_of == 0
    assert counted(width) <= budget.target(made.space) < counted(width + multiple_of)
    assert hasattr(small.config, "pruned") == (kind == "skip")
    job = SimpleNamespace(space=made.space, costs=SimpleNamespace(budget=budget, table=None))
    assert parameter_counts(job, plan)["largest_unit"] == counted(width + multiple_of) - counted(width)


def test_the_leading_axes_hold_more_than_the_trailing_ones(tmp_path):
    made = setting(tmp_path, space_name="residual", lora=False)
    expected = logits(made.model)
    plan = plan_of(made, 0.8, batches=4)
    units = plan.of_kind(Keep)[0].units
    assert units.tolist() == list(range(len(units)))
    (rotation,) = plan.of_kind(Rotate)
    worst = torch.arange(made.architecture.hidden)[-len(units) :]
    errors = []
    for kept in (units, worst):
        other = type(plan)((rotation, Keep("residual", kept)), plan.space)
        small = compress(copy.deepcopy(made.model), made.architecture, made.space, other)
        errors.append((logits(small) - expected).norm())
    assert errors[0] < errors[1]


def test_the_walk_sees_what_the_cut_model_computes(tmp_path):
    made = setting(tmp_path, space_name="residual", lora=False)
    plan = plan_of(made, 0.7, variant="skip")
    width = plan.widths(made.space)["residual"]
    kept = [edit.basis[:, :width] for edit in plan.of_kind(Rotate)]
    batch = made.subject.calibration()
    walk = Walk(made.model, made.architecture, [batch])
    for index in range(2):
        walk.project(kept[2 * index] @ kept[2 * index].T)
        walk.go_on(index, kept[2 * index + 1] @ kept[2 * index + 1].T)
    assert hooks_of(made.model) == 0
    assert all("forward" not in vars(layer) for layer in made.model.model.layers)
    small = compress(made.model, made.architecture, made.space, plan)
    found = []
    hook = small.model.norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0]))
    with torch.no_grad():
        small(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    hook.remove()
    torch.testing.assert_close(found[0], walk.streams[0] @ kept[-1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("variant", ["gemma2", "olmo2"])
def test_norms_behind_attention_and_mlp_are_refused(tmp_path, variant):
    made = setting(tmp_path, variant=variant, space_name="residual", lora=False)
    with pytest.raises(UnsupportedModel, match=rf"{variant}: method `slicegpt` needs RMSNorms before"):
        plan_of(made, 0.8)


def test_a_budget_below_one_axis_is_refused_before_any_calibration(tmp_path):
    made = setting(tmp_path, variant="llama3", space_name="residual", lora=False)
    drawn = []
    subject = type(made.subject)(**vars(made.subject) | {"calibration": lambda: drawn.append(1)})
    for kind in ("stock", "skip"):
        method = methods.build({"name": "slicegpt", "variant": kind})
        with pytest.raises(UnreachableBudget, match=r"below what space `residual` can reach .* to "):
            method.begin(subject, Budget(keep=0.01))
    assert not drawn


def test_the_check_counts_what_is_added(tmp_path):
    made = setting(tmp_path, variant="llama3", space_name="residual", lora=False)
    lowest = {}
    for kind in ("stock", "skip"):
        method = methods.build({"name": "slicegpt", "variant": kind})
        with pytest.raises(UnreachableBudget) as told:
            method.check(made.space, Budget(keep=0.01, multiple_of=16))
        lowest[kind] = float(str(told.value).split("on this model: ")[1][:6])
        plan = method.begin(made.subject, Budget(keep=lowest[kind], multiple_of=16)).plan()
        assert plan.widths(made.space) == {"residual": 16}
    assert lowest["skip"] > lowest["stock"]
