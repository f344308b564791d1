"""Compensation of kept columns: by hand, and never worse than none, for every space."""

import pytest
import torch
from helpers.tiny import probe_ids, random_masks, tiny_model
from torch import nn

from tuneprune import families
from tuneprune.calibration.statistics import Statistics, input_statistics
from tuneprune.compress import compensate
from tuneprune.structure import spaces
from tuneprune.structure.edits import Bias
from tuneprune.structure.masks import Gates
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import Gate, Group, PruningSpace, Segment, WeightSlice
from tuneprune.train.config import LoraOptions
from tuneprune.train.lora import inject_lora

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def toy(weight):
    """A model of one linear, and the space of its inputs."""
    model = nn.Module()
    model.down = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.double)
    model.down.weight.data = weight.clone()
    inputs = Segment((weight.shape[1],), 0)
    gate = Gate("down", "input", inputs)
    group = Group("mlp", 0, "mlp_channel", weight.shape[1], (WeightSlice("down.weight", 1, inputs),), (gate,), ())
    return model, PruningSpace("width", (group,), {"down.weight": tuple(weight.shape)})


def statistics_of(inputs):
    """Of inputs [tokens, features]."""
    tokens = torch.tensor(float(len(inputs)), dtype=torch.double)
    return Statistics(tokens, inputs.sum(0), inputs.pow(2).sum(0), inputs.T @ inputs)


def test_by_hand():
    # x2 = 2 x0, so the removed column 2 moves to column 0 twice; x1 is orthogonal to both and stays as it is.
    inputs = torch.tensor([[1.0, 0, 2], [1, 0, 2], [0, 3, 0]], dtype=torch.double)
    model, space = toy(torch.tensor([[1.0, 1, 1], [0, 2, -1]], dtype=torch.double))
    masks = {"mlp": torch.tensor([1.0, 1, 0])}
    compensate.compensate(model, space, masks, {"down": statistics_of(inputs)}, damping=0)
    expected = torch.tensor([[3.0, 1, 1], [-2, 2, -1]], dtype=torch.double)
    torch.testing.assert_close(model.down.weight.data, expected, **EXACT)


