"""ATP's formulas against numbers worked out by hand."""

import math

import pytest
import torch
from helpers.precision import FLOAT32
from helpers.tiny_tuning import setting

from tuneprune.calibration.scores import magnitude, taylor, unit_costs
from tuneprune.methods.generator import FreeGenerator, TransformerGenerator, budget_distance
from tuneprune.methods.regularise import (
    group_lasso,
    linear_decay,
    lora_residue,
    project,
    proximal_step,
    proximal_strength,
)
from tuneprune.structure.masks import Gates, gumbel, gumbel_sigmoid
from tuneprune.structure.weights import lora_factors, lora_norms

MLP = "layers.0.mlp"


@pytest.fixture
def made(tmp_path):
    """A model whose LoRA is all zero; tests fill in what they work out by hand."""
    made = setting(tmp_path)
    for name, parameter in made.model.named_parameters():
        if "lora_" in name:
            parameter.data.zero_()
    return made


def mlp_group(space):
    group = next(g for g in space.groups if g.kind == "mlp_channel" and g.layer == 0)
    module = next(s.param.removesuffix(".weight") for s in group.slices if "gate_proj" in s.param)
    return group, module


def removing(space, group, *units):
    masks = space.ones()
    for unit in units:
        masks[group.name][unit] = 0
    return masks


def fill_unit(made, unit, up=(3.0, 4.0), down=12.0):
    """Give one MLP channel LoRA entries: a row of gate's `up` and one entry of down's `down`; norm 13."""
    group, gate = mlp_group(made.space)
    with torch.no_grad():
        lora_factors(made.model, gate).up[unit] = torch.tensor(up)
        lora_factors(made.model, gate.replace("gate_proj", "down_proj")).down[0, unit] = down
    return group


def test_gumbel_sigmoid_by_hand():
    logits, noise = torch.tensor([0.2, -5.0]), torch.tensor([0.1, 0.5])
    found = gumbel_sigmoid(logits, noise, base=3.0, temperature=0.4)
    assert found.tolist() == pytest.approx([1 / (1 + math.exp(-3.3 / 0.4)), 1 / (1 + math.exp(1.5 / 0.4))], rel=FLOAT32)


def test_sampling_starts_from_the_whole_model():
    noise = gumbel((20000,), torch.Generator().manual_seed(0))
    soft = gumbel_sigmoid(torch.zeros(20000), noise, base=3.0, temperature=0.4)
    assert (soft >= 0.5).float().mean() == 1.0
    assert soft.mean() > 0.99


