"""Compensation in a run file."""

import pytest
from helpers.tiny import tiny_model

from tuneprune import families
from tuneprune.config import Compensation, RunConfig, parse
from tuneprune.errors import ConfigError
from tuneprune.pipeline.checks import check_compensation
from tuneprune.structure import spaces
from tuneprune.structure.space import PruningSpace

CONTENT = {
    "model": "base",
    "method": "random",
    "data": {"train": [{"path": "train.jsonl"}]},
    "evaluate": {"suite": "clinic"},
}


def test_a_name_stands_for_its_defaults():
    assert RunConfig.model_validate(CONTENT).compensate == Compensation(name="none")
    assert RunConfig.model_validate(CONTENT | {"compensate": "obs"}).compensate == Compensation(name="obs")
    assert RunConfig.model_validate(CONTENT | {"compensate": {"name": "obs", "batches": 3}}).compensate.batches == 3
    with pytest.raises(ConfigError, match=r"compensate.name.*'none' or 'obs'.*'svd'"):
        parse(CONTENT | {"compensate": "svd"}, "run.yaml")


def test_compensation_needs_linears_that_lose_inputs():
    config = RunConfig.model_validate(CONTENT | {"compensate": "obs"})
    model = tiny_model("llama")
    width = spaces.build("width", families.describe(model), model)
    check_compensation(config, width)
    other = PruningSpace("other", (), width.shapes)
    with pytest.raises(ConfigError, match=r"compensate=obs needs linears that lose inputs.* space `other` has none"):
        check_compensation(config, other)
    check_compensation(RunConfig.model_validate(CONTENT), other)
