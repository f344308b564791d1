"""ToMoE: its formulas on numbers computed by hand, what its search decides when, and that it resumes exactly."""

import math

import pytest
import torch
from helpers.precision import FLOAT32
from helpers.tiny import logits
from helpers.tiny_tuning import assert_equal, hooks_of, setting, trainable

from tuneprune import methods
from tuneprune.budget import Budget, units_per_step
from tuneprune.compress import compress
from tuneprune.errors import UnreachableBudget, UnsupportedModel
from tuneprune.methods.tomoe.experts import (
    SampledChoice,
    best_units,
    divergence,
    expert_width,
    load_balance,
    log_distance,
    shared_out,
    size_terms,
    union,
)
from tuneprune.structure.edits import Route
from tuneprune.structure.masks import simulated
from tuneprune.structure.space import Group, PruningSpace, Segment, WeightSlice
from tuneprune.train import merge_lora


def begin(made, budget=None, **options):
    small = {"name": "tomoe", "prior_batches": 2, "generator_size": 8, "learning_rate": 0.05}
    return methods.build(small | options).begin(made.subject, budget or Budget(keep=0.6))


def kept(made, plan):
    return made.space.count(plan.widths(made.space)) + plan.added(made.space)


# Formulas


def test_log_distance_is_log_of_the_larger_over_the_smaller():
    assert log_distance(torch.tensor(4.0), 2.0).item() == pytest.approx(math.log(2), rel=FLOAT32)
    assert log_distance(torch.tensor(1.0), 2.0).item() == pytest.approx(math.log(2), rel=FLOAT32)


def test_load_balance_is_one_for_equal_loads_and_the_number_of_experts_for_one_that_takes_all():
    equal = torch.eye(4)
    assert load_balance(torch.full((4, 4), 0.25), equal).item() == pytest.approx(1.0)
    one = torch.tensor([[1.0, 0, 0, 0]]).expand(4, 4)
    assert load_balance(one, one).item() == pytest.approx(4.0)
    # two tokens of three on the first: 2 * (2/3 * 0.6 + 1/3 * 0.4)
    chosen = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert load_balance(torch.tensor([[0.6, 0.4]]).expand(3, 2), chosen).item() == pytest.approx(
        2 * 1.6 / 3, rel=FLOAT32
    )


def test_divergence_sums_over_tokens():
    even, uneven = torch.tensor([0.0, 0.0]), torch.tensor([math.log(3.0), 0.0])  # (1/2, 1/2) and (3/4, 1/4)
    teacher, student = even.expand(2, 2), uneven.expand(2, 2)
    one = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert divergence(teacher, student).item() == pytest.approx(2 * one, rel=FLOAT32)
    assert divergence(teacher[1:], student[1:]).item() == pytest.approx(one, rel=FLOAT32)
    assert divergence(student, student).item() == pytest.approx(0.0, abs=FLOAT32)


def test_union_is_exact_and_shares_its_gradient():
    experts = torch.tensor([[1.0, 0.0, 1.0], [1.0, 0.0, 0.0]], requires_grad=True)
    joined = union(experts)
    joined.sum().backward()
    assert joined.tolist() == [1.0, 0.0, 1.0]
    assert experts.grad.tolist() == [[0.5, 0.5, 1.0], [0.5, 0.5, 0.0]]


def test_size_terms():
    group = Group("mlp", 0, "mlp_channel", 4, (WeightSlice("w", 0, Segment((4,), 0)),), (), ())
    space = PruningSpace("toy", (group,), {"w": (4, 10), "rest": (60,)})
    masks = {"mlp": torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])}
    # union 2 of 4 channels: 20 of 40 parameters; target 70 leaves 10 of them; the widest expert has all of the union
    budget_term, union_term = size_terms(space, masks, ["mlp"], target=70, expert_share=0.5)
    assert (budget_term.item(), union_term.item()) == (
        pytest.approx(math.log(2), rel=FLOAT32),
        pytest.approx(math.log(2), rel=FLOAT32),
    )
    masks = {"mlp": torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])}
    # the widest expert has 1 of 4 channels, 10 parameters; half of the channels are in any
    budget_term, union_term = size_terms(space, masks, ["mlp"], target=70, expert_share=None)
    assert (budget_term.item(), union_term.item()) == (
        pytest.approx(0.0, abs=FLOAT32),
        pytest.approx(math.log(2), rel=FLOAT32),
    )


