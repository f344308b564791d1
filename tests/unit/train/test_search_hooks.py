"""The loop under a search that trains its own parameters, or stops LoRA for a while."""

import os
import signal

import pytest
import torch
from helpers.tiny_tuning import assert_equal, setting, trainable
from torch import nn

from tuneprune.methods.base import Search, Trained
from tuneprune.structure.masks import Gates
from tuneprune.structure.weights import lora_factors
from tuneprune.system.signals import Stopped


class Soft(Search):
    """Trains one logit per unit through soft gates, built for every micro-batch."""

    penalty_name = "pull"

    def __init__(self, made, *, rate=1.0, weight_decay=0.0, lora_from=0, unused=False):
        self.gates = Gates(made.model, made.space)
        self.logits = {group.name: nn.Parameter(torch.zeros(group.size)) for group in made.space.groups}
        self.extra = [nn.Parameter(torch.ones(3))] if unused else []
        self.rate, self.weight_decay, self.lora_from = rate, weight_decay, lora_from
        self.step, self.entered, self.gradients = 0, 0, []

    def parameters(self):
        return [Trained([*self.logits.values(), *self.extra], rate=self.rate, weight_decay=self.weight_decay)]

    @property
    def trains_lora(self):
        return self.step >= self.lora_from

    def before_step(self, step):
        self.step = step
        return {}

    def context(self):
        self.entered += 1
        return self.gates({name: torch.sigmoid(logit + 2) for name, logit in self.logits.items()})

    def penalty(self):
        return 0.1 * torch.stack([torch.sigmoid(logit + 2).mean() for logit in self.logits.values()]).mean()

    def after_backward(self):
        self.gradients.append({name: logit.grad.clone() for name, logit in self.logits.items()})

    def state_dict(self):
        return {name: logit.detach().clone() for name, logit in self.logits.items()}

    def load_state_dict(self, state):
        for name, value in state.items():
            self.logits[name].data.copy_(value)


def test_own_parameters_are_trained_with_lora(tmp_path):
    made = setting(tmp_path)
    search, start, seen = Soft(made), trainable(made.model), []
    made.tuner.observe = lambda metrics: seen.append(metrics)
    made.tuner.run(search)
    assert all(logit.abs().min() > 0 for logit in search.logits.values())
    assert any(not torch.equal(value, start[name]) for name, value in trainable(made.model).items())
    assert 0 < seen[0]["pull"] < 0.1


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_rate_scales_the_schedule(tmp_path, rate):
    made = setting(tmp_path, steps=1, clip=1e9)
    search = Soft(made, rate=rate)
    made.tuner.run(search)
    learning_rate = made.tuner.result.last["learning_rate"]
    for name, logit in search.logits.items():  # the first step of Adam is the sign of the gradient, but for its epsilon
        gradient = search.gradients[0][name]
        expected = -rate * learning_rate * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(logit.detach(), expected, rtol=1e-3, atol=0.0)


def test_own_weight_decay(tmp_path):
    values = []
    for decay in (0.0, 0.5):
        made = setting(tmp_path / str(decay), steps=1)
        search = Soft(made, weight_decay=decay, unused=True)
        for logit in search.logits.values():
            logit.data.fill_(1.0)
        made.tuner.run(search)
        values.append(next(iter(search.logits.values())).detach().clone())
    rate = made.tuner.result.last["learning_rate"]
    torch.testing.assert_close(values[0] - values[1], torch.full_like(values[0], 0.5 * rate), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_micro_batches_and_checkpointing_equal_the_full_batch(tmp_path, micro_batch_size, checkpointing):
    whole = setting(tmp_path / "whole", steps=3)
    parts = setting(
        tmp_path / "parts", steps=3, micro_batch_size=micro_batch_size, gradient_checkpointing=checkpointing
    )
    searches = [Soft(whole), Soft(parts)]
    whole.tuner.run(searches[0])
    parts.tuner.run(searches[1])
    assert searches[0].entered == 3
    assert searches[1].entered == 3 * (4 if micro_batch_size == 1 else 2)
    assert_equal(searches[0].gradients[0], searches[1].gradients[0], rtol=1e-4, atol=1e-6)
    assert_equal(searches[0].state_dict(), searches[1].state_dict(), rtol=1e-3, atol=1e-4)


def test_lora_waits_without_moments_or_decay(tmp_path):
    made = setting(tmp_path, steps=6, weight_decay=0.1)
    start, weights = trainable(made.model), []
    made.tuner.observe = lambda _: weights.append(trainable(made.model))
    search = Soft(made, lora_from=3)
    made.tuner.run(search)
    for early in weights[:3]:
        assert_equal(start, early)
    assert any(not torch.equal(value, start[name]) for name, value in weights[3].items())
    group = next(g for g in made.space.groups if g.kind == "mlp_channel")
    factor = lora_factors(made.model, f"{group.name}.gate_proj").up
    assert made.tuner.optimizer.state[factor]["step"] == 3
    assert made.tuner.optimizer.state[search.logits[group.name]]["step"] == 6


def test_clipping_and_the_finite_check_see_own_gradients(tmp_path):
    class Poisoned(Soft):
        def penalty(self):
            return next(iter(self.logits.values())).sum() * (float("nan") if self.step == 1 else 1e6)

    made = setting(tmp_path, steps=3)
    search, values = Poisoned(made), []
    made.tuner.observe = lambda metrics: values.append((metrics["grad_norm"], search.state_dict()))
    assert made.tuner.run(search).skipped_steps == 1
    assert values[0][0] > 1e6
    assert_equal(values[0][1], values[1][1])
    assert len(search.gradients) == 2  # a skipped step calls no hook


def test_resume_continues_exactly(tmp_path):
    def begin(folder):
        made = setting(tmp_path / folder, steps=6, dropout=0.2)
        return made, Soft(made, rate=0.7, weight_decay=0.01, lora_from=2)

    whole, whole_search = begin("whole")
    whole.tuner.run(whole_search, fingerprint="f")
    stopped, stopped_search = begin("parts")
    stopped.tuner.observe = lambda metrics: os.kill(os.getpid(), signal.SIGTERM) if metrics["step"] == 3 else None
    with pytest.raises(Stopped):
        stopped.tuner.run(stopped_search, fingerprint="f")
    again, again_search = begin("parts")
    again.tuner.run(again_search, fingerprint="f", resume=True)
    assert_equal(trainable(whole.model), trainable(again.model))
    assert_equal(whole_search.state_dict(), again_search.state_dict())
