"""Whatever is not finite reaches no weight, no optimiser, no generator, no mask and no statistic."""

import json
import os
import signal
from contextlib import contextmanager, nullcontext

import pytest
import torch
from tiny_tuning import ATP, setting

from tuneprune import methods
from tuneprune.errors import NonFinite, TrainingDiverged
from tuneprune.methods.base import Search
from tuneprune.run import round_weights
from tuneprune.signals import Stopped
from tuneprune.structure.budget import Budget

STATEFUL = {
    "atp": {"control_limit": None},
    "atp-sampled": {"decisions": "sampled", "regulariser": "lasso", "compensate": False},
    "loraprune": {"every": 1},
    "apt": {"every": 1},
    "hesso": {"periods": 2},
    "pat": {},
    "disp_llm": {},
    "tomoe": {"prior_batches": 2, "generator_size": 8},
}
SPACES = {"pat": "residual", "disp_llm": "disp", "tomoe": "head_dim"}
STEPS, BAD = 8, 2
"""The bad step, counted from 0: one in which every method still decides."""


def begin(folder, name, **options):
    made = setting(folder, space_name=SPACES.get(name, "width"), steps=STEPS, **options)
    base = ATP if name.startswith("atp") else {"name": name}
    method = methods.build(base | STATEFUL[name])
    return made, method.begin(made.subject, Budget(keep=0.7))


