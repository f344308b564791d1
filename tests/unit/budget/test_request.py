"""Budgets in a run file: shares and amounts, in parameters, bytes and time, with aligned widths."""

import pytest
import yaml
from helpers.toy_latency import timed
from helpers.toy_spaces import tiny_space
from pydantic import ValidationError

from tuneprune.budget import Budget, check_reachable, units_per_step
from tuneprune.budget.amounts import (
    BYTES,
    NANOSECONDS,
    PARAMETERS,
    bytes_written,
    milliseconds_written,
    parse_amount,
)
from tuneprune.budget.chains import alignment
from tuneprune.budget.request import header_bytes
from tuneprune.errors import ConfigError, UnreachableBudget
from tuneprune.structure.space import Group


@pytest.mark.parametrize(
    ("text", "units", "expected"),
    [
        ("3.5B", PARAMETERS, 3_500_000_000),
        ("350 m", PARAMETERS, 350_000_000),
        ("12000", PARAMETERS, 12_000),
        ("300MB", BYTES, 300_000_000),
        ("1.5 GiB", BYTES, 3 * 2**29),
        ("4096", BYTES, 4096),
        ("12ms", NANOSECONDS, 12_000_000),
        ("0.5 s", NANOSECONDS, 500_000_000),
        ("12", NANOSECONDS, None),
        ("3.5B", NANOSECONDS, None),
        ("-3MB", BYTES, None),
        ("MB", BYTES, None),
        ("1e3", PARAMETERS, None),
    ],
)
def test_amounts_are_read(text, units, expected):
    assert parse_amount(text, units) == expected


def test_amounts_are_written():
    assert [bytes_written(size) for size in (12, 12_340, 12_340_000, 1.5e9)] == [
        "12 B",
        "12.34 kB",
        "12.34 MB",
        "1.5 GB",
    ]
    assert milliseconds_written(12_345_678) == "12.35 ms"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0.5, "at_most": "3M"}, "give two sizes"),
        ({"of": "prunable", "at_most": "3M"}, "cannot be combined with `of: prunable`"),
        ({"at_most": "300MB"}, "write parameters, such as 350M"),
        ({"of": "bytes", "at_most": "12ms"}, "write bytes, such as 300MB"),
        ({"of": "latency", "at_most": "12"}, "write a time, such as 12ms"),
        ({"at_most": "0"}, "at_most=0 "),
        ({"phase": "prefill"}, "`phase` belongs to `of: latency`, but this budget counts total"),
        ({"of": "bytes", "table": "x.json"}, "`table` belongs to"),
        ({"of": "latency", "batch_size": 0}, "greater than or equal to 1"),
        ({"multiple_of": 0}, "`auto` or a whole number from 1"),
        ({"multiple_of": "64"}, "`auto` or a whole number from 1"),
        ({"multiple_of": True}, "`auto` or a whole number from 1"),
    ],
)
def test_requests_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        Budget(**settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"keep": 0.5, "multiple_of": 64},
        {"of": "bytes", "at_most": "300MB"},
        {"of": "total", "at_most": 5000},
        {"of": "latency", "at_most": "3ms", "phase": "prefill", "batch_size": 8, "table": "a/latency.json"},
    ],
)
def test_a_request_survives_its_run_file(settings):
    budget = Budget(**settings)
    written = yaml.safe_dump(budget.model_dump(mode="json"))
    assert Budget(**yaml.safe_load(written)) == budget
    assert set(budget.model_dump()) == {"of", "multiple_of", "per_layer", "min_keep", *(settings.keys() or {"keep"})}


def test_a_number_of_parameters_becomes_a_share():
    space = tiny_space()
    budget = Budget(at_most=12_000).on(space)
    assert budget.target(space) == 12_000
    assert (budget.at_most, budget.of) == (None, "total")
    assert Budget(**budget.model_dump()).target(space) == 12_000


@pytest.mark.parametrize("each", [2, 4])
def test_a_size_holds_the_header_of_the_file_too(each):
    space = tiny_space()
    budget = Budget(of="bytes", at_most="30kB").on(space, each)
    assert (
        budget.target(space) * each + header_bytes(space)
        <= 30_000
        < (budget.target(space) + 1) * each + header_bytes(space)
    )


def test_a_share_of_the_bytes_is_that_of_the_parameters():
    space = tiny_space()
    assert Budget(of="bytes", keep=0.7).target(space) == Budget(keep=0.7).target(space)


def test_a_time_becomes_a_share():
    space = timed(tiny_space("llama_mha_biased"))
    budget = Budget(of="latency", at_most="10.5ms").on(space)
    assert budget.target(space) == 10_500_000


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"at_most": "1M"}, r"budget\.at_most=1M removes nothing: the dense model has [\d,]+ parameters\. Lower it"),
        ({"of": "bytes", "at_most": "1GB"}, r"at_most=1GB removes nothing: the dense model has [\d.]+ kB"),
        ({"of": "latency", "at_most": "1s"}, r"at_most=1s removes nothing: the dense model has 22\.6 ms"),
    ],
)
def test_an_amount_that_removes_nothing_is_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Budget(**settings).on(timed(tiny_space("llama_mha_biased")), 4)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"at_most": "10"}, r"budget\.at_most=10 of total parameters is below .*Raise budget\.at_most"),
        (
            {"of": "bytes", "at_most": "30kB"},
            r"at_most=30kB of weight bytes is below .* \([\d.]+ kB to [\d.]+ kB\)\. .*Raise",
        ),
        ({"of": "bytes", "at_most": "10"}, "at_most=10 of weight bytes is below"),
        ({"of": "latency", "at_most": "3us"}, r"at_most=3us of latency is below .* \(8\.6 ms to 22\.6 ms\)\. Raise"),
    ],
)
def test_an_amount_out_of_reach_is_told_as_it_was_asked(settings, said):
    space = timed(tiny_space("llama_mha_biased"))
    with pytest.raises(UnreachableBudget, match=said):
        check_reachable(space, Budget(**settings).on(space, 4))


def group(size, features, kind="mlp_channel"):
    return Group("g", 0, kind, size, (), (), (), features)


@pytest.mark.parametrize(
    ("size", "features", "aligned", "units"),
    [
        (14336, 1, 128, 128),  # MLP of LLaMA-3 8B
        (768, 1, 1, 1),  # of a toy
        (2000, 1, 1, 1),
        (4900, 1, 1, 1),  # 128 does not divide it
        (8, 512, 128, 1),  # KV groups of LLaMA-3 8B
        (32, 64, 128, 2),  # heads of 64 features: two are 128
        (5, 192, 1, 1),  # SmolLM2 360M: 960 features
        (1, 0, 1, 1),  # a layer
        (64, 1, 1, 1),  # experts
    ],
)
def test_auto_aligns_wide_groups(size, features, aligned, units):
    one = group(size, features)
    assert alignment(one, "auto") == aligned
    assert units_per_step(one, "auto") == units
    assert size % units == 0, "the dense width stays possible"


def test_auto_is_one_where_nothing_is_wide():
    assert Budget().multiple_of == "auto"
    assert Budget().on(tiny_space()).multiple_of == 1
    assert Budget(multiple_of=4).on(tiny_space()).multiple_of == 4
    wide = tiny_space(intermediate_size=2048)
    assert Budget().on(wide).multiple_of == "auto"
