"""Groups that are kept whole whatever their scores, and exact widths."""

import pytest
import torch
import yaml
from helpers.tiny import CASES
from helpers.toy_latency import timed
from helpers.toy_spaces import tiny_space
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from tuneprune.budget import Budget, allocate, check_reachable, count_parameters, reachable
from tuneprune.errors import ConfigError, UnreachableBudget

LAYERS = {"num_hidden_layers": 4}
TOY = {
    (variant, name): tiny_space(variant, name, **LAYERS)
    for variant, name in (("llama", "width"), ("phi3", "head_dim"), ("llama", "disp"), ("llama", "depth"))
}


def widths(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


def draw(space, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=random) for group in space.groups}


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(TOY)),
    st.lists(st.integers(-4, 3), min_size=1, max_size=2),
    st.floats(0.3, 1),
    st.sampled_from([1, 5, 32]),
    st.sampled_from(["global", "local"]),
    st.integers(0, 100),
)
def test_protected_layers_lose_nothing_and_the_budget_is_met(which, layers, keep, multiple, scope, seed):
    space = TOY[which]
    budget = Budget(keep=keep, protect=layers, multiple_of=1 if space.name == "depth" else multiple)
    try:
        low, high = reachable(space, budget)
    except ConfigError:  # a multiple wider than a group
        return
    if budget.target(space) < low:
        with pytest.raises(UnreachableBudget, match=r"budget\.protect keeps \d+ of \d+ groups whole"):
            check_reachable(space, budget)
        return
    masks = allocate(draw(space, seed), space, budget, scope)
    for group in space.groups:
        if group.layer in {layer % 4 for layer in layers}:
            assert masks[group.name].all()
    assert low <= count_parameters(space, masks) <= min(high, budget.target(space))


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_every_space_protects_a_kind_and_a_group(variant, name):
    space = tiny_space(variant, name, **LAYERS) if name in ("width", "depth") else tiny_space(variant, name)
    first = space.groups[0]
    everything = Budget(protect=[first.kind])
    assert everything.whole(space) == {group.name for group in space.groups if group.kind == first.kind}
    one = Budget(keep=0.9, protect=[first.name])
    if len(space.groups) > 1:
        assert allocate({n: -m for n, m in space.ones().items()}, space, one)[first.name].all()


def test_patterns_and_kinds_name_groups():
    space = TOY["llama", "width"]
    assert Budget(protect="kv_group").whole(space) == {f"model.layers.{n}.self_attn" for n in range(4)}
    assert Budget(protect=["*.1.*", -1]).whole(space) == {
        f"model.layers.{n}.{part}" for n in (1, 3) for part in ("self_attn", "mlp")
    }


@pytest.mark.parametrize(
    ("entry", "name", "said"),
    [
        (4, "width", "there is no layer 4; this model has 4. Use 0 to 3, or -1 to -4"),
        (-5, "depth", "there is no layer -5"),
        ("attention", "width", r"no units `attention` on this model. Name a kind \(kv_group, mlp_channel\) or groups"),
        (0, "residual", "layer 0 has no units of its own in space `residual`"),
    ],
)
def test_what_is_not_there_cannot_be_protected(entry, name, said):
    with pytest.raises(ConfigError, match=said):
        check_reachable(tiny_space(name=name, **LAYERS), Budget(protect=[entry]))


def test_equal_widths_and_protected_layers_exclude_each_other():
    space = TOY["llama", "width"]
    with pytest.raises(ConfigError, match=r"cannot treat model.layers.0.self_attn differently from other layers"):
        check_reachable(space, Budget(keep=0.8, per_layer="uniform", protect=[0]))
    masks = allocate(draw(space), space, Budget(keep=0.8, per_layer="uniform", protect="kv_group"))
    assert len({width for name, width in widths(masks).items() if name.endswith("mlp")}) == 1
    assert all(masks[name].all() for name in masks if name.endswith("attn"))


def test_protected_layers_count_in_time():
    space = timed(tiny_space("llama_mha_biased"))
    masks = allocate(draw(space), space, Budget(of="latency", keep=0.8, protect=[0]).on(space))
    assert all(masks[group.name].all() for group in space.groups if group.layer == 0)