def flat(value, path=""):
    """Every tensor and number of nested state, by where it is."""
    if isinstance(value, dict):
        return {k: v for name, item in value.items() for k, v in flat(item, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return flat(dict(enumerate(value)), path)
    return {path: value.detach().clone() if isinstance(value, torch.Tensor) else value}


def state_of(made, search):
    """All weights, the optimiser and the search's own state, its random streams apart."""
    own = {name: value for name, value in search.state_dict().items() if name not in ("noise", "random", "step")}
    parameters = dict(made.model.named_parameters())
    state = flat({"model": parameters, "optimizer": made.tuner.optimizer.state_dict()["state"], "search": own})
    return {name: value for name, value in state.items() if not name.endswith("/skipped")}  # only counts


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        equal = torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        assert equal, name


@contextmanager
def poisoned_loss(made, number, when):
    """The losses of the calls that `when` names, by number, become `number`, with gradients alike."""
    runtime, calls = made.tuner.runtime, []
    original = runtime.summed_loss

    def summed_loss(batch, **options):
        calls.append(batch)
        loss = original(batch, **options)
        return loss * number if when(len(calls) - 1) else loss

    runtime.summed_loss = summed_loss
    yield
    runtime.summed_loss = original


def poison_gradient(made, number):
    weight = next(p for p in made.model.parameters() if p.requires_grad)
    return weight.register_hook(lambda gradient: gradient * number)


def poison_activation(made, number):
    layer = made.model.get_submodule(made.architecture.blocks[1].path)
    return layer.register_forward_hook(
        lambda _, __, output: (output[0] * number, *output[1:]) if isinstance(output, tuple) else output * number
    )


KINDS = ["loss", "gradient", "activation", "data"]


@contextmanager
def poisoned(made, kind, number):
    """Forward and backward inside give bad numbers of one kind."""
    if kind == "gradient":
        handle = poison_gradient(made, number)
        yield
        handle.remove()
    elif kind == "activation":
        handle = poison_activation(made, number)
        yield
        handle.remove()
    elif kind == "loss":
        with poisoned_loss(made, number, lambda _: True):
            yield
    else:
        yield


@contextmanager
def unheard_token(made, number):
    """The next training batch has a token whose embedding is broken; no other data has it."""
    original = made.tuner.train_stream.next

    def draw():
        batch = original()
        batch["input_ids"][0, 0] = 1
        return batch

    made.tuner.train_stream.next = draw
    with torch.no_grad():
        made.model.get_input_embeddings().weight[1] = number
    yield
    made.tuner.train_stream.next = original


def tuning_step(made, search, kind, number):
    """A step whose tuning half is poisoned; the state after its decision and behind it."""
    before, entered = [], search.context

    @contextmanager
    def context():
        with entered():
            before.append(state_of(made, search))
            with poisoned(made, kind, number):
                yield

    search.context = context
    with unheard_token(made, number) if kind == "data" else nullcontext():
        made.tuner._step(search)
    search.context = entered
    return before[0], state_of(made, search)


@pytest.mark.parametrize("name", STATEFUL)
@pytest.mark.parametrize("kind", KINDS)
def test_bad_tuning_step_changes_nothing_and_the_run_goes_on(tmp_path, name, kind):
    number = float("nan") if kind in ("loss", "gradient") else float("inf")
    made, search = begin(tmp_path, name)
    made.tuner._build_optimizer(search)
    made.model.train()
    made.tuner.log.rewind(0)
    for _ in range(BAD):
        made.tuner._step(search)
    if kind == "gradient" and not search.trains_lora:
        pytest.skip("LoRA has no gradient in this phase")
    before, after = tuning_step(made, search, kind, number)
    before = {k: v for k, v in before.items() if k in after}  # a method may count its steps
    same(before, {k: after[k] for k in before})
    assert made.tuner.result.skipped_steps == 1
    assert made.tuner.result.steps == BAD + 1
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["step"] == BAD + 1
    (bad,) = line["bad"]
    assert bad["what"].startswith("gradient of " if kind == "gradient" else "loss")
    assert bad["batch"] == made.tuner.train_stream.last_origins() != []
    while made.tuner.result.steps < STEPS:
        made.tuner._step(search)
    assert made.tuner.result.skipped_steps == 1
    trained = [p for p in made.model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p).all() for p in trained)
    search.plan()


GENERATORS = ["atp", "atp-sampled", "tomoe"]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", GENERATORS)
def test_bad_calibration_step_changes_nothing_and_tuning_goes_on(tmp_path, name, number):
    made, search = begin(tmp_path, name)
    made.tuner._build_optimizer(search)
    made.model.train()
    made.tuner.log.rewind(0)
    for _ in range(BAD):
        made.tuner._step(search)
    before = state_of(made, search)
    handle = poison_activation(made, number)
    metrics = search.before_step(BAD)
    handle.remove()
    same(before, state_of(made, search))
    assert metrics["generator_skipped"] == 1
    made.tuner._step(search)
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["bad"][0]["what"] == "calibration"
    assert line["bad"][0]["batch"]
    assert line["skipped_steps"] == 0
    assert not all(torch.equal(value, before[key]) for key, value in state_of(made, search).items() if "model" in key)


def test_bad_activation_in_calibration_reaches_no_moment(tmp_path):
    made, search = begin(tmp_path, "atp")
    made.tuner._build_optimizer(search)
    made.tuner.log.rewind(0)
    made.tuner._step(search)
    before = flat(search.compensation.moments)
    handle = poison_activation(made, float("inf"))
    search.before_step(1)
    handle.remove()
    same(before, flat(search.compensation.moments))
    assert before


@pytest.mark.parametrize("name", ["atp", "tomoe"])
def test_bad_calibration_batches_of_the_prior_are_left_out(tmp_path, name):
    whole, _ = begin(tmp_path / "whole", name)
    made, search = begin(tmp_path / "one", name)
    with poisoned_loss(made, float("nan"), lambda call: call == 0):
        search._logits()
    assert made.tuner.health.counts == {"calibration": 1}
    assert all(torch.isfinite(score).all() for score in search._scores.values())
    whole.tuner.next_calibration()  # the one that was left out
    method = methods.build((ATP if name == "atp" else {"name": name}) | STATEFUL[name] | {"prior_batches": 1})
    other = method.begin(whole.subject, Budget(keep=0.7))
    other._logits()
    for key, score in search._scores.items():
        torch.testing.assert_close(score, other._scores[key])
    if name == "atp":
        same(flat(search.compensation.moments), flat(other.compensation.moments))


@pytest.mark.parametrize("name", ["hesso"])
def test_hesso_takes_the_next_calibration_batch(tmp_path, name):
    made, search = begin(tmp_path, name)
    made.tuner._build_optimizer(search)
    with poisoned_loss(made, float("nan"), lambda call: call == 0):
        search.before_step(search.bounds[0])
    assert search.marked == 1
    assert made.tuner.health.counts == {"calibration": 1}
    with poisoned_loss(made, float("nan"), lambda _: True), pytest.raises(NonFinite, match="None of 10"):
        search.before_step(search.bounds[1])


ONE_SHOT = [
    {"name": "flap"},
    {"name": "cfsp"},
    {"name": "wanda_sp"},
    {"name": "wanda_sp", "sequential": True},
    {"name": "minitron"},
    {"name": "llm_pruner"},
    {"name": "llm_pruner", "criterion": "mix"},
    {"name": "short"},
    {"name": "short", "contiguous": True},
    {"name": "slicegpt"},
    {"name": "slicegpt", "variant": "skip"},
]


def one_shot(folder, options, *, batches, draw_first=0, poison=None):
    """The plan of a one-shot method, after some calibration batches were drawn for nothing."""
    space_name = {"short": "depth", "slicegpt": "residual"}.get(options["name"], "width")
    made = setting(folder, space_name=space_name, lora=False, num_hidden_layers=4)
    for _ in range(draw_first):
        made.subject.calibration()
    handles = []
    if poison is not None:
        calls = []
        layer = made.model.get_submodule(made.architecture.blocks[-1].path)

        def change(_, __, output):
            calls.append(1)
            whole = output[0] if isinstance(output, tuple) else output
            return whole * (poison if len(calls) == 1 else 1.0)

        handles.append(layer.register_forward_hook(change))
    try:
        search = methods.build(options | {"batches": batches}).begin(made.subject, Budget(keep=0.75))
    finally:
        for handle in handles:
            handle.remove()
    return made, search.plan()


@pytest.mark.parametrize("options", ONE_SHOT, ids=lambda options: "-".join(map(str, options.values())))
def test_one_shot_methods_decide_without_the_bad_batch(tmp_path, options):
    made, plan = one_shot(tmp_path / "bad", options, batches=3, poison=float("nan"))
    assert made.tuner.health.counts == {"calibration": 1}
    assert made.tuner.findings()["bad_examples"][0]["batch"]
    if options.get("criterion") == "mix":
        return  # its gradients are by row, and only one row is left out
    other, expected = one_shot(tmp_path / "good", options, batches=2, draw_first=1)
    assert not other.tuner.health.counts
    masks, wanted = plan.masks(made.space), expected.masks(other.space)
    assert all(torch.equal(mask, wanted[name]) for name, mask in masks.items())


@pytest.mark.parametrize("options", ONE_SHOT, ids=lambda options: "-".join(map(str, options.values())))
def test_one_shot_methods_refuse_to_decide_by_nothing(tmp_path, options):
    space_name = {"short": "depth", "slicegpt": "residual"}.get(options["name"], "width")
    made = setting(tmp_path, space_name=space_name, lora=False)
    with torch.no_grad():
        made.model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(NonFinite, match=r"None of \d calibration batches gave finite numbers"):
        methods.build(options | {"batches": 2}).begin(made.subject, Budget(keep=0.75))


def test_bad_gradient_behind_a_finite_loss_is_left_out(tmp_path):
    made = setting(tmp_path, lora=False, num_hidden_layers=2)
    weight = made.model.get_parameter("model.layers.0.mlp.up_proj.weight")
    calls = []

    def poison(gradient):
        calls.append(1)
        return gradient * (float("nan") if len(calls) == 2 else 1.0)

    weight.register_hook(poison)
    methods.build({"name": "llm_pruner", "batches": 3}).begin(made.subject, Budget(keep=0.75))
    assert made.tuner.health.counts == {"calibration": 1}
    assert len(calls) == 2 + 2  # all but the bad one again


def test_resume_behind_a_bad_step_ends_the_same(tmp_path):
    def start(folder, *, stop_at=None, resume=False):
        made, search = begin(tmp_path / folder, "atp")
        calls = []
        original = made.tuner.runtime.summed_loss

        def summed_loss(batch, **options):
            calls.append(1)
            loss = original(batch, **options)
            return loss * float("nan") if made.tuner.health.step == BAD + 1 else loss

        made.tuner.runtime.summed_loss = summed_loss
        if stop_at is not None:
            made.tuner.observe = lambda m: os.kill(os.getpid(), signal.SIGTERM) if m["step"] == stop_at else None
        made.tuner.run(search, fingerprint="f", resume=resume)
        return made, search

    whole = start("whole")
    with pytest.raises(Stopped):
        start("parts", stop_at=BAD + 1)
    parts = start("parts", resume=True)
    same(state_of(*whole), state_of(*parts))
    assert whole[0].tuner.findings() == parts[0].tuner.findings()
    assert whole[0].tuner.findings()["bad_numbers"] == {"calibration": 1, "loss": 1}


def test_update_out_of_range_is_not_taken(tmp_path):
    made = setting(tmp_path, learning_rate=1e30, max_skipped=2)
    before = {name: p.detach().clone() for name, p in made.model.named_parameters()}
    with pytest.raises(TrainingDiverged, match=r"in its update .* weight beyond 1e\+15. Lower tune.learning_rate"):
        made.tuner.run(Search(), fingerprint="f")
    same(flat(before), flat(dict(made.model.named_parameters())))


class Alike(Search):
    """Makes every loss infinite by its penalty."""

    def __init__(self, model):
        self.model = model

    def penalty(self):
        return next(p for p in self.model.parameters() if p.requires_grad).sum() * float("inf")


def test_diagnosis_tells_data_from_diverged_tuning(tmp_path):
    made = setting(tmp_path / "base", max_skipped=2)
    with torch.no_grad():
        made.model.get_input_embeddings().weight.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"in its loss .* The base model alone gives a loss of nan"):
        made.tuner.run(Search(), fingerprint="f")
    made = setting(tmp_path / "tuned", max_skipped=2)
    with torch.no_grad():
        next(p for p in made.model.parameters() if p.requires_grad).fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"with LoRA it is not .* Lower tune.learning_rate"):
        made.tuner.run(Search(), fingerprint="f")
    made = setting(tmp_path / "method", max_skipped=2)
    with pytest.raises(TrainingDiverged, match=r"in its penalty .* Without the method's masks they give finite"):
        made.tuner.run(Alike(made.model), fingerprint="f")


