"""ATP's search: what it decides when, what it leaves behind, and that it goes on where it stopped."""

import pytest
import torch
from helpers.tiny_tuning import assert_equal, hooks_of, setting, within_one_unit

from tuneprune.budget import Budget, count_parameters
from tuneprune.compress.compensate import gated_inputs
from tuneprune.methods.regularise import lora_residue
from tuneprune.structure.edits import Drop
from tuneprune.structure.weights import base_weight, lora_factors


class Watch:
    """What a search decided after every step."""

    def __init__(self, made, search):
        self.masks, self.phases = [], []
        made.tuner.observe = lambda metrics: self.note(search, metrics)

    def note(self, search, metrics):
        self.masks.append({name: mask.clone() for name, mask in search.masks().items()})
        self.phases.append(metrics["phase"])


def same(one, other):
    return all(torch.equal(mask, other[name]) for name, mask in one.items())


@pytest.mark.parametrize("decisions", ["sampled", "on_budget"])
def test_decision_is_frozen_after_the_control_phase_and_on_budget(tmp_path, decisions):
    made = setting(tmp_path, steps=8)
    budget = Budget(keep=0.7)
    search = made.begin(budget, decisions=decisions, generator_learning_rate=0.5, control_share=0.5)
    watch = Watch(made, search)
    made.tuner.run(search)
    assert watch.phases == ["control"] * 4 + ["frozen"] * 4
    assert all(same(watch.masks[4], later) for later in watch.masks[5:])
    assert within_one_unit(made.space, watch.masks[-1], budget)
    plan = search.plan()
    assert same(plan.masks(made.space), watch.masks[-1])


@pytest.mark.parametrize("decision", ["dynamic", "static"])
def test_search_ends_where_the_decision_is_frozen(tmp_path, decision):
    made = setting(tmp_path, steps=8)
    budget = Budget(keep=0.7)
    search = made.begin(budget, decision=decision, control_share=0.5, cut="freeze")
    assert made.tuner.run(search).steps == (4 if decision == "dynamic" else 0)
    masks = search.plan().masks(made.space)
    assert within_one_unit(made.space, masks, budget)
    assert lora_residue(made.model, made.space, masks)["before_projection"] == 0
    assert hooks_of(made.model) == 0


@pytest.mark.parametrize("decisions", ["sampled", "on_budget"])
@pytest.mark.parametrize("lora_aware", [True, False])
def test_whole_layers_are_decided_and_leave_no_lora(tmp_path, decisions, lora_aware):
    made = setting(tmp_path, space_name="depth", steps=8)
    budget = Budget(keep=0.6)
    search = made.begin(budget, decisions=decisions, lora_aware=lora_aware, control_share=0.5)
    made.tuner.run(search)
    assert within_one_unit(made.space, search.masks(), budget)
    plan = search.plan()
    assert {type(edit) for edit in plan.edits} == {Drop}
    assert lora_residue(made.model, made.space, plan.masks(made.space))["before_projection"] == 0


def test_on_budget_decisions_approach_the_budget_from_above(tmp_path):
    made = setting(tmp_path)
    budget = Budget(keep=0.65)
    search = made.begin(budget, decisions="on_budget", generator_learning_rate=0.5)
    watch = Watch(made, search)
    made.tuner.run(search)
    kept = [count_parameters(made.space, masks) for masks in watch.masks]
    assert kept == sorted(kept, reverse=True)
    assert within_one_unit(made.space, watch.masks[-1], budget)


def test_sampled_decisions_start_from_the_whole_model_and_approach_the_budget(tmp_path):
    made = setting(tmp_path, steps=40)
    search = made.begin(
        Budget(keep=0.6),
        decisions="sampled",
        prior="none",
        generator_learning_rate=0.02,
        control_share=1.0,
        base=5.0,
    )
    watch = Watch(made, search)
    made.tuner.run(search)
    shares = [count_parameters(made.space, masks) / made.space.num_parameters for masks in watch.masks]
    assert shares[0] > 0.97
    assert abs(sum(shares[-5:]) / 5 - 0.6) < abs(shares[0] - 0.6) / 2