def test_without_damping_it_is_the_least_squares_solution_of_the_kept_columns():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator, dtype=torch.double) @ torch.randn(6, 6, dtype=torch.double)
    weight = torch.randn(3, 6, generator=generator, dtype=torch.double)
    model, space = toy(weight)
    masks = {"mlp": torch.tensor([1.0, 0, 1, 1, 0, 1])}
    compensate.compensate(model, space, masks, {"down": statistics_of(inputs)}, damping=0)
    kept = inputs[:, [0, 2, 3, 5]]
    best = torch.linalg.lstsq(kept, inputs @ weight.T).solution.T
    torch.testing.assert_close(model.down.weight.data[:, [0, 2, 3, 5]], best, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("damping", [1e-4, 1.0, 100.0])
def test_the_error_is_never_larger_than_without(damping):
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(20, 8, generator=generator, dtype=torch.double)
        weight = torch.randn(4, 8, generator=generator, dtype=torch.double)
        model, space = toy(weight)
        mask = (torch.arange(8) < 3 + seed % 4).double()
        statistics = {"down": statistics_of(inputs)}
        before = (inputs @ weight.T - (inputs * mask) @ weight.T).pow(2).sum()
        compensate.compensate(model, space, {"mlp": mask}, statistics, damping=damping)
        after = (inputs @ weight.T - (inputs * mask) @ model.down.weight.data.T).pow(2).sum()
        assert after <= before


def test_a_bias_that_the_plan_adds_is_not_paid_for_twice():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(40, 5, generator=generator, dtype=torch.double) + 2
    weight = torch.randn(3, 5, generator=generator, dtype=torch.double)
    mask = torch.tensor([1.0, 1, 1, 0, 0], dtype=torch.double)
    bias = weight[:, 3:] @ inputs[:, 3:].mean(0)

    def error(biases):
        model, space = toy(weight)
        compensate.compensate(model, space, {"mlp": mask}, {"down": statistics_of(inputs)}, biases)
        return (inputs @ weight.T - (inputs * mask) @ model.down.weight.data.T - bias).pow(2).sum()

    plain = (inputs @ weight.T - (inputs * mask) @ weight.T - bias).pow(2).sum()
    assert error({"down": bias}) < plain < error(None)


def statistics(model, space, modules=None):
    modules = modules or sorted({gate.module for group in space.groups for gate in group.gates})
    labels = torch.zeros_like(probe_ids())
    batches = [{"input_ids": probe_ids(), "labels": labels}]
    return input_statistics(
        model,
        modules,
        batches,
        lambda b: model(input_ids=b["input_ids"], use_cache=False).logits,
        lambda _: None,
        gram=True,
    )


@pytest.mark.parametrize("space_name", ["width", "head_dim", "disp"])
@pytest.mark.parametrize("variant", ["llama", "phi3", "qwen3"])
def test_every_linear_that_loses_inputs_is_compensated(variant, space_name):
    model = tiny_model(variant)
    space = spaces.build(space_name, families.describe(model), model)
    masks = random_masks(space)
    found = statistics(model, space)
    kept = compensate.kept_inputs(space, masks)
    changes = compensate.corrections(model, space, masks, found)
    assert changes.keys() == kept.keys()
    assert kept or space_name == "depth"  # a layer goes with all its inputs
    for module, change in changes.items():
        gram, flags = found[module].gram, kept[module]
        weight = model.get_parameter(f"{module}.weight").data
        assert (change[:, ~flags] == 0).all()
        errors = []
        for new in (weight, weight + change):
            lost = weight - new * flags
            errors.append(torch.einsum("oi,ij,oj->", lost, gram, lost))
        assert errors[1] < errors[0]


def test_keeping_everything_changes_nothing():
    model = tiny_model("llama")
    space = spaces.build("width", families.describe(model), model)
    assert compensate.corrections(model, space, space.ones(), statistics(model, space)) == {}


def test_under_lora_the_effective_weight_is_compensated():
    model = tiny_model("llama")
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    masks = random_masks(space)
    inject_lora(model, architecture, LoraOptions(rank=2), seed=0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, dtype=torch.double)
    found = statistics(model, space)
    changes = compensate.corrections(model, space, masks, found)
    module = space.groups[1].gates[0].module
    before = model.get_submodule(module).base_layer.weight.data.clone()
    compensate.compensate(model, space, masks, found)
    torch.testing.assert_close(model.get_submodule(module).base_layer.weight.data, before + changes[module])


def test_a_plan_is_compensated_in_portions_like_at_once(monkeypatch):
    results = []
    for room in (2**31, 1):
        monkeypatch.setattr(compensate, "GRAM_BYTES", room)
        model = tiny_model("llama")
        space = spaces.build("width", families.describe(model), model)
        plan = Plan.from_masks(random_masks(space), space)
        plan = Plan((*plan.edits, Bias("model.layers.0.mlp.down_proj", torch.ones(32))), plan.space)
        batches = [{"input_ids": probe_ids(), "labels": torch.zeros_like(probe_ids())}]
        changed = compensate.compensate_plan(
            model,
            space,
            plan,
            batches,
            lambda b, m=model: m(input_ids=b["input_ids"], use_cache=False).logits,
            lambda _: None,
        )
        with torch.no_grad(), Gates(model, space)(plan.masks(space)):
            results.append((changed, model(input_ids=probe_ids(), use_cache=False).logits))
    assert results[0][0] == results[1][0]
    assert torch.equal(results[0][1], results[1][1])


def test_products_that_rounding_leaves_slightly_indefinite_are_solved_all_the_same():
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 8, generator=draw, dtype=torch.double)
    among = inputs.T @ inputs - 1e-9 * torch.eye(8, dtype=torch.double)  # of rank 3, but for the rounding
    assert torch.linalg.cholesky_ex(among)[1]
    lost = torch.randn(2, 3, generator=draw, dtype=torch.double) @ inputs @ among
    found = compensate.ridge_solution(among, lost, 0.0)
    torch.testing.assert_close(found @ among, lost, rtol=1e-5, atol=1e-5)
    assert (
        not compensate.ridge_solution(torch.full((2, 2), torch.nan, dtype=torch.double), lost[:, :2], 0.1)
        .isfinite()
        .any()
    )