def test_run_that_gave_up_has_as_many_tries_when_resumed(tmp_path):
    made = setting(tmp_path, max_skipped=2, steps=6)
    with pytest.raises(TrainingDiverged):
        made.tuner.run(Alike(made.model), fingerprint="f")
    again = setting(tmp_path, max_skipped=2, steps=6)
    with pytest.raises(TrainingDiverged, match="2 steps in a row"):
        again.tuner.run(Alike(again.model), fingerprint="f", resume=True)
    assert again.tuner.result.steps == 4
    last = setting(tmp_path, max_skipped=2, steps=6)
    result = last.tuner.run(Search(), fingerprint="f", resume=True)
    assert (result.steps, result.skipped_steps) == (6, 4)


def test_bad_generator_steps_in_a_row_end_the_run_with_its_state_saved(tmp_path):
    made, search = begin(tmp_path, "atp", max_skipped=3)
    search._logits()
    with (
        poisoned_loss(made, float("nan"), lambda call: call % 2 == 0),  # calibration first, then tuning
        pytest.raises(TrainingDiverged, match="3 calibration batches in a row"),
    ):
        made.tuner.run(search, fingerprint="f")
    assert (tmp_path / "checkpoints" / "step-000003").is_dir()
    assert made.tuner.result.skipped_steps == 0


def test_metrics_are_strict_json(tmp_path):
    made = setting(tmp_path, max_skipped=2)
    with pytest.raises(TrainingDiverged):
        made.tuner.run(Alike(made.model), fingerprint="f")

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
