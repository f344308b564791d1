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


def test_recover_has_what_differs_after_the_cut():
    tune = {"steps": 7, "batch_size": 3, "lora": {"rank": 4, "dropout": 0.1}, "learning_rate": 0.02}
    config = RunConfig.model_validate(CONTENT | {"tune": tune, "recover": {"train": "all", "lora": {"rank": 9}}})
    assert (config.tune.train, config.tune.lora.rank) == ("lora", 4)
    assert config.recover == config.tune.model_copy(
        update={"train": "all", "lora": config.tune.lora.model_copy(update={"rank": 9})}
    )
    epochs = RunConfig.model_validate(CONTENT | {"tune": {"epochs": 2}, "recover": {"clip": 3}})
    assert (epochs.recover.epochs, epochs.recover.clip) == (2, 3)
    assert RunConfig.model_validate(CONTENT | {"tune": tune, "recover": {"steps": 7}}).recover == config.tune


@pytest.mark.parametrize(
    ("tune", "recover", "said"),
    [
        ({"steps": 7}, {"steps": 8}, "recover.steps=8 differs from tune.steps=7"),
        ({"steps": 7}, {"epochs": 2}, "recover.epochs=2.0 differs from tune.steps=7"),
        ({"epochs": 3}, {"epochs": 2}, "recover.epochs=2.0 differs from tune.epochs=3.0"),
        ({"epochs": 3}, {"steps": 8}, "recover.steps=8 differs from tune.epochs=3.0"),
        ({"batch_size": 3}, {"batch_size": 4}, "recover.batch_size=4 differs from tune.batch_size=3"),
        ({}, {"max_length": 16}, "recover.max_length=16 differs from tune.max_length=256"),
    ],
)
def test_recover_has_no_length_of_its_own(tune, recover, said):
    ours, theirs = said.partition("tune.")[2].partition("=")[0], next(iter(recover))
    with pytest.raises(ConfigError) as refused:
        parse(CONTENT | {"tune": tune, "recover": recover}, "run.yaml")
    assert said in str(refused.value)
    assert f"Set tune.{ours}, and leave recover.{theirs} out." in str(refused.value)
