import json
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from helpers.tiny_tuning import assert_equal, hooks_of, setting, trainable

from tuneprune.errors import PlanMismatch, TrainingDiverged
from tuneprune.methods.base import Search
from tuneprune.system.signals import Stopped


class Poison(Search):
    """Makes the loss of given steps (counted from 0), or one gradient, not a number."""

    def __init__(self, model, steps, gradient_only=False):
        self.model, self.steps, self.gradient_only = model, steps, gradient_only
        self.step, self.taken = 0, []

    def before_step(self, step):
        self.step = step
        return {}

    def penalty(self):
        if self.step not in self.steps:
            return None
        weight = next(p for p in self.model.parameters() if p.requires_grad)
        # the root has an infinite derivative at 0 and a finite value
        return (weight - weight.detach()).abs().sqrt().sum() if self.gradient_only else weight.sum() * float("nan")

    def after_step(self, learning_rate):
        self.taken.append(self.step)


@pytest.mark.parametrize("gradient_only", [False, True])
def test_non_finite_step_leaves_the_weights_alone(tmp_path, gradient_only):
    made = setting(tmp_path)
    search = Poison(made.model, {2, 3}, gradient_only)
    weights = []
    made.tuner.observe = lambda _: weights.append(trainable(made.model))
    result = made.tuner.run(search)
    assert result.steps == 6
    assert result.skipped_steps == 2
    assert search.taken == [0, 1, 4, 5]
    assert_equal(weights[1], weights[2])
    assert_equal(weights[1], weights[3])
    assert not torch.equal(*(next(iter(w.values())) for w in (weights[3], weights[4])))
    assert all(torch.isfinite(value).all() for value in weights[-1].values())
    last = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["skipped_steps"] == 2


def test_too_many_non_finite_steps_end_the_run(tmp_path):
    made = setting(tmp_path, max_skipped=3)
    start = trainable(made.model)
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row .* Lower tune.learning_rate"):
        made.tuner.run(Poison(made.model, set(range(6))), fingerprint="f")
    assert_equal(start, trainable(made.model))
    assert (tmp_path / "checkpoints" / "step-000003").is_dir()


def test_good_step_resets_the_count(tmp_path):
    made = setting(tmp_path, max_skipped=2)
    assert made.tuner.run(Poison(made.model, {0, 2, 4})).skipped_steps == 3


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_equal_the_full_batch(tmp_path, micro_batch_size):
    whole, parts = setting(tmp_path / "whole"), setting(tmp_path / "parts", micro_batch_size=micro_batch_size)
    results = [made.tuner.run(made.begin(regulariser="lasso")) for made in (whole, parts)]
    assert results[0].last["loss"] == pytest.approx(results[1].last["loss"], rel=1e-4)
    assert_equal(trainable(whole.model), trainable(parts.model), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("space_name", ["width", "head_dim", "disp", "depth"])
@pytest.mark.parametrize("lora_aware", [True, False])
def test_gradient_checkpointing_gives_the_same_run(tmp_path, space_name, lora_aware):
    weights, plans, forwards = [], [], []
    for checkpointing in (False, True):
        made = setting(
            tmp_path / str(checkpointing), space_name=space_name, gradient_checkpointing=checkpointing, dropout=0.1
        )
        search = made.begin(lora_aware=lora_aware, control_share=0.5)
        calls = []
        counter = made.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, seen=calls: seen.append(1))
        made.tuner.run(search)
        counter.remove()
        forwards.append(len(calls))
        weights.append(trainable(made.model))
        plans.append({name: mask.tolist() for name, mask in search.plan().masks(made.space).items()})
        assert not any(getattr(module, "gradient_checkpointing", False) for module in made.model.modules())
    assert forwards[1] == 2 * forwards[0]
    assert plans[0] == plans[1]
    assert_equal(*weights, rtol=1e-5, atol=1e-6)