def test_budget_distance_is_the_log_ratio_over_the_prunable_part(made):
    space = made.space
    fixed = space.num_parameters - space.num_prunable
    half = {name: mask / 2 for name, mask in space.ones().items()}
    left = space.parameters_left(half).item() - fixed
    target = fixed + space.num_prunable // 4
    expected = abs(math.log(left) - math.log(space.num_prunable // 4))
    assert budget_distance(space, half, target).item() == pytest.approx(expected, rel=FLOAT32)
    assert budget_distance(space, space.ones(), space.num_parameters).item() == pytest.approx(0, abs=FLOAT32)


def test_budget_distance_pushes_towards_the_target_from_both_sides(made):
    space = made.space
    masks = {name: (mask / 2).requires_grad_() for name, mask in space.ones().items()}
    for target, sign in ((space.num_parameters, -1), (space.num_parameters - space.num_prunable + 1, 1)):
        gradients = torch.autograd.grad(budget_distance(space, masks, target), list(masks.values()))
        assert all((gradient * sign > 0).all() for gradient in gradients)


def test_group_lasso_by_hand(made):
    group = fill_unit(made, 2)  # sqrt(3^2 + 4^2 + 12^2) = 13
    fill_unit(made, 5, up=(0.0, 8.0), down=6.0)  # 10
    masks = removing(made.space, group, 2, 5)
    lasso = group_lasso(made.model, made.space, masks, epsilon=0.0)
    assert lasso.item() == pytest.approx(23 / len(made.space.groups), rel=FLOAT32)
    assert group_lasso(made.model, made.space, made.space.ones()).item() == 0


def test_group_lasso_pulls_on_removed_units_only(made):
    group = fill_unit(made, 2)
    fill_unit(made, 3)
    group_lasso(made.model, made.space, removing(made.space, group, 2)).backward()
    gradient = lora_factors(made.model, mlp_group(made.space)[1]).up.grad
    assert gradient[2].tolist() == pytest.approx(
        [3 / 13 / len(made.space.groups), 4 / 13 / len(made.space.groups)], rel=FLOAT32
    )
    assert gradient[3].count_nonzero() == 0
    assert all(torch.isfinite(p.grad).all() for p in made.model.parameters() if p.grad is not None)


def test_proximal_step_is_the_closed_form(made):
    group = fill_unit(made, 2)
    fill_unit(made, 5, up=(0.0, 0.8), down=0.6)
    fill_unit(made, 7)
    masks = removing(made.space, group, 2, 5)  # all removals lie in this group, so its share is 1
    proximal_step(made.model, made.space, masks, strength=2.0)
    norms = lora_norms(made.model, group)
    assert norms[2].item() == pytest.approx(11.0, rel=FLOAT32)  # (13 - 2) / 13 of everything
    assert norms[5].item() == 0  # 1 < 2
    assert norms[7].item() == pytest.approx(13.0, rel=FLOAT32)  # kept


def test_proximal_step_is_shared_by_the_groups_removals(made):
    group = fill_unit(made, 2)
    other = next(g for g in made.space.groups if g.layer == 1 and g.kind == "mlp_channel")
    masks = removing(made.space, group, 2)
    masks[other.name][:3] = 0  # three of four removals are elsewhere
    proximal_step(made.model, made.space, masks, strength=4.0)
    assert lora_norms(made.model, group)[2].item() == pytest.approx(12.0, rel=FLOAT32)


def test_proximal_strength_rises_from_zero_to_the_whole_weight():
    assert proximal_strength(50.0, 0.0, 0.1) == 0
    assert proximal_strength(50.0, 1.0, 0.1) == pytest.approx(5.0)
    assert proximal_strength(50.0, 0.5, 0.1) == pytest.approx(5 * (math.exp(0.5) - 1) / (math.e - 1))


def test_linear_decay_is_a_straight_line_to_exactly_zero(made):
    group = fill_unit(made, 2)
    fill_unit(made, 3)
    masks = removing(made.space, group, 2)
    seen = []
    for step in range(4):
        linear_decay(made.model, made.space, masks, step, 4)
        seen.append(lora_norms(made.model, group)[2].item())
    assert seen[:3] == pytest.approx([13 * 3 / 4, 13 * 2 / 4, 13 / 4], rel=FLOAT32)
    assert seen[3] == 0
    assert lora_norms(made.model, group)[3].item() == pytest.approx(13)
    fill_unit(made, 2)
    linear_decay(made.model, made.space, masks, 9, 4)  # later it stays zero
    assert lora_norms(made.model, group)[2].item() == 0


def test_residue_and_projection(made):
    group = fill_unit(made, 2)
    fill_unit(made, 3)
    masks = removing(made.space, group, 2)
    unlearnt = lora_residue(made.model, made.space, masks)  # up of one linear and down of the other are zero
    assert unlearnt == {"before_projection": 0.0, "relative": 0.0}
    with torch.no_grad():
        lora_factors(made.model, mlp_group(made.space)[1]).down[:, :2] = torch.eye(2)
    residue = lora_residue(made.model, made.space, masks)
    assert residue["before_projection"] == pytest.approx(5)
    assert residue["relative"] == pytest.approx(math.sqrt(0.5))
    project(made.model, made.space, masks)
    assert lora_norms(made.model, group)[2].item() == 0
    assert lora_norms(made.model, group)[3].item() == pytest.approx(13)
    assert lora_residue(made.model, made.space, masks) == {"before_projection": 0.0, "relative": 0.0}


def test_transformer_generator_starts_near_zero_and_follows_its_seed(made):
    def build(seed):
        random = torch.Generator().manual_seed(seed)
        return TransformerGenerator(made.space, size=8, blocks=1, heads=2, random=random)

    state = torch.get_rng_state()
    logits = build(1)()
    assert torch.equal(state, torch.get_rng_state())
    assert {name: len(value) for name, value in logits.items()} == {g.name: g.size for g in made.space.groups}
    assert max(value.abs().max().item() for value in logits.values()) < 0.1
    assert all(torch.equal(value, build(1)()[name]) for name, value in logits.items())
    assert not all(torch.equal(value, build(2)()[name]) for name, value in logits.items())


def test_generator_inputs_are_orthogonal_and_frozen(made):
    generator = TransformerGenerator(made.space, size=8, blocks=1, heads=2, random=torch.Generator().manual_seed(0))
    torch.testing.assert_close(generator.inputs @ generator.inputs.T, torch.eye(2), atol=FLOAT32, rtol=0)
    assert "inputs" not in dict(generator.named_parameters())


def test_free_generator_is_one_number_a_unit(made):
    generator = FreeGenerator(made.space)
    assert sum(p.numel() for p in generator.parameters()) == sum(group.size for group in made.space.groups)
    assert all(not value.any() for value in generator().values())


def test_magnitude_by_hand(tmp_path):
    made = setting(tmp_path, lora=False)
    group, gate = mlp_group(made.space)
    layer = made.model.get_submodule(gate.removesuffix(".gate_proj"))
    pieces = [layer.gate_proj.weight[7], layer.up_proj.weight[7], layer.down_proj.weight[:, 7]]
    assert magnitude(made.subject)[group.name][7].item() == pytest.approx(torch.cat(pieces).norm().item(), rel=FLOAT32)


def test_taylor_is_the_squared_change_of_the_loss(tmp_path):
    made = setting(tmp_path, lora=False)
    batch = made.tuner.next_calibration()
    made.subject.__dict__["calibration"] = lambda: batch
    score = taylor(made.subject, batches=1)
    group, _ = mlp_group(made.space)
    costs = unit_costs(made.space)
    assert costs[group.name] == 3 * 32
    gates = Gates(made.model, made.space)
    losses = []
    with torch.no_grad():
        for value in (1.01, 0.99):
            masks = made.space.ones()
            masks[group.name][7] = value
            with gates(masks):
                losses.append(made.tuner.runtime.loss(batch).item())
    derivative = (losses[0] - losses[1]) / 0.02
    assert score[group.name][7].item() * costs[group.name] == pytest.approx(derivative**2, rel=0.02)
