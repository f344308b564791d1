"""Hard masks meet their budget."""

import pytest
import torch
from helpers.tiny import CASES, SPACES
from helpers.toy_spaces import tiny_space
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tuneprune.budget import Budget, allocate, check_reachable, count_parameters, reachable, units_per_step
from tuneprune.budget.chains import steps_at_least
from tuneprune.errors import ConfigError, TunePruneError, UnreachableBudget

TOY = {(variant, name): tiny_space(variant, name) for variant in ("llama_mha_biased", "phi3") for name in SPACES}
MULTIPLES = (1, 2, 4, 8, 16)
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])


@st.composite
def cases(draw, **fixed):
    """A space, a budget it can meet, and scores with many ties."""
    space = TOY[draw(st.sampled_from(sorted(TOY)))]
    chosen = {
        "multiple_of": draw(st.sampled_from(MULTIPLES)),
        "of": draw(st.sampled_from(["total", "prunable"])),
        "per_layer": draw(st.sampled_from(["free", "uniform"])),
    }
    budget = Budget(keep=draw(st.floats(0.05, 1)), **chosen | fixed)
    try:
        check_reachable(space, budget)
    except (ConfigError, UnreachableBudget):
        assume(False)
    return space, budget, draw(scores_of(space))


def scores_of(space):
    def build(seed, levels):
        generator = torch.Generator().manual_seed(seed)
        return {
            group.name: torch.randint(0, levels, (group.size,), generator=generator).float() for group in space.groups
        }

    return st.builds(build, st.integers(0, 2**20), st.sampled_from([2, 7, 10**6]))


def step_sizes(space, budget):
    return {group.name: units_per_step(group, budget.multiple_of) for group in space.groups}