@pytest.mark.parametrize(
    ("given", "kept", "layout"),
    [
        ({"mlp_channel": 20, "kv_group": 1}, {"mlp": 20, "self_attn": 1}, "uniform"),
        ({"mlp_channel": 33}, {"mlp": 33, "self_attn": 2}, "uniform"),
        ({"kv_group": 1}, {"mlp": 48, "self_attn": 1}, "uniform"),
    ],
)
@pytest.mark.parametrize("scope", ["global", "local"])
def test_exact_widths_are_kept_exactly(given, kept, layout, scope):
    space = TOY["llama", "width"]
    budget = Budget(widths=given).on(space)
    assert (budget.per_layer, budget.widths) == (layout, None)
    check_reachable(space, budget)
    scores = draw(space)
    masks = allocate(scores, space, budget, scope)
    assert all(width == kept[name.rpartition(".")[2]] for name, width in widths(masks).items())
    assert count_parameters(space, masks) == budget.target(space)
    if layout == "free":
        for name, mask in masks.items():
            best = scores[name].argsort(descending=True)[: int(mask.sum())]
            assert mask[best].all()


def test_widths_of_single_groups_leave_the_others_whole():
    space = TOY["llama", "width"]
    budget = Budget(widths={"model.layers.1.mlp": 7, "*.3.mlp": 9}).on(space)
    assert budget.per_layer == "free"
    found = widths(allocate(draw(space), space, budget))
    assert {name: width for name, width in found.items() if width != space.by_name[name].size} == {
        "model.layers.1.mlp": 7,
        "model.layers.3.mlp": 9,
    }


@pytest.mark.parametrize("name", ["head_dim", "disp", "residual", "experts"])
def test_widths_are_kept_in_every_space(name):
    space = tiny_space("mixtral" if name == "experts" else "llama", name)
    given = dict.fromkeys((group.kind for group in space.groups), 3)
    budget = Budget(widths=given).on(space)
    assert set(widths(allocate(draw(space), space, budget)).values()) == {3}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"widths": {"mlp_channel": 9}, "keep": 0.5}, "`widths` gives exact sizes; leave `keep` out"),
        ({"widths": {"mlp_channel": 9}, "multiple_of": 8}, "leave `multiple_of` out"),
        ({"widths": {"mlp_channel": 9}, "protect": [0]}, "leave `protect` out"),
        ({"widths": {"mlp_channel": 9}, "of": "bytes"}, "cannot be combined with `of: bytes`"),
        ({"widths": {}}, "names no units"),
        ({"widths": {"mlp_channel": 0}}, "greater than or equal to 1"),
        ({"widths": 9}, "valid dictionary"),
        ({"protect": True}, "not true or false"),
    ],
)
def test_widths_that_contradict_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        Budget(**settings)


@pytest.mark.parametrize(
    ("given", "name", "said"),
    [
        ({"mlp_channel": 49}, "width", "49 is more than the 48 units of model.layers.0.mlp. Use at most 48"),
        ({"heads": 1}, "width", r"no units `heads`"),
        ({"mlp_channel": 48}, "width", "the model's own widths"),
        ({"block": 1}, "depth", "drops whole layers. Use budget.keep"),
    ],
)
def test_widths_that_are_not_there_are_refused(given, name, said):
    with pytest.raises(ConfigError, match=said):
        Budget(widths=given).on(tiny_space(name=name, **LAYERS))


def test_exact_widths_leave_no_room_for_what_a_method_adds():
    space = TOY["llama", "width"]
    with pytest.raises(UnreachableBudget, match=r"leaves no room for the 5 parameters that the method adds"):
        check_reachable(space, Budget(widths={"mlp_channel": 9}).on(space), reserved=5)


@pytest.mark.parametrize("settings", [{"widths": {"mlp_channel": 9}}, {"protect": [0, -1, "kv_group"], "keep": 0.7}])
def test_they_survive_a_run_file(settings):
    budget = Budget(**settings)
    written = yaml.safe_dump(budget.model_dump(mode="json"))
    assert Budget(**yaml.safe_load(written)) == budget