def test_static_decision_is_made_before_tuning(tmp_path):
    made = setting(tmp_path)
    search = made.begin(decision="static", generator_learning_rate=0.5)
    watch = Watch(made, search)
    made.tuner.run(search)
    assert watch.phases == ["frozen"] * 6
    assert all(same(watch.masks[0], later) for later in watch.masks)


def test_control_share_of_one_still_ends_in_a_plan_on_budget(tmp_path):
    made = setting(tmp_path)
    search = made.begin(control_share=1.0, decisions="sampled")
    made.tuner.run(search)
    assert within_one_unit(made.space, search.plan().masks(made.space), Budget())


def test_control_share_of_zero_keeps_the_priors_decision(tmp_path):
    made = setting(tmp_path, lora=True)
    search = made.begin(control_share=0.0, prior="magnitude", generator="free")
    watch = Watch(made, search)
    made.tuner.run(search)
    assert watch.phases == ["frozen"] * 6


@pytest.mark.parametrize("prior", ["none", "magnitude", "taylor"])
@pytest.mark.parametrize("decisions", ["sampled", "on_budget"])
@pytest.mark.parametrize("control_share", [0.0, 0.5])
def test_there_is_compensation_whatever_the_prior(tmp_path, prior, decisions, control_share):
    made = setting(tmp_path, steps=4)
    search = made.begin(compensate=True, prior=prior, decisions=decisions, control_share=control_share)
    dense = {name: base_weight(made.model, f"{name}.weight").clone() for name in search.compensation.modules}
    made.tuner.run(search)
    cut = {name for name, kept in gated_inputs(made.space, search.masks()).items() if not kept.all()}
    assert cut
    changed = {name for name, weight in dense.items() if not base_weight(made.model, f"{name}.weight").equal(weight)}
    assert changed == cut


def test_control_limit_ends_the_control_phase_early(tmp_path):
    made = setting(tmp_path, steps=8)
    search = made.begin(control_share=0.75, control_limit=2)
    watch = Watch(made, search)
    made.tuner.run(search)
    assert watch.phases == ["control"] * 2 + ["frozen"] * 6


def test_decision_every(tmp_path):
    made = setting(tmp_path, steps=8)
    search = made.begin(decision_every=3, control_share=1.0)
    revised = []
    made.tuner.observe = lambda metrics: revised.append(metrics["step"]) if "calibration_loss" in metrics else None
    made.tuner.run(search)
    assert revised == [1, 4, 7]


@pytest.mark.parametrize("generator", ["transformer", "free"])
def test_generator_learns(tmp_path, generator):
    made = setting(tmp_path)
    search = made.begin(generator=generator, generator_learning_rate=0.1)
    before = {name: value.clone() for name, value in search.generator.state_dict().items()}
    made.tuner.run(search)
    after = search.generator.state_dict()
    assert any(not torch.equal(value, after[name]) for name, value in before.items())
    assert search.optimizer.skipped == 0


