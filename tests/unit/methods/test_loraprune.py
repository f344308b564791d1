"""LoRAPrune: its estimate and importance by hand, its schedule, and that it goes on where it stopped."""

from itertools import pairwise

import pytest
import torch
from helpers.tiny_tuning import assert_equal, setting
from helpers.toy_spaces import tiny_space

from tuneprune import methods
from tuneprune.budget import Budget, count_parameters
from tuneprune.errors import ConfigError, TunePruneError
from tuneprune.methods.loraprune import estimated_gradient, importance
from tuneprune.methods.protection import end_layers
from tuneprune.structure.space import Group, Segment, WeightSlice
from tuneprune.structure.weights import LoraFactors, base_weight, lora_factors


def begin(made, budget=None, **options):
    return methods.build({"name": "loraprune", **options}).begin(made.subject, budget or Budget())


def with_gradient(values, gradient):
    parameter = torch.nn.Parameter(torch.tensor(values))
    parameter.grad = torch.tensor(gradient)
    return parameter


def test_estimate_is_the_closed_form():
    down = with_gradient([[1.0, 2.0]], [[3.0, -1.0]])  # rank 1, two inputs
    up = with_gradient([[2.0], [-1.0]], [[0.5], [4.0]])  # two outputs
    # g_B A = [[.5, 1], [4, 8]]; B g_A = [[6, -2], [-3, 1]]; g_B g_A = [[1.5, -.5], [12, -4]]
    expected = [[0.5 + 6 - 1.5, 1 - 2 + 0.5], [4 - 3 - 12, 8 + 1 + 4]]
    assert estimated_gradient(LoraFactors(down, up, 2.0)).tolist() == expected
    down.grad = None
    assert estimated_gradient(LoraFactors(down, up, 2.0)) is None


def test_estimate_is_the_step_of_both_factors_to_first_and_second_order():
    """B A minus (B - g_B)(A - g_A), the change of the product under a step of rate 1."""
    draw = torch.Generator().manual_seed(0)
    up, down, g_up, g_down = (torch.randn(shape, generator=draw) for shape in ((5, 2), (2, 3), (5, 2), (2, 3)))
    up_parameter, down_parameter = torch.nn.Parameter(up), torch.nn.Parameter(down)
    up_parameter.grad, down_parameter.grad = g_up, g_down
    estimate = estimated_gradient(LoraFactors(down_parameter, up_parameter, 1.0))
    torch.testing.assert_close(estimate, up @ down - (up - g_up) @ (down - g_down))