def kept(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def bundles(space, budget):
    """Names of the groups that must grow together."""
    if budget.per_layer == "free" or space.name == "depth":  # a layer that stays has the width it had
        return [[group.name] for group in space.groups]
    layers = {}
    for group in space.groups:
        layers.setdefault(group.layer, []).append(group.name)
    return [list(names) for names in zip(*layers.values(), strict=True)]


@quick
@given(cases(), st.sampled_from(["global", "local"]))
def test_meets_the_target_and_no_removed_step_still_fits(case, scope):
    space, budget, scores = case
    masks = allocate(scores, space, budget, scope)
    target = budget.target(space)
    assert count_parameters(space, masks) <= target
    sizes, widths = step_sizes(space, budget), kept(masks)
    for names in bundles(space, budget):
        grown = widths | {name: widths[name] + sizes[name] for name in names}
        if all(grown[name] <= space.by_name[name].size for name in names):
            assert space.count(grown) > target


@quick
@given(cases(), st.sampled_from(["global", "local"]))
def test_widths_respect_the_constraints(case, scope):
    space, budget, scores = case
    masks = allocate(scores, space, budget, scope)
    for name, mask in masks.items():
        assert mask.shape == (space.by_name[name].size,)
        assert set(mask.tolist()) <= {0.0, 1.0}
        assert mask.sum() >= 1 or space.name == "depth"
        assert mask.sum() * space.by_name[name].features % budget.multiple_of == 0
    assert any(mask.any() for mask in masks.values())
    if budget.per_layer == "uniform":
        for names in bundles(space, budget):
            assert len({int(masks[name].sum()) for name in names}) == 1


@quick
@given(cases())
def test_the_best_units_of_every_group_are_kept_and_ties_go_by_position(case):
    space, budget, scores = case
    masks = allocate(scores, space, budget)
    for name, mask in masks.items():
        order = sorted(range(len(mask)), key=lambda unit: (-scores[name][unit].item(), unit))
        assert mask.nonzero().squeeze(1).tolist() == sorted(order[: int(mask.sum())])


@quick
@given(cases(), st.floats(0, 0.3), st.sampled_from(["global", "local"]))
def test_a_larger_keep_never_keeps_less(case, more, scope):
    space, budget, scores = case
    larger = budget.model_copy(update={"keep": min(1.0, budget.keep + more)})
    counts = [count_parameters(space, allocate(scores, space, each, scope)) for each in (budget, larger)]
    assert counts[0] <= counts[1]


@quick
@given(cases())
def test_the_decision_is_deterministic(case):
    space, budget, scores = case
    first = allocate(scores, space, budget)
    again = allocate({name: score.clone() for name, score in reversed(scores.items())}, space, budget)
    assert all(torch.equal(first[name], again[name]) for name in first)


@quick
@given(cases(per_layer="free", multiple_of=1))
def test_global_scope_keeps_what_scores_higher_up_to_the_step_that_does_not_fit(case):
    """No removed unit that could replace a kept one of the same cost in another layer scores higher."""
    space, budget, scores = case
    assume(space.name != "disp")  # there the cost of a unit depends on the other widths
    masks = allocate(scores, space, budget)
    for names in bundles(space, budget.model_copy(update={"per_layer": "uniform"})):
        removed = torch.cat([scores[name][masks[name] == 0] for name in names])
        beyond_fewest = []
        for name in names:
            chosen = scores[name][masks[name] == 1].sort().values
            fewest = steps_at_least(space.by_name[name], budget.min_keep, 1)
            beyond_fewest.append(chosen[:-fewest])  # the best of a group stay, whatever they score
        held = torch.cat(beyond_fewest)
        if len(removed) and len(held):
            assert removed.max() <= held.min()


@quick
@given(cases(per_layer="free", multiple_of=1))
def test_local_scope_removes_the_same_share_everywhere_whatever_the_scale_of_the_scores(case):
    space, budget, scores = case
    assume(space.name != "depth")  # layers are ranked in one list under both
    scaled = {name: score * 10.0**index for index, (name, score) in enumerate(scores.items())}
    masks = allocate(scaled, space, budget, "local")
    assert all(
        torch.equal(mask, other)
        for mask, other in zip(masks.values(), allocate(scores, space, budget, "local").values(), strict=True)
    )
    by_kind = {}
    for group in space.groups:
        by_kind.setdefault((group.kind, group.size), []).append(int(masks[group.name].sum()))
    spread = 2 if space.name == "disp" else 1  # there a unit costs less where other widths ended one smaller
    assert all(max(widths) - min(widths) <= spread for widths in by_kind.values())


@pytest.mark.parametrize(("variant", "name"), CASES)
@pytest.mark.parametrize("per_layer", ["free", "uniform"])
def test_keeping_everything_is_possible_everywhere(variant, name, per_layer):
    space = tiny_space(variant, name)
    masks = allocate(space.ones(), space, Budget(keep=1.0, per_layer=per_layer))
    assert count_parameters(space, masks) == space.num_parameters


def test_of_says_what_keep_is_a_share_of():
    space = tiny_space()
    assert Budget(keep=0.6).target(space) == round(0.6 * space.num_parameters)
    fixed = space.num_parameters - space.num_prunable
    assert Budget(keep=0.5, of="prunable").target(space) == fixed + space.num_prunable // 2


def test_whole_layers_go_by_score_whatever_the_scope_and_the_best_one_stays():
    space = tiny_space(name="depth")
    layer = (space.num_parameters - space.count(dict.fromkeys(space.by_name, 0))) // 4
    scores = {name: torch.tensor([score]) for name, score in zip(space.by_name, (0.3, 0.1, 0.4, 0.2), strict=True)}
    for scope in ("global", "local"):
        for left, expected in ((3, [1, 0, 1, 1]), (2, [1, 0, 1, 0]), (1, [0, 0, 1, 0])):
            keep = (space.num_parameters - (4 - left) * layer) / space.num_parameters
            for constraint in ({}, {"per_layer": "uniform"}, {"multiple_of": 64}):
                masks = allocate(scores, space, Budget(keep=keep, **constraint), scope)
                assert [int(mask) for mask in masks.values()] == expected
    assert reachable(space, Budget()) == (space.num_parameters - 3 * layer, space.num_parameters)


def test_reachable_range_is_what_can_be_had():
    space = tiny_space()
    low, high = reachable(space, Budget(min_keep=0))
    assert (low, high) == (space.count({group.name: 1 for group in space.groups}), space.num_parameters)
    in_eights = reachable(space, Budget(multiple_of=32))  # 48 channels go down to 32; a KV group has 16 features
    assert in_eights == (space.num_parameters - 2 * 16 * 3 * 32,) * 2


def test_floors_move_the_range_and_are_named_where_they_stand_in_the_way():
    space = tiny_space()
    wide = {"kv_group": 1, "mlp_channel": 24}  # half of 2 KV groups, and of 48 channels
    low = space.count({group.name: wide[group.kind] for group in space.groups})
    assert reachable(space, Budget(min_keep=0.5))[0] == low
    keep = low / space.num_parameters - 0.01
    check_reachable(space, Budget(keep=keep))
    with pytest.raises(UnreachableBudget, match=r"Raise budget\.keep to .*, or lower budget\.min_keep to 0\.\d+\.$"):
        check_reachable(space, Budget(keep=keep, min_keep=0.5))
    with pytest.raises(UnreachableBudget) as told:
        check_reachable(space, Budget(keep=0.01, min_keep=0))
    assert "min_keep" not in str(told.value)
    assert "multiple_of" not in str(told.value)


def test_floors_bind_where_scores_would_empty_a_group_and_only_there():
    space = tiny_space()
    scores = {group.name: torch.ones(group.size) for group in space.groups}
    emptied = space.groups[-1].name
    scores[emptied] = -torch.ones(space.by_name[emptied].size)
    bare, default, half = (allocate(scores, space, Budget(keep=0.65, min_keep=m)) for m in (0, 0.05, 0.5))
    assert (kept(bare)[emptied], kept(default)[emptied], kept(half)[emptied]) == (1, 3, 24)
    draw = torch.Generator().manual_seed(0)
    scores = {group.name: torch.rand(group.size, generator=draw) for group in space.groups}
    even = [allocate(scores, space, Budget(keep=0.65, min_keep=share)) for share in (0, 0.05)]
    assert all(torch.equal(mask, even[1][name]) for name, mask in even[0].items())


@given(cases(), st.floats(0, 1), st.sampled_from(["global", "local"]))
@quick
def test_every_group_keeps_its_floor(case, min_keep, scope):
    space, budget, scores = case
    budget = budget.model_copy(update={"min_keep": min_keep})
    low = reachable(space, budget)[0]
    if budget.target(space) < low:
        with pytest.raises(UnreachableBudget):
            allocate(scores, space, budget, scope)
        return
    widths, sizes = kept(allocate(scores, space, budget, scope)), step_sizes(space, budget)
    for group in space.groups:
        if group.kind != "block":
            whole = group.size // sizes[group.name] * sizes[group.name]
            assert widths[group.name] >= min(whole, min_keep * group.size - 1e-6)


@pytest.mark.parametrize(
    ("multiple_of", "kind", "units"),
    [(1, "kv_group", 1), (8, "kv_group", 1), (16, "kv_group", 1), (32, "kv_group", 2), (24, "mlp_channel", 24)],
)
def test_a_step_is_the_fewest_units_that_respect_multiple_of(multiple_of, kind, units):
    group = next(group for group in tiny_space().groups if group.kind == kind)
    assert units_per_step(group, multiple_of) == units


def test_uniform_refuses_layers_that_differ():
    space = tiny_space()
    narrow = tiny_space(intermediate_size=40)
    mixed = type(space)("width", (*space.groups[:2], *narrow.groups[2:]), space.shapes)
    with pytest.raises(ConfigError, match=r"layers of equal width.*per_layer=free"):
        check_reachable(mixed, Budget(per_layer="uniform"))


def test_scores_that_are_no_numbers_are_refused():
    space = tiny_space()
    scores = space.ones()
    scores["model.layers.1.mlp"][3] = float("nan")
    with pytest.raises(TunePruneError, match=r"scores of `model\.layers\.1\.mlp` contain NaN"):
        allocate(scores, space, Budget())


def test_infinite_scores_decide_before_all_others():
    space = tiny_space()
    scores = {
        name: torch.rand(len(ones), generator=torch.Generator().manual_seed(0)) for name, ones in space.ones().items()
    }
    scores["model.layers.0.mlp"] = torch.full((48,), float("inf"))
    scores["model.layers.1.mlp"] = torch.full((48,), -float("inf"))
    masks = allocate(scores, space, Budget(keep=0.7))
    assert masks["model.layers.0.mlp"].sum() == 48
    assert masks["model.layers.1.mlp"].sum() < 48


def test_what_a_plan_adds_elsewhere_is_paid_from_the_same_budget():
    space = TOY["phi3", "width"]
    scores = {group.name: torch.arange(group.size).float() for group in space.groups}
    budget = Budget(keep=0.8)
    kept = [count_parameters(space, allocate(scores, space, budget, reserved=reserved)) for reserved in (0, 500)]
    assert kept[1] <= budget.target(space) - 500 < kept[0] <= budget.target(space)
    with pytest.raises(UnreachableBudget):
        allocate(scores, space, budget, reserved=budget.target(space))
