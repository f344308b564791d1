"""Each watch warns once about what it is for, and never about a healthy run."""

import json
import math

import pytest
import torch
from helpers.tiny_tuning import setting

from tuneprune.methods.base import Search
from tuneprune.train.watches import LOSS_WINDOW, SPIKE, SPIKE_WINDOW, Watches


def feed(watches, count, **metrics):
    found = []
    for _ in range(count):
        watches.step = getattr(watches, "step", 0) + 1
        healthy = {"step": watches.step, "steps": 1000, "phase": "tune", "loss": 2.0, "grad_norm": 1.0}
        found += watches.see(healthy | {"skipped_steps": 0} | metrics)
    return [finding.what for finding in found]


def test_gradient_spike():
    watches = Watches()
    assert not feed(watches, SPIKE_WINDOW)
    assert not feed(watches, 1, grad_norm=SPIKE)
    assert not feed(watches, 1, grad_norm=math.nan)  # a bad step is not a spike
    assert feed(watches, 2, grad_norm=SPIKE + 0.1) == ["gradient spike"]
    (finding,) = watches.warnings
    assert (finding.step, finding.value, finding.limit) == (SPIKE_WINDOW + 3, SPIKE + 0.1, SPIKE)


def test_few_gradients_give_no_warning():
    watches = Watches()
    feed(watches, SPIKE_WINDOW - 1)
    assert not feed(watches, 1, grad_norm=1e6)


def test_rising_loss():
    watches = Watches()
    assert not feed(watches, 2 * LOSS_WINDOW)
    assert not feed(watches, LOSS_WINDOW, loss=2.9)
    assert feed(watches, LOSS_WINDOW, loss=3.2) == ["rising loss"]


def test_loss_may_rise_while_units_are_removed_and_afterwards():
    watches = Watches()
    feed(watches, 2 * LOSS_WINDOW, phase="control", loss=1.0)
    assert not feed(watches, 2 * LOSS_WINDOW, phase="control", loss=4.0)
    assert not feed(watches, 2 * LOSS_WINDOW, phase="frozen", loss=4.0)


@pytest.mark.parametrize(
    ("skipped", "steps", "warned"),
    [(50, 1000, []), (51, 1000, ["skipped steps"]), (3, 8, []), (4, 8, ["skipped steps"])],
)
def test_skipped_steps(skipped, steps, warned):
    assert feed(Watches(), 1, skipped_steps=skipped, steps=steps) == warned


def control(watches, count=10, **metrics):
    return feed(watches, count, **({"phase": "control", "generator_grad_norm": 0.1, "mask_churn": 0.1} | metrics))


def test_generator_that_does_not_move():
    watches = Watches()
    assert not control(watches, generator_grad_norm=1e-12)
    assert feed(watches, 1, phase="frozen") == ["still generator"]
    watches = Watches()
    assert not control(watches, mask_churn=0.0)
    assert feed(watches, 1, phase="frozen") == ["still masks"]
    watches = Watches()
    control(watches)
    assert not feed(watches, 1, phase="frozen")


def test_missed_budget():
    watches = Watches()
    control(watches, budget_loss=0.2, kept_share=0.75)
    assert feed(watches, 1, phase="frozen", kept_share=0.6) == ["missed budget"]
    assert watches.warnings[0].value == pytest.approx(0.25)
    watches = Watches()
    control(watches, budget_loss=0.01, kept_share=0.62)
    assert not feed(watches, 1, phase="frozen", kept_share=0.6)


def test_state_is_restored_exactly():
    watches = Watches()
    control(watches, mask_churn=0.0)
    again = Watches()
    again.load_state_dict(json.loads(json.dumps(watches.state_dict())))
    again.step = watches.step
    assert feed(again, 1, phase="frozen") == feed(watches, 1, phase="frozen") == ["still masks"]
    assert again.summary() == watches.summary()


def test_healthy_tuning_warns_of_nothing(tmp_path):
    made = setting(tmp_path, steps=60, learning_rate=0.003)
    made.tuner.run(made.begin())
    assert made.tuner.findings() == {"bad_numbers": {}, "bad_examples": [], "warnings": []}


def test_warning_is_logged_shown_and_kept_over_a_resume(tmp_path):
    class Kick(Search):
        """A gradient that is far larger in one step."""

        def __init__(self, model):
            self.model = model

        def before_step(self, step):
            self.step = step
            return {}

        def penalty(self):
            weight = next(p for p in self.model.parameters() if p.requires_grad)
            return (weight - weight.detach()).sum() * (1e4 if self.step == SPIKE_WINDOW + 3 else 0.0)

    notes = []
    made = setting(tmp_path, steps=SPIKE_WINDOW + 8, log_every=1000, learning_rate=1e-4)
    made.tuner.note = notes.append
    made.tuner.run(Kick(made.model), fingerprint="f")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "warnings" in line] == [SPIKE_WINDOW + 4]
    assert notes[0].startswith(f"gradient spike at step {SPIKE_WINDOW + 4}: ")
    again = setting(tmp_path, steps=SPIKE_WINDOW + 8, log_every=1000, learning_rate=1e-4)
    again.tuner.run(Kick(again.model), fingerprint="f", resume=True)
    assert again.tuner.findings() == made.tuner.findings()
    assert all(torch.isfinite(p).all() for p in made.model.parameters())