def test_generator_step_with_a_non_finite_gradient_is_skipped_and_counted(tmp_path):
    made = setting(tmp_path)
    search = made.begin()
    parameters = list(search.generator.parameters())
    before = [p.detach().clone() for p in parameters]
    gradients = [torch.ones_like(p) for p in parameters]
    gradients[-1].view(-1)[0] = float("nan")
    search.optimizer.step(gradients, late=False)
    assert search.optimizer.skipped == 1
    assert all(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    search.optimizer.step([torch.ones_like(p) for p in parameters], late=False)
    assert search.optimizer.skipped == 1
    assert not any(torch.equal(p, old) for p, old in zip(parameters, before, strict=True))


def test_generator_gradient_is_clipped(tmp_path):
    made = setting(tmp_path)
    search = made.begin(generator_clip=0.5)
    parameters = list(search.generator.parameters())
    seen = []
    search.optimizer.adam.step = lambda: seen.append(torch.cat([p.grad.flatten() for p in parameters]).norm().item())
    search.optimizer.step([torch.ones_like(p) for p in parameters], late=False)
    assert seen == [pytest.approx(0.5, rel=1e-4)]


@pytest.mark.parametrize("regulariser", ["linear_decay", "lasso", "proximal", "none"])
def test_regularisers(tmp_path, regulariser):
    made = setting(tmp_path, steps=10)
    search = made.begin(regulariser=regulariser, proximal_weight=5e4, control_share=0.3)
    made.tuner.run(search)
    before = lora_residue(made.model, made.space, search.masks())
    plan = search.plan()
    residue = plan.provenance["lora_residue"]
    assert residue == before
    if regulariser in ("linear_decay", "proximal"):
        assert residue["before_projection"] == 0  # nothing was left for the projection to cut off
    if regulariser == "none":
        assert residue["before_projection"] > 0
    assert lora_residue(made.model, made.space, plan.masks(made.space))["before_projection"] == 0
    assert hooks_of(made.model) == 0


def test_lasso_leaves_less_than_nothing_does(tmp_path):
    left = {}
    for regulariser in ("lasso", "none"):
        made = setting(tmp_path / regulariser, steps=30)
        search = made.begin(regulariser=regulariser, control_share=0.2, lasso_weight_frozen=1.0)
        made.tuner.run(search)
        left[regulariser] = search.plan().provenance["lora_residue"]["relative"]
    assert left["lasso"] < left["none"]


def test_lora_aware_off_masks_lora_too(tmp_path):
    """With LoRA masked like the weights, a removed KV group's LoRA stays still; LoRA-aware, it learns."""
    moved = {}
    for lora_aware in (True, False):
        made = setting(tmp_path / str(lora_aware), steps=4)
        search = made.begin(Budget(keep=0.45), lora_aware=lora_aware, regulariser="none", decision="static")
        made.tuner.run(search)
        attention = next(g for g in made.space.groups if g.kind == "kv_group" and not search.masks()[g.name].all())
        values = lora_factors(made.model, f"{attention.name}.v_proj").up.view(attention.size, -1)
        moved[lora_aware] = values[search.masks()[attention.name] == 0].abs().max().item()
    assert moved[False] == 0
    assert moved[True] > 0


def test_seed_decides(tmp_path):
    def masks(folder, seed):
        made = setting(tmp_path / folder, seed=seed)
        search = made.begin(decisions="sampled", generator_learning_rate=0.3)
        made.tuner.run(search)
        return search.masks()

    assert same(masks("a", 1), masks("b", 1))


def test_provenance_says_who_decided(tmp_path):
    made = setting(tmp_path, steps=2)
    search = made.begin(Budget(keep=0.7))
    made.tuner.run(search)
    provenance = search.plan().provenance
    assert provenance["method"]["name"] == "atp"
    assert provenance["method"]["generator_size"] == 8
    assert provenance["budget"]["keep"] == 0.7
    assert provenance["space"] == "width"


def test_compensation_changes_only_what_reads_gated_units_and_stays_after_the_freeze(tmp_path):
    made = setting(tmp_path, steps=8)
    dense = {path: p.detach().clone() for path, p in made.model.named_parameters() if not p.requires_grad}
    frozen = []
    search = made.begin(Budget(keep=0.6), compensate=True, control_share=0.5)
    made.tuner.observe = lambda metrics: frozen.append(weights()) if metrics["phase"] == "frozen" else None

    def weights():
        return {path: made.model.get_parameter(path).detach().clone() for path in dense}

    made.tuner.run(search)
    search.plan()
    readers = {f"{gate.module}.base_layer.weight" for group in made.space.groups for gate in group.gates}
    changed = {path for path, weight in weights().items() if not torch.equal(weight, dense[path])}
    assert changed
    assert changed <= readers
    for later in [*frozen, weights()]:
        assert_equal(frozen[0], later)