def test_best_units_takes_the_first_of_equals():
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert best_units(scores, 2).tolist() == [[False, True, True, False], [True, True, False, False]]


@pytest.mark.parametrize(
    ("kept", "share", "num_experts", "step", "width"),
    [(40, 0.5, 8, 1, 20), (41, 0.5, 8, 1, 21), (40, 0.1, 4, 1, 10), (40, 0.5, 8, 16, 32), (16, 0.9, 8, 16, 16)],
)
def test_width_of_an_expert(kept, share, num_experts, step, width):
    assert expert_width(kept, share, num_experts, step) == width


def test_experts_have_every_kept_unit_and_equal_widths():
    scores = torch.tensor([[5.0, 4.0, 3.0, 9.0, 2.0], [1.0, 2.0, 1.5, 9.0, 2.5]])
    kept_units = torch.tensor([True, True, True, False, True])
    # by score: 5 and 4 fill the first expert's room of 2, so the others go to the second: 2.5 and 1.5
    experts = shared_out(scores, kept_units, 2)
    assert experts.tolist() == [[True, True, False, False, False], [False, False, True, False, True]]
    wider = shared_out(scores, kept_units, 3)
    assert wider.sum(1).tolist() == [3, 3]
    assert wider.any(0).tolist() == kept_units.tolist()


def test_a_choice_repeats_itself_and_passes_gradients_to_router_and_experts():
    router = torch.randn(3, 5, requires_grad=True)
    experts = torch.tensor([[1.0, 0, 0, 1], [0, 1, 0, 0], [0, 0, 1, 1]], requires_grad=True)
    choice = SampledChoice(router, experts, torch.Generator().manual_seed(0), 0.4)
    states = torch.randn(2, 6, 5)
    mask = choice(states)
    rows = experts.detach().tolist()
    assert all(row in rows for row in mask.detach().round().flatten(0, 1).tolist())
    assert torch.equal(choice(states), mask)  # activation checkpointing
    (mask * torch.randn(4)).sum().backward()
    assert router.grad.abs().max() > 0
    assert experts.grad.abs().max() > 0


# The search


def test_lora_may_wait_for_the_decision(tmp_path):
    made = setting(tmp_path, space_name="head_dim", steps=8)
    search = begin(made, tune_during_search=False)
    start, seen = trainable(made.model), []
    made.tuner.observe = lambda metrics: seen.append((metrics["phase"], trainable(made.model), search.masks()))
    made.tuner.run(search)
    assert [phase for phase, _, _ in seen] == ["control"] * 4 + ["frozen"] * 4
    assert_equal(start, seen[3][1])
    assert any(not torch.equal(value, start[name]) for name, value in seen[4][1].items())
    assert all(torch.equal(mask, seen[-1][2][name]) for name, mask in seen[4][2].items())
    assert hooks_of(made.model) == 0


def test_lora_tunes_during_the_search(tmp_path):
    made = setting(tmp_path, space_name="head_dim", steps=2)
    start = trainable(made.model)
    made.tuner.run(begin(made, search_share=1.0))
    assert any(not torch.equal(value, start[name]) for name, value in trainable(made.model).items())


