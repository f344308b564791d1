"""The table of what layers take: whole and monotone. How long anything takes is no matter of tests."""

import itertools

import pytest
import torch
from helpers.sweeps import quick_where
from helpers.tiny import DENSE, tiny_model

from tuneprune import families
from tuneprune.errors import UnsupportedModel
from tuneprune.evaluate import measure_latency
from tuneprune.evaluate.latency import widths
from tuneprune.structure import spaces

QUICK = {"device": torch.device("cpu"), "dtype": torch.float32, "rounds": 1, "new_tokens": 1, "prompt_tokens": 4}


def test_widths_are_spread_evenly_over_multiples():
    assert widths(768, 1) == [1, 96, 192, 288, 384, 480, 576, 672, 768]
    assert widths(14336, 128) == [128, 1792, 3584, 5376, 7168, 8960, 10752, 12544, 14336]
    assert widths(11008, 128)[1] == 1408
    assert widths(4, 1) == [1, 2, 3, 4]
    assert widths(2, 2) == [2]


@pytest.mark.parametrize(
    ("phase", "variant"),
    quick_where(lambda phase, variant: variant == "llama", itertools.product(("decode", "prefill"), DENSE)),
)
def test_a_table_fits_its_model(variant, phase):
    model = tiny_model(variant)
    table = measure_latency(model.config, phase=phase, batch_size=2, **QUICK)
    assert (table.phase, table.batch_size, table.prompt_tokens, table.engine) == (phase, 2, 4, "transformers")
    architecture = families.describe(model)
    for name in ("width", "depth"):
        space = spaces.build(name, architecture, model)
        latency = table.on(space)
        assert latency.steps.keys() == space.by_name.keys()
        assert latency.dense > latency.fixed > 0
        assert all(list(steps) == sorted(steps) for steps in latency.steps.values())
    assert table.mlp.units[-1] == 48


def test_random_numbers_of_others_stay_as_they_were():
    config = tiny_model("llama").config
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    measure_latency(config, **QUICK)
    assert torch.equal(torch.rand(2), expected)


def test_a_mixture_has_no_times():
    with pytest.raises(UnsupportedModel, match="cannot cut mixtures of experts"):
        measure_latency(tiny_model("mixtral").config, **QUICK)
