"""ATP with the generator's gradients from the backward pass of the tuning batch."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny_tuning import assert_equal, hooks_of, setting, within_one_unit

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.errors import ConfigError


def test_training_gradients_need_no_calibration_batch(tmp_path):
    made = setting(tmp_path, steps=8)
    budget = Budget(keep=0.7)
    search = made.begin(budget, gate_gradients="training", generator_learning_rate=0.5, control_share=0.5, cut="freeze")
    drawn, seen = [], []
    calibration = made.subject.calibration
    search.subject = replace(made.subject, calibration=lambda: drawn.append(search.step) or calibration())
    before = {name: value.clone() for name, value in search.generator.state_dict().items()}
    made.tuner.observe = lambda metrics: seen.append("generator_grad_norm" in metrics)
    made.tuner.run(search)
    assert set(drawn) == {0}  # the prior's batches
    assert seen == [False, True, True, True]  # what was learnt in the step before
    assert any(not torch.equal(value, before[name]) for name, value in search.generator.state_dict().items())
    assert within_one_unit(made.space, search.plan().masks(made.space), budget)
    assert hooks_of(made.model) == 0


def test_training_gradients_are_those_of_the_hard_masks(tmp_path):
    """A leaf's gradient is the derivative of the tuning loss, and the generator gets it straight through."""
    made = setting(tmp_path, steps=8)
    search = made.begin(gate_gradients="training", lora_aware=False, compensate=False, generator_clip=1e9)
    found, batch = [], made.tuner.runtime.to_device(made.tuner.train_stream.next())
    search._learn = lambda _, own, gates, *__: found.extend([own, gates]) or ({}, True)
    search.before_step(0)
    with search.context():
        (made.tuner.runtime.summed_loss(batch) / made.tuner.runtime.mean_tokens(batch)).backward()
    search.after_backward()
    own, gates = found
    masks = {name: mask.clone().requires_grad_() for name, mask in search.masks().items()}
    with search.gates(masks):
        expected = torch.autograd.grad(made.tuner.runtime.loss(batch), list(masks.values()))
    assert_equal(gates, dict(zip(masks, expected, strict=True)), rtol=1e-4, atol=1e-7)
    assert all(torch.isfinite(gradient).all() for gradient in own)
    assert any(gradient.any() for gradient in own)


def test_training_gradients_refuse_samples():
    with pytest.raises(ConfigError, match="gate_gradients=training needs decisions=on_budget"):
        methods.build({"name": "atp", "gate_gradients": "training", "decisions": "sampled"})
