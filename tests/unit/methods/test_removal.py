"""Schedules of removal by hand, and that what is gone stays gone."""

import pytest
import torch
from helpers.tiny_tuning import setting

from tuneprune.budget import Budget, count_parameters
from tuneprune.methods.removal import cubic, scheduled_budget, shrink


def test_cubic_by_hand():
    assert [cubic(p) for p in (-1.0, 0.0, 0.5, 0.9, 1.0, 2.0)] == pytest.approx([0, 0, 0.875, 0.999, 1, 1])


def test_partial_budget_is_linear_in_what_is_due():
    budget = Budget(keep=0.6, of="prunable", multiple_of=4)
    assert [scheduled_budget(budget, done).keep for done in (0.0, 0.25, 0.875)] == pytest.approx([1.0, 0.9, 0.65])
    assert scheduled_budget(budget, 1.0) is budget
    assert scheduled_budget(budget, 0.5).multiple_of == 4


@pytest.mark.parametrize("options", [{}, {"multiple_of": 4}, {"per_layer": "uniform"}])
def test_what_is_gone_stays_gone_within_one_unit_of_the_budget(tmp_path, options):
    made = setting(tmp_path, lora=False)
    space, draw = made.space, torch.Generator().manual_seed(0)
    whole = {group.name: group.size for group in space.groups}
    dearest = max(space.num_parameters - space.count(whole | {name: size - 1}) for name, size in whole.items())
    dearest *= options.get("multiple_of", 1) * (2 if "per_layer" in options else 1)
    masks = space.ones()
    for step in range(1, 9):
        scores = {group.name: torch.rand(group.size, generator=draw) for group in space.groups}
        budget = scheduled_budget(Budget(keep=0.6, **options), cubic(step / 8))
        after = shrink(masks, scores, space, budget)
        assert all((after[name] <= masks[name]).all() for name in masks)
        assert budget.target(space) - dearest < count_parameters(space, after) <= budget.target(space)
        masks = after


def test_the_worst_go_first(tmp_path):
    made = setting(tmp_path, lora=False)
    scores = {group.name: torch.arange(group.size).double() for group in made.space.groups}
    once = shrink(made.space.ones(), scores, made.space, Budget(keep=0.8))
    twice = shrink(once, {name: -score for name, score in scores.items()}, made.space, Budget(keep=0.6))
    for group in made.space.groups:
        if group.kind == "mlp_channel":
            gone = int((once[group.name] == 0).sum())
            assert gone > 0
            assert not once[group.name][:gone].any()  # the worst by the first scores
            kept = twice[group.name].nonzero().flatten()
            assert kept.tolist() == list(range(gone, gone + len(kept)))  # then the worst by the second
