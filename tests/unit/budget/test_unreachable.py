"""The answer to a budget that cannot be met: causes that are true, and cures that each work alone."""

import re

import pytest
from helpers.tiny import SPACES
from helpers.toy_latency import timed
from helpers.toy_spaces import tiny_space
from pydantic import ValidationError

from tuneprune.budget import Budget, allocate, check_reachable, count_parameters, reachable
from tuneprune.budget.amounts import BYTES, PARAMETERS, parse_amount, rounded_up
from tuneprune.errors import ConfigError, UnreachableBudget

CURES = {
    r"aise (budget\.\w+) to ([\w.]+) or more": lambda found: {found[1].removeprefix("budget."): found[2]},
    r"\(budget\.of: prunable\)": lambda _: {"of": "prunable"},
    r"ower budget\.min_keep to ([\d.]*\d)": lambda found: {"min_keep": found[1]},
    r"ower budget\.multiple_of to (\d+)": lambda found: {"multiple_of": int(found[1])},
    r"ower both budget\.min_keep to 0 and": lambda _: {"min_keep": 0, "multiple_of": 1},
    r"rotect fewer layers": lambda _: {"protect": []},
}


def refused(space, each=4, reserved=0, **settings):
    with pytest.raises(UnreachableBudget) as told:
        check_reachable(space, Budget(**settings).on(space, each), reserved)
    return str(told.value)


def apply_cures(space, said, each=4, reserved=0, **settings):
    """Apply every cure alone; returns how many there were."""
    found = [(change(match), match[0]) for cure, change in CURES.items() if (match := re.search(cure, said))]
    for changes, what in found:
        changed = settings | changes
        check_reachable(space, Budget(**changed).on(space, each), reserved), what
    advice = said.rpartition(". ")[2]
    assert len(found) == 1 + advice.count(", or "), said
    return len(found)


@pytest.mark.parametrize(
    ("settings", "changes", "says", "silent"),
    [
        ({"keep": 0.2}, {}, ["Raise budget.keep to", "or more."], ["min_keep", "multiple_of", "protect", "KV"]),
        ({"keep": 0.45, "min_keep": 0.9}, {}, ["lower budget.min_keep to"], ["multiple_of"]),
        ({"keep": 0.7, "multiple_of": 32}, {}, ["lower budget.multiple_of to"], ["min_keep to"]),
        ({"keep": 0.4, "multiple_of": 32, "min_keep": 0.6}, {}, ["lower both", "0.8434 only"], ["to 0.84 "]),
        ({"keep": 0.5, "protect": [0]}, {}, ["budget.protect keeps 2 of 4 groups whole", "protect fewer layers"], []),
        ({"at_most": "5k"}, {}, ["Raise budget.at_most to"], []),
        ({"of": "bytes", "at_most": "30kB"}, {}, ["Raise budget.at_most to", "kB or more"], []),
        ({"of": "bytes", "keep": 0.2}, {}, ["Raise budget.keep to"], []),
        ({"of": "latency", "at_most": "1ms"}, {"num_key_value_heads": 4}, ["Raise budget.at_most to"], []),
    ],
)
def test_causes_and_cures(settings, changes, says, silent):
    space = timed(tiny_space("llama_mha_biased")) if settings.get("of") == "latency" else tiny_space(**changes)
    said = refused(space, **settings)
    assert apply_cures(space, said, **settings)
    for words in says:
        assert words in said
    for words in silent:
        assert words not in said


def test_a_single_kv_head_is_named():
    space = tiny_space(num_key_value_heads=1, intermediate_size=8)
    said = refused(space, keep=0.3)
    assert "Each layer has only one of the KV groups, which stays, so none of them can be removed." in said
    apply_cures(space, said, keep=0.3)


def test_large_embeddings_are_named_with_their_share():
    space = tiny_space(vocab_size=600, tie_word_embeddings=True)
    embedding = 600 * 32 / space.num_parameters
    beyond = 1 - space.num_prunable / space.num_parameters
    assert embedding > 0.5
    said = refused(space, keep=0.55)
    assert f"{beyond:.1%} of all parameters are out of reach of this space" in said
    assert f"{embedding:.1%} in `model.embed_tokens.weight` alone" in said
    assert "count only what the space can cut (budget.of: prunable)" in said
    apply_cures(space, said, keep=0.55)


def test_a_single_layer_leaves_nothing_to_drop():
    space = tiny_space(name="depth", num_hidden_layers=1)
    said = refused(space, keep=0.6)
    assert "space `depth` can remove nothing from this model. The model has a single layer, which stays." in said
    assert "1.0000 to 1.0000" not in said
    assert "Raise" not in said
    check_reachable(space, Budget(keep=1.0).on(space))


def test_what_a_method_adds_is_named_where_it_is_the_cause():
    space = tiny_space()
    low = reachable(space, Budget())[0]
    keep = (low + 50) / space.num_parameters
    check_reachable(space, Budget(keep=keep))
    said = refused(space, keep=keep, reserved=1000)
    assert "What the method adds takes 1,000 parameters of it." in said
    apply_cures(space, said, keep=keep, reserved=1000)


def test_a_budget_that_removes_nothing_is_refused():
    space = tiny_space()
    with pytest.raises(ConfigError, match=r"budget\.keep=0\.999999 removes nothing: .* Lower it"):
        Budget(keep=0.999999).on(space)
    Budget(keep=1.0).on(space)


@pytest.mark.parametrize("count", [1, 999, 1001, 12_345, 1_234_567, 9_999_999, 123_456_789_012])
def test_amounts_are_rounded_up(count):
    for units in (PARAMETERS, BYTES):
        written = parse_amount(rounded_up(count, units), units)
        assert count <= written <= count * 1.001


@pytest.mark.parametrize("of", ["total", "prunable"])
@pytest.mark.parametrize("name", SPACES)
def test_an_unreachable_budget_names_the_range_and_its_ends_work(name, of):
    space = tiny_space(name=name)
    with pytest.raises(UnreachableBudget, match=rf"budget\.keep=0\.01 of {of} .* `{name}` .* to 1\.0000\.") as caught:
        allocate(space.ones(), space, Budget(keep=0.01, of=of))
    lowest = float(str(caught.value).split("model: ")[1].split(" to ")[0])
    floor = reachable(space, Budget())[0]
    masks = allocate(space.ones(), space, Budget(keep=lowest, of=of))
    assert floor <= count_parameters(space, masks) <= floor + 1e-4 * space.num_parameters
    with pytest.raises(UnreachableBudget):
        check_reachable(space, Budget(keep=lowest - 2e-4, of=of))


def test_multiple_of_larger_than_a_width_is_refused():
    space = tiny_space()
    with pytest.raises(ConfigError, match=r"multiple_of=64 cannot be met: .*self_attn has only 2 units of 16 features"):
        check_reachable(space, Budget(multiple_of=64))


@pytest.mark.parametrize("settings", [{"keep": 0}, {"keep": 1.01}, {"multiple_of": 0}, {"of": "all"}, {"kept": 0.5}])
def test_impossible_budgets_are_refused(settings):
    with pytest.raises(ValidationError):
        Budget(**settings)
