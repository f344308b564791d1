"""Numbers that are not finite never reach a weight, an optimiser, a generator, a mask or a statistic."""

import itertools
import json
import os
import signal

import pytest
import torch
from helpers.injections import (
    GENERATORS,
    KINDS,
    LEFT_OUT,
    ONE_SHOT,
    OTHERS,
    SPACES,
    STATEFUL,
    UNUSED,
    begin,
    into_calibration,
    into_decision,
    into_period,
    into_prior,
    into_tuning,
    start,
)
from helpers.poison import difference, flat, poison_activation, poison_gradient, poisoned_loss, state_of
from helpers.sweeps import quick_where
from helpers.tiny_tuning import setting

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.errors import NonFinite, TrainingDiverged
from tuneprune.methods.base import Search
from tuneprune.pipeline.run import round_weights
from tuneprune.system.signals import Stopped

NAN, INF = float("nan"), float("inf")
BAD = 2
"""The bad step, counted from 0: one in which every method still decides."""


@pytest.mark.parametrize(
    ("name", "kind"),
    quick_where(lambda name, kind: name == "atp" or kind == "gradient", itertools.product(STATEFUL, KINDS)),
)
def test_bad_tuning_step_changes_nothing_and_the_run_goes_on(tmp_path, name, kind):
    number = NAN if kind in ("loss", "gradient") else INF
    is_unused = (name, kind) == ("disp_llm", "gradient")
    assert into_tuning(tmp_path, name, kind, number, BAD) == (UNUSED if is_unused else LEFT_OUT)


@pytest.mark.parametrize("number", [NAN, INF])
@pytest.mark.parametrize("name", GENERATORS)
def test_bad_calibration_step_changes_nothing_and_tuning_goes_on(tmp_path, name, number):
    assert into_calibration(tmp_path, name, number, BAD) == LEFT_OUT


@pytest.mark.parametrize("name", ["atp", "tomoe"])
def test_bad_calibration_batches_of_the_prior_are_left_out(tmp_path, name):
    assert into_prior(tmp_path, name, NAN, 0) == OTHERS


def test_hesso_takes_the_next_calibration_batch(tmp_path):
    assert into_period(tmp_path, "hesso", NAN, 0) == OTHERS


def test_hesso_refuses_to_decide_without_data(tmp_path):
    made, search = start(tmp_path, "hesso", 0)
    with poisoned_loss(made, NAN, lambda _: True), pytest.raises(NonFinite, match="None of 10"):
        search.before_step(search.bounds[0])


@pytest.mark.parametrize("options", ONE_SHOT, ids=lambda options: "-".join(map(str, options.values())))
def test_one_shot_methods_decide_without_the_bad_batch(tmp_path, options):
    assert into_decision(tmp_path, options, "activation", NAN, 0) == OTHERS


def test_bad_activation_in_calibration_reaches_no_moment(tmp_path):
    made, search = start(tmp_path, "atp", 1)
    before = flat(search.compensation.moments)
    handle = poison_activation(made, INF)
    search.before_step(1)
    handle.remove()
    assert before
    assert not difference(before, flat(search.compensation.moments))


@pytest.mark.parametrize("options", ONE_SHOT, ids=lambda options: "-".join(map(str, options.values())))
def test_one_shot_methods_refuse_to_decide_without_data(tmp_path, options):
    made = setting(tmp_path, space_name=SPACES.get(options["name"], "width"), lora=False)
    with torch.no_grad():
        made.model.get_input_embeddings().weight.fill_(INF)
    with pytest.raises(NonFinite, match=r"None of \d calibration batches gave finite numbers"):
        methods.build(options | {"batches": 2}).begin(made.subject, Budget(keep=0.75))


def test_bad_gradient_of_a_finite_loss_is_left_out(tmp_path):
    made = setting(tmp_path, lora=False, num_hidden_layers=2)
    weight = made.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * (NAN if len(calls) == 2 else 1.0)

    weight.register_hook(poison)
    methods.build({"name": "llm_pruner", "batches": 3}).begin(made.subject, Budget(keep=0.75))
    assert made.tuner.health.counts == {"calibration": 1}
    assert len(calls) == 2 + 2  # all except the bad one again


def test_resume_after_a_bad_step_ends_the_same(tmp_path):
    def start(folder, *, stop_at=None, resume=False):
        made, search = begin(tmp_path / folder, "atp")
        calls = []
        original = made.tuner.runtime.summed_loss

        def summed_loss(batch, **options):
            calls.append(1)
            loss = original(batch, **options)
            return loss * NAN if made.tuner.health.step == BAD + 1 else loss

        made.tuner.runtime.summed_loss = summed_loss
        if stop_at is not None:
            made.tuner.observe = lambda m: os.kill(os.getpid(), signal.SIGTERM) if m["step"] == stop_at else None
        made.tuner.run(search, fingerprint="f", resume=resume)
        return made, search

    whole = start("whole")
    with pytest.raises(Stopped):
        start("parts", stop_at=BAD + 1)
    parts = start("parts", resume=True)
    assert not difference(state_of(*whole), state_of(*parts))
    assert whole[0].tuner.findings() == parts[0].tuner.findings()
    assert whole[0].tuner.findings()["bad_numbers"] == {"calibration": 1, "loss": 1}


