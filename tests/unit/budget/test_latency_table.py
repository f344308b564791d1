"""Budgets of time: tables of measured times, and decisions that meet the budget."""

import json

import pytest
import torch
from helpers.toy_latency import table_for, timed
from helpers.toy_spaces import tiny_space
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tuneprune.budget import Budget, allocate, check_reachable, reachable, units_per_step
from tuneprune.budget.latency_table import Curve, LatencyTable
from tuneprune.errors import ConfigError, UnreachableBudget
from tuneprune.structure.space import Latency

TOY = {name: tiny_space("llama_mha_biased", name) for name in ("width", "depth")}
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.filter_too_much])


@st.composite
def curves(draw, size):
    """Times that never fall, with plateaus and jumps as measured ones have."""
    units = sorted({1, size, *draw(st.lists(st.integers(1, size), max_size=6))})
    times = sorted(draw(st.lists(st.sampled_from([0.5, 1.0, 1.1, 2.0, 7.0]), min_size=len(units), max_size=len(units))))
    return Curve(units=units, milliseconds=times)


@st.composite
def cases(draw):
    """A space with made-up times, a budget that it can meet, and scores with ties."""
    space = TOY[draw(st.sampled_from(sorted(TOY)))]
    space = timed(space, attention=draw(curves(4)), mlp=draw(curves(48)), fixed_ms=draw(st.sampled_from([0.1, 9.0])))
    budget = Budget(
        of="latency",
        keep=draw(st.floats(0.05, 1)),
        multiple_of=draw(st.sampled_from([1, 4, 16])),
        per_layer=draw(st.sampled_from(["free", "uniform"])),
    )
    try:
        check_reachable(space, budget)
    except UnreachableBudget:
        assume(False)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    return space, budget, {g.name: torch.randint(0, 9, (g.size,), generator=generator).float() for g in space.groups}


