"""Every method that removes what a table times meets a budget of time, as it meets one of parameters."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.precision import FLOAT32
from helpers.tiny_tuning import ATP, setting
from helpers.toy_latency import timed
from helpers.toy_spaces import tiny_space

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.budget.latency_table import TIMED
from tuneprune.calibration.scores import taylor, unit_costs
from tuneprune.errors import UnreachableBudget
from tuneprune.methods.generator import budget_distance

EVERY = [(name, space) for name, method in methods.registry().items() for space in method.spaces if space in TIMED]
LAYERS = {"num_hidden_layers": 4}


def made_with_times(folder, space_name, **options):
    made = setting(folder, variant="llama_mha_biased", space_name=space_name, steps=3, **LAYERS | options)
    space = timed(made.space)
    return replace(made, space=space, subject=replace(made.subject, space=space))


@pytest.mark.parametrize(("name", "space_name"), EVERY)
@pytest.mark.parametrize("per_layer", ["free", "uniform"])
def test_the_decision_is_within_the_time_and_near_it(tmp_path, name, space_name, per_layer):
    method = methods.build(ATP if name == "atp" else {"name": name})
    made = made_with_times(tmp_path, space_name, lora=not method.one_shot)
    budget = Budget(of="latency", keep=0.8, per_layer=per_layer)
    method.check(made.space, budget)
    search = method.begin(made.subject, budget)
    if not method.one_shot:
        made.tuner.run(search)
    plan = search.plan()
    left, target = made.space.latency.count(plan.widths(made.space)), budget.target(made.space)
    dearest = 9_300_000 if space_name == "depth" else 4_000_000  # a layer; a KV group in each of four layers
    assert target - dearest < left <= target
    assert plan.provenance["budget"]["of"] == "latency"


@pytest.mark.parametrize("decisions", ["sampled", "on_budget"])
def test_atp_is_drawn_to_the_time(tmp_path, decisions):
    made = made_with_times(tmp_path, "width")
    budget = Budget(of="latency", keep=0.7)
    search = made.begin(budget, decisions=decisions)
    metrics = search.before_step(0)
    assert math.isfinite(metrics["budget_loss"])
    made.tuner.run(search)
    assert made.space.latency.count(search.plan().widths(made.space)) <= budget.target(made.space)


def test_the_distance_to_a_time_is_the_log_ratio_over_what_decisions_change():
    space = timed(tiny_space("llama_mha_biased"))
    budget = Budget(of="latency", keep=0.5)
    half = {name: (mask / 2).requires_grad_() for name, mask in space.ones().items()}
    left = 2 * 2.0 + 2 * 2.4  # ms: two of four KV groups, 24 of 48 channels, in each of two layers
    expected = math.log(left) - math.log(0.5 * 22.6 - 5)
    distance = budget_distance(space, half, budget.target(space), budget)
    assert distance.item() == pytest.approx(expected, rel=FLOAT32)
    distance.backward()
    assert all((mask.grad > 0).all() for mask in half.values())


def test_scores_are_per_time_where_time_is_counted(tmp_path):
    plain = setting(tmp_path / "a", variant="llama_mha_biased")
    made = made_with_times(tmp_path / "b", "width", num_hidden_layers=2)
    costs = unit_costs(made.space)
    assert [costs[group.name] for group in made.space.groups[:2]] == pytest.approx([0.75e6, (4.8 - 0.8) / 48 * 1e6])
    in_parameters, in_time = taylor(plain.subject, 1), taylor(made.subject, 1)
    for name, parameters in unit_costs(plain.space).items():
        torch.testing.assert_close(in_parameters[name] * parameters, in_time[name] * costs[name])


@pytest.mark.parametrize("name", ["cfsp", "llm_pruner"])
def test_methods_that_spare_parts_say_how_far_time_goes_down(name):
    space = timed(tiny_space("llama_mha_biased", **LAYERS))
    method = methods.build({"name": name} | ({"protect_first": 0.5} if name == "llm_pruner" else {}))
    with pytest.raises(UnreachableBudget, match=r"budget\.keep=0\.4 of latency"):
        method.check(space, Budget(of="latency", keep=0.4))
