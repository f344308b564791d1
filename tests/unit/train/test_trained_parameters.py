"""`tune.train: all` and `blocks`: parameters are tuned in place of LoRA."""

import os
import signal

import pytest
import torch
from helpers.tiny import VARIANTS, tiny_model
from helpers.tiny_tuning import assert_equal, setting, trainable

from tuneprune import families
from tuneprune.errors import TrainingDiverged
from tuneprune.methods.base import Search
from tuneprune.system.signals import Stopped
from tuneprune.train import TuneConfig, make_trainable, merge_lora
from tuneprune.train.lora import has_lora


def made_to_train(folder, train, dtype=torch.float32, **options):
    made = setting(folder, lora=False, **options)
    made.model.to(dtype)
    make_trainable(made.model, made.architecture, TuneConfig(train=train), seed=0)
    return made


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("train", ["all", "blocks"])
def test_what_may_change(variant, train):
    model = tiny_model(variant)
    architecture = families.describe(model)
    make_trainable(model, architecture, TuneConfig(train=train), seed=0)
    inside = {
        name
        for name, _ in model.named_parameters()
        if any(name.startswith(f"{block.path}.") for block in architecture.blocks)
    }
    assert inside
    assert trainable(model).keys() == (weights(model).keys() if train == "all" else inside)
    assert weights(model).keys() > inside
    assert not has_lora(model)


@pytest.mark.parametrize("train", ["all", "blocks"])
def test_what_changes(tmp_path, train):
    made = made_to_train(tmp_path, train)
    before = weights(made.model)
    made.tuner.run(Search())
    changed = {name for name, value in weights(made.model).items() if not torch.equal(before[name], value)}
    assert changed == trainable(made.model).keys()
    assert ("model.embed_tokens.weight" in changed) == (train == "all")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("train", ["all", "blocks"])
def test_sixteen_bit_weights_are_tuned_in_float32(tmp_path, train, precision):
    made = made_to_train(tmp_path, train, torch.bfloat16, precision=precision)
    result = made.tuner.run(Search())
    assert result.skipped_steps == 0
    states = made.tuner.optimizer.state
    assert {parameter for parameter in made.model.parameters() if parameter.requires_grad} == set(states)
    assert {state[name].dtype for state in states.values() for name in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    assert {value.dtype for value in trainable(made.model).values()} == {torch.float32}


@pytest.mark.parametrize("variant", ["llama", "gemma2"])  # gemma2 ties the head to the embeddings
@pytest.mark.parametrize("train", ["all", "blocks"])
def test_resumed_equals_uninterrupted(tmp_path, variant, train):
    whole = made_to_train(tmp_path / "whole", train, variant=variant)
    whole.tuner.run(Search(), fingerprint="f")

    stopped = made_to_train(tmp_path / "parts", train, variant=variant)
    stopped.tuner.observe = lambda metrics: os.kill(os.getpid(), signal.SIGTERM) if metrics["step"] == 3 else None
    with pytest.raises(Stopped):
        stopped.tuner.run(Search(), fingerprint="f")

    resumed = made_to_train(tmp_path / "parts", train, variant=variant)
    assert resumed.tuner.run(Search(), fingerprint="f", resume=True).steps == 6
    assert_equal(weights(whole.model), weights(resumed.model))


def test_merging_does_nothing_but_let_everything_train_again(tmp_path):
    made = made_to_train(tmp_path, "blocks")
    made.tuner.run(Search())
    before, modules = weights(made.model), dict(made.model.named_modules())
    merge_lora(made.model, made.architecture)
    assert_equal(before, weights(made.model))
    assert dict(made.model.named_modules()) == modules
    assert all(parameter.requires_grad for parameter in made.model.parameters())


def test_diverged_weights_are_not_taken_for_a_bad_base(tmp_path):
    made = made_to_train(tmp_path, "all", max_skipped=2)
    with torch.no_grad():
        made.model.model.norm.weight.fill_(3e38)  # finite, as after steps that were too large
    with pytest.raises(TrainingDiverged, match=r"tuned weights give a loss of .*Lower tune\.learning_rate"):
        made.tuner.run(Search(), fingerprint="f")