def test_importance_by_hand(tmp_path):
    made = setting(tmp_path, rank=2)
    path = "model.layers.0.self_attn.k_proj"
    factors, weight = lora_factors(made.model, path), base_weight(made.model, f"{path}.weight")
    draw = torch.Generator().manual_seed(1)
    for factor in (factors.up, factors.down):
        factor.data = torch.randn(factor.shape, generator=draw)
        factor.grad = torch.randn(factor.shape, generator=draw)
    piece = WeightSlice(f"{path}.weight", 0, Segment((2, 8), 0))  # two heads of 8 rows
    group = Group("keys", 0, "kv_group", 2, (piece, WeightSlice("model.norm.weight", 0, Segment((2, 16), 0))), (), ())
    up, down, g_up, g_down = (x.tolist() for x in (factors.up, factors.down, factors.up.grad, factors.down.grad))
    sums = [0.0, 0.0]
    for row in range(16):
        for column in range(32):
            estimate = sum(
                g_up[row][k] * down[k][column] + up[row][k] * g_down[k][column] - g_up[row][k] * g_down[k][column]
                for k in range(2)
            )
            lora = factors.scaling * sum(up[row][k] * down[k][column] for k in range(2))
            sums[row // 8] += abs(estimate * (weight[row, column].item() + lora))
    assert importance(made.model, group, normalised=False).tolist() == pytest.approx(sums, rel=1e-4)
    length = (sums[0] ** 2 + sums[1] ** 2) ** 0.5
    expected = [value / length for value in sums]
    assert importance(made.model, group, normalised=True).tolist() == pytest.approx(expected, rel=1e-4)


def test_moving_average_of_gradients_that_are_not_clipped(tmp_path):
    seen = []
    for clip in (1e9, 1e-3):
        made = setting(tmp_path / str(clip), steps=1, clip=clip)
        search = begin(made, momentum=0.75)
        fresh = {}
        update = search.after_backward

        def note(made=made, update=update, fresh=fresh):
            update()
            fresh.update({g.name: importance(made.model, g, normalised=True) for g in made.space.groups})

        search.after_backward = note
        made.tuner.run(search)
        assert_equal({name: 0.25 * value for name, value in fresh.items()}, search._importance, rtol=1e-5, atol=1e-8)
        seen.append(search._importance)
    assert_equal(*seen)


def test_schedule_is_cubic_in_parameters_and_never_goes_back(tmp_path):
    made = setting(tmp_path, steps=20)
    budget = Budget(keep=0.6)
    search, kept, masks, phases = begin(made, budget, every=4), [], [], []

    def note(metrics):
        kept.append(count_parameters(made.space, search.masks()))
        masks.append(search.masks())
        phases.append(metrics["phase"])

    made.tuner.observe = note
    made.tuner.run(search)
    total = made.space.num_parameters
    assert kept[:6] == [total] * 6  # starts at step 2, first decision 4 steps later
    for step in (6, 10, 14):
        due = 1 - (1 - (step - 2) / 16) ** 3
        assert total * (1 - 0.4 * due) - 2000 < kept[step] <= total * (1 - 0.4 * due)
    assert kept[6] == kept[9] > kept[10]
    assert phases == ["control"] * 18
    assert all((late[name] <= early[name]).all() for early, late in pairwise(masks) for name in late)
    plan = search.plan()
    assert count_parameters(made.space, search.masks()) <= budget.target(made.space)
    assert_equal(dict(search.masks()), plan.masks(made.space))


def test_protected_layers_lose_units_only_when_others_cannot(tmp_path):
    for keep, layers in ((0.8, {0}), (0.55, {0, 1})):
        made = setting(tmp_path / str(keep), steps=4)
        search = begin(made, Budget(keep=keep, min_keep=0))  # of two layers the last is protected
        made.tuner.run(search)
        masks = search.plan().masks(made.space)
        assert {group.layer for group in made.space.groups if not masks[group.name].all()} == layers
        others = [masks[group.name].sum() for group in made.space.groups if group.layer == 0]
        assert keep > 0.6 or all(kept == 1 for kept in others)


@pytest.mark.parametrize(
    ("first", "last", "layers"),
    [(0.1, 1, [3]), (0.5, 0, [0, 1]), (1, 2, [0, 2, 3]), (0.74, 0.25, [0, 1, 3]), (0, 0, []), (9, 0, [0, 1, 2, 3])],
)
def test_layers_at_the_ends_are_shares_or_numbers(first, last, layers):
    space = tiny_space(num_hidden_layers=4)
    assert end_layers(space, first, last, part_counts=False) == layers


def test_local_takes_equal_shares_and_global_does_not(tmp_path):
    shares = {}
    for scope in ("local", "global"):
        made = setting(tmp_path / scope, steps=6)
        search = begin(made, scope=scope, every=2, protect_last=0)
        made.tuner.run(search)
        masks = search.plan().masks(made.space)
        shares[scope] = [masks[group.name].mean().item() for group in made.space.groups if group.kind == "mlp_channel"]
    assert shares["local"][0] == pytest.approx(shares["local"][1], abs=0.05)
    assert abs(shares["global"][0] - shares["global"][1]) > 0.05


def test_revisable_units_come_back(tmp_path):
    """A unit removed too early whose importance grows is taken back; without `revisable` it is not."""
    back = {}
    for revisable in (True, False):
        made = setting(tmp_path / str(revisable), steps=20)
        search = begin(made, every=2, revisable=revisable, protect_last=0)
        seen = []
        made.tuner.observe = lambda _, seen=seen, search=search: seen.append(search.masks())
        update = search.after_backward

        def note(made=made, search=search, update=update):
            update()
            for name, value in search._importance.items():
                search._importance[name] = value.flip(0) if made.tuner.result.steps == 7 else value

        search.after_backward = note
        made.tuner.run(search)
        back[revisable] = any((late[name] > early[name]).any() for early, late in pairwise(seen) for name in late)
    assert back == {True: True, False: False}


def test_nothing_seen_is_an_error(tmp_path):
    with pytest.raises(TunePruneError, match="saw no finite gradient"):
        begin(setting(tmp_path)).plan()


def test_the_end_comes_after_the_start():
    with pytest.raises(ConfigError, match=r"start_share=0.9 must be below end_share=0.5"):
        methods.build({"name": "loraprune", "start_share": 0.9, "end_share": 0.5})