def kept(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


@quick
@given(cases(), st.sampled_from(["global", "local"]))
def test_a_decision_is_within_the_time_and_no_removed_step_still_fits(case, scope):
    space, budget, scores = case
    widths = kept(allocate(scores, space, budget, scope))
    target = budget.target(space)
    assert space.latency.count(widths) <= target
    together = {}
    for group in space.groups:
        is_uniform = budget.per_layer == "uniform" and group.kind != "block"
        together.setdefault(group.kind if is_uniform else group.name, []).append(group)
    for groups in together.values():
        step = units_per_step(groups[0], budget.multiple_of)
        grown = widths | {group.name: widths[group.name] + step for group in groups}
        if all(grown[group.name] <= group.size for group in groups):
            assert space.latency.count(grown) > target


@quick
@given(cases(), st.floats(0, 0.5))
def test_a_larger_keep_never_takes_less_time_and_every_group_keeps_a_step(case, more):
    space, budget, scores = case
    larger = budget.model_copy(update={"keep": min(1.0, budget.keep + more)})
    small, large = (kept(allocate(scores, space, each)) for each in (budget, larger))
    assert space.latency.count(small) <= space.latency.count(large)
    floor = 0 if space.name == "depth" else 1
    assert all(width >= floor for width in small.values())
    assert any(small.values())
    assert kept(allocate(scores, space, budget)) == small


def test_times_add_up_by_hand():
    space = timed(TOY["width"])
    attention, mlp = (group.name for group in space.groups[:2])
    assert space.latency.dense == 10**6 * (4 + 2 * 0.5 + 2 * 4 + 2 * 4.8)
    assert space.latency.count({attention: 2}) == space.latency.dense - 2 * 10**6
    assert space.latency.count({mlp: 20}) == pytest.approx(space.latency.dense - 2.8e6, abs=1)
    assert space.latency.count({mlp: 3}) == space.latency.count({mlp: 8})  # below what was measured
    layers = timed(TOY["depth"])
    assert layers.latency.count(dict.fromkeys(layers.by_name, 0)) == 4 * 10**6
    assert layers.latency.dense == 10**6 * (4 + len(layers.groups) * (0.5 + 4 + 4.8))


def test_keeping_half_of_the_time_keeps_units_until_it_is_spent():
    space = timed(TOY["width"])
    budget = Budget(of="latency", keep=0.5)
    assert budget.target(space) == round(0.5 * 22.6e6)
    masks = allocate(space.ones(), space, budget, "local")
    left = space.latency.count(kept(masks))
    assert budget.target(space) - 10**6 < left <= budget.target(space)
    assert allocate(space.ones(), space, budget.model_copy(update={"keep": 1.0}))["model.layers.1.mlp"].all()


def test_soft_times_meet_hard_ones_and_have_slopes():
    latency = Latency(5, {"a": (2, 3, 8), "b": (1, 1, 1)})
    assert latency.dense == 14
    masks = {"a": torch.tensor([1.0, 0.5], requires_grad=True), "b": torch.ones(2)}
    left = latency.left(masks)
    assert left.item() == 5 + (3 + 8) / 2 + 1
    left.backward()
    assert masks["a"].grad.tolist() == [5, 5]
    for number in (0, 1, 2):
        hard = (torch.arange(2) < number).float()
        assert latency.left({"a": hard, "b": torch.ones(2)}).item() == latency.count({"a": number})
    assert latency.left({"a": torch.ones(2)}).item() == latency.dense  # groups of layers that a method protects
    assert (latency.per_unit("a"), latency.per_unit("b")) == (3.0, 1.0)


def test_what_cannot_be_reached_is_told_in_milliseconds():
    space = timed(TOY["width"])
    low, _ = reachable(space, Budget(of="latency"))
    assert low == 10**6 * (4 + 2 * 0.5 + 2 * 1 + 2 * 0.8)
    message = r"budget\.keep=0\.1 of latency is below .*: 0\.3806 to 1\.0000 \(8\.6 ms to 22\.6 ms\)"
    with pytest.raises(UnreachableBudget, match=message):
        check_reachable(space, Budget(of="latency", keep=0.1))
    check_reachable(space, Budget(of="latency", keep=0.3806))


def test_a_table_survives_its_file(tmp_path):
    table = table_for(TOY["width"])
    (tmp_path / "latency.json").write_text(table.model_dump_json())
    assert LatencyTable.load(tmp_path / "latency.json") == table
    assert table.what == "decode latency of made up at batch size 1"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table["mlp"].update(milliseconds=[2.0, 1.0]), "mlp: Value error, milliseconds .* must not fall"),
        (lambda table: table["mlp"].update(milliseconds=[1.0]), "the same length"),
        (lambda table: table["attention"].update(units=[4, 1]), "must ascend"),
        (lambda table: table.update(format=2), "format"),
        (lambda table: table.pop("fixed_ms"), "fixed_ms: Field required"),
        (lambda table: table["mlp"].update(milliseconds=[1.0, float("nan")]), "mlp.milliseconds.1: .* finite"),
        (lambda table: table["attention"].update(milliseconds=[1.0, float("inf")]), "milliseconds.1: .* finite"),
        (lambda table: table.update(fixed_ms=float("inf")), "fixed_ms: .* finite"),
        (lambda table: table.update(layer_ms=float("nan")), "layer_ms: .* finite"),
        (lambda table: table["mlp"].update(units=[1, 10**30]), "mlp.units.1: .* less than or equal to"),
        (lambda table: table.update(layer_ms=1e300), "layer_ms: .* less than or equal to 86400000"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, change, said):
    table = table_for(TOY["width"]).model_dump(mode="json")
    change(table)
    path = tmp_path / "latency.json"
    path.write_text(json.dumps(table))
    with pytest.raises(ConfigError, match=f"budget.table: .*is not a latency table .*{said}"):
        LatencyTable.load(path)


def test_a_file_that_is_no_table_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.json .*leave the table out"):
        LatencyTable.load(tmp_path / "nowhere.json")
    (tmp_path / "text").write_text("{")
    with pytest.raises(ConfigError, match="is not a latency table"):
        LatencyTable.load(tmp_path / "text")


@pytest.mark.parametrize("name", ["head_dim", "disp", "residual"])
def test_spaces_without_times_are_refused(name):
    space = tiny_space(name=name)
    with pytest.raises(ConfigError, match=rf"space `{name}` removes other things\. Use space width or depth"):
        table_for(space).on(space)


def test_a_table_of_another_model_is_refused():
    with pytest.raises(ConfigError, match="measured on a model with other shapes"):
        table_for(TOY["width"]).on(tiny_space())