@pytest.mark.parametrize(
    "budget", [Budget(keep=0.6), Budget(keep=0.65, multiple_of=4), Budget(keep=0.7, of="prunable")]
)
def test_total_budget_pays_for_union_and_routers(tmp_path, budget):
    made = setting(tmp_path, space_name="head_dim", steps=4)
    search = begin(made, budget, experts=4, expert_share=0.5)
    made.tuner.run(search)
    plan = search.plan()
    target = budget.target(made.space)
    assert target - 4 * 128 < kept(made, plan) <= target  # a unit of 4 channels or pairs holds at most that
    assert plan.provenance["active_parameters"] < kept(made, plan)
    for edit in plan.of_kind(Route):
        in_any = int(edit.experts.any(0).sum())
        widths = set(edit.experts.sum(1).tolist())
        step = units_per_step(made.space.by_name[edit.group], budget.multiple_of)
        assert widths == {min(in_any, step * math.ceil(in_any / 2 / step))}
        assert in_any % step == 0


def test_active_budget_counts_what_one_token_uses(tmp_path):
    made = setting(tmp_path, space_name="head_dim", steps=8)
    budget = Budget(keep=0.6)
    search = begin(made, budget, budget_counts="active", experts=4)
    made.tuner.run(search)
    plan = search.plan()
    target = budget.target(made.space)
    assert target - 128 < plan.provenance["active_parameters"] <= target
    assert plan.provenance["budget_counts"] == "active"
    assert kept(made, plan) >= plan.provenance["active_parameters"]


def test_a_budget_that_the_routers_fill_is_refused_before_training(tmp_path):
    made = setting(tmp_path, space_name="head_dim")
    with pytest.raises(UnreachableBudget):
        begin(made, Budget(keep=0.35), experts=64)


@pytest.mark.parametrize("distil", ["kl", "ce"])
def test_search_learns_experts_and_routers(tmp_path, distil):
    made = setting(tmp_path, space_name="head_dim", steps=3)
    search = begin(made, search_share=1.0, distil=distil)
    before = {name: value.clone() for name, value in search.generator.state_dict().items()}
    made.tuner.run(search)
    after = search.generator.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert before.keys() - changed == {"inputs"}


def test_first_search_step_on_the_whole_model_diverges_from_nothing(tmp_path):
    made = setting(tmp_path, space_name="head_dim", steps=2)
    search = begin(made, base=50.0, prior="none")
    metrics = search.before_step(0)
    assert metrics["calibration_loss"] == pytest.approx(0.0, abs=FLOAT32)
    assert metrics["active_share"] == pytest.approx(1 + search.added / made.space.num_parameters)


@pytest.mark.parametrize("variant", ["llama", "phi3", "qwen3"])
def test_trained_under_the_plan_equals_merged_and_compressed(tmp_path, variant):
    made = setting(tmp_path, variant=variant, space_name="head_dim", steps=4)
    search = begin(made)
    made.tuner.run(search)
    plan = search.plan()
    made.model.eval()
    with search.context():
        tuned = logits(made.model)
    merge_lora(made.model, made.architecture)
    with simulated(made.model, made.space, plan):
        merged = logits(made.model)
    torch.testing.assert_close(merged, tuned, rtol=1e-4, atol=1e-4)
    small = compress(made.model, made.architecture, made.space, plan)
    torch.testing.assert_close(logits(small), merged, rtol=1e-4, atol=1e-4)


def test_gradient_checkpointing_changes_nothing(tmp_path):
    plans = []
    for is_on in (False, True):
        made = setting(tmp_path / str(is_on), space_name="head_dim", steps=4, gradient_checkpointing=is_on)
        search = begin(made)
        made.tuner.run(search)
        plans.append(search.plan())
    for one, other in zip(*(plan.of_kind(Route) for plan in plans), strict=True):
        assert torch.equal(one.experts, other.experts)
        torch.testing.assert_close(one.router["weight"], other.router["weight"], rtol=1e-4, atol=1e-5)


def test_plain_mlps_are_refused(tmp_path):
    made = setting(tmp_path, variant="starcoder2", space_name="head_dim")
    with pytest.raises(UnsupportedModel, match="no gate"):
        begin(made)