def test_loss_is_the_mean_over_tokens_with_a_label(tmp_path):
    made = setting(tmp_path)
    batch = made.tuner.next_calibration()
    with torch.no_grad():
        logits = made.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        losses = [
            -logits[row, position - 1].log_softmax(-1)[label]
            for row, labels in enumerate(batch["labels"])
            for position, label in enumerate(labels)
            if position and label != -100
        ]
        assert made.tuner.runtime.loss(batch).item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


def test_frozen_weights_stay_and_training_mode_ends(tmp_path):
    made = setting(tmp_path)
    frozen = {name: p.clone() for name, p in made.model.named_parameters() if not p.requires_grad}
    start = trainable(made.model)
    made.tuner.run(Search())
    assert_equal(frozen, {name: p for name, p in made.model.named_parameters() if not p.requires_grad})
    assert any(not torch.equal(start[name], value) for name, value in trainable(made.model).items())
    assert not made.model.training
    assert hooks_of(made.model) == 0


def test_signal_saves_and_resume_continues_exactly(tmp_path):
    whole = setting(tmp_path / "whole", dropout=0.2)
    whole_search = whole.begin()
    whole.tuner.run(whole_search, fingerprint="f")

    stopped = setting(tmp_path / "parts", dropout=0.2)
    stopped.tuner.observe = lambda metrics: os.kill(os.getpid(), signal.SIGTERM) if metrics["step"] == 3 else None
    with pytest.raises(Stopped, match=r"step 3.*--resume"):
        stopped.tuner.run(stopped.begin(), fingerprint="f")

    resumed = setting(tmp_path / "parts", dropout=0.2)
    search = resumed.begin()
    assert resumed.tuner.run(search, fingerprint="f", resume=True).steps == 6
    assert_equal(trainable(whole.model), trainable(resumed.model))
    assert_equal(whole_search.masks(), search.masks())
    logged = [json.loads(line)["step"] for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    assert logged == [1, 2, 3, 4, 5, 6]


def test_resume_refuses_other_settings(tmp_path):
    made = setting(tmp_path)
    made.tuner.run(Search(), fingerprint="this")
    with pytest.raises(PlanMismatch, match=r"other settings or data.*--out"):
        setting(tmp_path).tuner.run(Search(), fingerprint="other", resume=True)


def test_resume_drops_steps_that_were_logged_after_the_checkpoint(tmp_path):
    made = setting(tmp_path, steps=4)
    made.tuner.run(Search(), fingerprint="f")
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')  # as killed while writing
    setting(tmp_path).tuner.run(Search(), fingerprint="f", resume=True)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_log_has_the_documented_keys(tmp_path):
    made = setting(tmp_path)
    made.tuner.run(made.begin(regulariser="lasso"))
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first.keys() >= {
        "step",
        "loss",
        "kept_share",
        "budget_loss",
        "lasso",
        "mask_churn",
        "tokens_per_s",
        "memory_bytes",
        "learning_rate",
        "grad_norm",
    }
    assert 0 < first["kept_share"] <= 1


def test_log_every(tmp_path):
    setting(tmp_path, log_every=4).tuner.run(Search())
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 4, 6]


def test_bf16_autocast_keeps_weights_in_float32(tmp_path):
    made = setting(tmp_path, precision="bf16", steps=2)
    result = made.tuner.run(made.begin())
    assert all(value.dtype == torch.float32 for value in trainable(made.model).values())
    assert result.last["loss"] > 0


def test_averages_over_processes_keep_double_precision(tmp_path, monkeypatch):
    tuner = setting(tmp_path).tuner
    tuner.accelerator = SimpleNamespace(num_processes=2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.mul_(2))  # a second, equal process
    values = [torch.tensor([1 + 1e-12], dtype=torch.double), torch.tensor(0.1), torch.tensor([[0.5]]).bfloat16()]
    before = [value.clone() for value in values]
    tuner.runtime.average(values)
    assert all(torch.equal(now, then) for now, then in zip(values, before, strict=True))