def test_update_out_of_range_is_not_taken(tmp_path):
    made = setting(tmp_path, learning_rate=1e30, max_skipped=2)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    with pytest.raises(TrainingDiverged, match=r"in its update .* weight beyond 1e\+15. Lower tune.learning_rate"):
        made.tuner.run(Search(), fingerprint="f")
    assert not difference(flat(before), flat(dict(made.model.named_parameters())))


class Infinite(Search):
    """Makes every loss infinite by its penalty."""

    def __init__(self, model):
        self.model = model

    def penalty(self):
        return next(p for p in self.model.parameters() if p.requires_grad).sum() * INF


def test_diagnosis_tells_data_from_diverged_tuning(tmp_path):
    made = setting(tmp_path / "base", max_skipped=2)
    with torch.no_grad():
        made.model.get_input_embeddings().weight.fill_(INF)
    with pytest.raises(TrainingDiverged, match=r"in its loss .* The base model alone gives a loss of nan"):
        made.tuner.run(Search(), fingerprint="f")
    made = setting(tmp_path / "tuned", max_skipped=2)
    with torch.no_grad():
        next(p for p in made.model.parameters() if p.requires_grad).fill_(INF)
    with pytest.raises(TrainingDiverged, match=r"with LoRA it is not .* Lower tune.learning_rate"):
        made.tuner.run(Search(), fingerprint="f")
    made = setting(tmp_path / "method", max_skipped=2)
    with pytest.raises(TrainingDiverged, match=r"in its penalty .* Without the method's masks they give finite"):
        made.tuner.run(Infinite(made.model), fingerprint="f")


def test_resumed_run_has_as_many_tries_again(tmp_path):
    made = setting(tmp_path, max_skipped=2, steps=6)
    with pytest.raises(TrainingDiverged):
        made.tuner.run(Infinite(made.model), fingerprint="f")
    again = setting(tmp_path, max_skipped=2, steps=6)
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        again.tuner.run(Infinite(again.model), fingerprint="f", resume=True)
    assert again.tuner.result.steps == 4
    last = setting(tmp_path, max_skipped=2, steps=6)
    result = last.tuner.run(Search(), fingerprint="f", resume=True)
    assert (result.steps, result.skipped_steps) == (6, 4)


def test_bad_generator_steps_in_a_row_end_the_run_with_its_state_saved(tmp_path):
    made, search = begin(tmp_path, "atp", max_skipped=3)
    search._logits()
    with (
        poisoned_loss(made, NAN, lambda call: call % 2 == 0),  # calibration first, then tuning
        pytest.raises(TrainingDiverged, match="3 calibration batches in a row"),
    ):
        made.tuner.run(search, fingerprint="f")
    assert (tmp_path / "checkpoints" / "step-000003").is_dir()
    assert made.tuner.result.skipped_steps == 0


def test_metrics_are_strict_json(tmp_path):
    made = setting(tmp_path, max_skipped=2)
    with pytest.raises(TrainingDiverged):
        made.tuner.run(Infinite(made.model), fingerprint="f")

    def refuse(name):
        raise AssertionError(name)

    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["penalty"] in ("Infinity", "-Infinity", "NaN")


def test_weights_that_the_stored_precision_cannot_hold_are_refused(tmp_path):
    made = setting(tmp_path, lora=False)
    with torch.no_grad():
        made.model.lm_head.weight[0, 0] = 1e5
    assert round_weights(made.model, torch.bfloat16).lm_head.weight[0, 0] == torch.tensor(1e5).bfloat16()
    with pytest.raises(NonFinite, match=r"`lm_head.weight` was tuned to .*e\+04, which float16"):
        round_weights(made.model, torch.float16)


def test_tuning_without_any_step_is_an_error(tmp_path):
    made = setting(tmp_path, max_skipped=10, steps=4)
    with pytest.raises(TrainingDiverged, match="4 steps in a row"):
        made.tuner.run(Infinite(made.model), fingerprint="f")
    assert (tmp_path / "checkpoints" / "step-000004").is_dir()


def test_diagnosis_of_a_bad_gradient_of_a_finite_loss(tmp_path):
    made = setting(tmp_path, max_skipped=2)
    poison_gradient(made, float("nan"))
    with pytest.raises(TrainingDiverged, match=r"in its gradient .* losses are finite, but the gradients are not"):
        made.tuner.run(Search(), fingerprint="f")
