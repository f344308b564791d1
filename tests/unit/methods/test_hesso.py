"""HESSO: its saliencies and lines to zero by hand, the corrective cycle, and that it goes on where it stopped."""

import math

import pytest
import torch
from helpers.tiny_tuning import assert_equal, hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget, allocate, count_parameters
from tuneprune.calibration.gradients import UnitGradients, unit_gradients
from tuneprune.errors import ConfigError, UnsupportedModel
from tuneprune.methods import hesso
from tuneprune.methods.hesso import Hesso, corrected_saliency, period_bounds, probed_saliency, saliency
from tuneprune.structure.masks import Gates
from tuneprune.structure.weights import base_module, base_weight, effective_weight, lora_norms
from tuneprune.train.runtime import activation_checkpointing


def begin(made, budget=None, **options):
    return methods.build({"name": "hesso", **options}).begin(made.subject, budget or Budget())


def same_batch(made):
    """The subject with one calibration batch for ever."""
    batch = made.tuner.next_calibration()
    made.subject.__dict__["calibration"] = lambda: batch
    return batch


def channels(made):
    return next(group for group in made.space.groups if group.kind == "mlp_channel" and group.layer == 0)


@pytest.mark.parametrize("variant", ["llama", "phi3", "qwen2", "qwen3"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_unit_gradients_are_those_of_autograd_and_leave_nothing(tmp_path, variant, checkpointing):
    made = setting(tmp_path, variant=variant, space_name="head_dim")
    for name, parameter in made.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.1)
    batch = same_batch(made)
    made.model.train()
    with activation_checkpointing(made.model, checkpointing):
        found = unit_gradients(made.subject)
    assert all(p.grad is None for p in made.model.parameters())
    for group in made.space.groups:
        weights = [base_weight(made.model, piece.param) for piece in group.slices]
        assert not any(weight.requires_grad or weight._post_accumulate_grad_hooks for weight in weights)
        for weight in weights:
            weight.requires_grad_(True)
        gradients = torch.autograd.grad(made.tuner.runtime.loss(batch), weights)
        entries = [[], []]
        for piece, gradient in zip(group.slices, gradients, strict=True):
            rows = piece.segment.positions(torch.tensor([1]))
            for kind, tensor in enumerate((effective_weight(made.model, piece.param), gradient)):
                entries[kind].append(tensor.index_select(piece.dim, rows).detach().flatten())
        w, g = torch.cat(entries[0]).double(), torch.cat(entries[1]).double()
        assert found.inner[group.name][1].item() == pytest.approx((w @ g).item(), rel=1e-3, abs=1e-7)
        assert found.gradient_squares[group.name][1].item() == pytest.approx((g @ g).item(), rel=1e-4)
        assert found.weight_squares[group.name][1].item() == pytest.approx((w @ w).item(), rel=1e-4)
        assert found.weight_means[group.name][1].item() == pytest.approx(w.abs().mean().item(), rel=1e-4)
        for weight in weights:
            weight.requires_grad_(False)


def numbers(**values):
    return {name: torch.tensor(value, dtype=torch.double) for name, value in values.items()}


def test_saliency_by_hand():
    sums = UnitGradients(
        inner=numbers(a=[-3.0, 0.0], b=[4.0]),
        gradient_squares=numbers(a=[4.0, 1.0], b=[25.0]),
        weight_squares=numbers(a=[9.0, 0.0], b=[16.0]),
        weight_means=numbers(a=[0.6, 0.0], b=[0.8]),
    )
    cosines = (1 - 3 / 6, 1.0, 1 + 4 / 20)
    halves = (4.5, 0.0, 8.0)
    length = math.sqrt(sum(value**2 for value in cosines)), math.hypot(4.5, 8.0)
    expected = [
        0.2 * (norm / 5 + mean / 1 + cosine / length[0] + absolute / 5 + half / length[1])
        for norm, mean, cosine, absolute, half in zip((3, 0, 4), (0.6, 0, 0.8), cosines, (3, 0, 4), halves, strict=True)
    ]
    found = saliency(sums)
    assert [*found["a"].tolist(), *found["b"].tolist()] == pytest.approx(expected)


def test_periods_by_hand():
    assert period_bounds(Hesso(), 100) == [10, 14, 18, 22, 26, 30, 34, 38, 42, 46, 50]
    assert period_bounds(Hesso(periods=2), 9) == [1, 3, 4]
    assert period_bounds(Hesso(), 1) == [0, 1]
    assert period_bounds(Hesso(start_share=0.99, end_share=1.0), 3) == [2, 3]


def test_marked_units_fall_on_a_line_to_exact_zero(tmp_path):
    made = setting(tmp_path, steps=12)
    budget = Budget(keep=0.6)
    search = begin(made, budget, start_share=2 / 12, end_share=10 / 12, periods=2)
    gates, hard, norms, phases = [], [], [], []

    def note(metrics):
        gates.append(search.soft_masks(search.step))
        hard.append(dict(search.masks()))
        norms.append({group.name: lora_norms(made.model, group).detach().clone() for group in made.space.groups})
        phases.append(metrics["phase"])

    made.tuner.observe = note
    made.tuner.run(search)
    for first, marked in ((2, hard[2]), (6, hard[6])):  # two periods of four steps
        falling = {name: (hard[first - 1][name] - mask) > 0 for name, mask in marked.items()}
        assert any(units.any() for units in falling.values())
        for name, units in falling.items():
            for step in range(4):
                assert torch.allclose(gates[first + step][name][units], torch.tensor(1 - step / 4))
            for step in range(first + 3, 10):  # after the period's last step LoRA is zero, then the gate too
                assert not norms[step][name][units].any()
                assert step == first + 3 or not gates[step][name][units].any()
    total = made.space.num_parameters
    assert [count_parameters(made.space, masks) <= total * keep for masks, keep in ((hard[2], 0.8), (hard[6], 0.6))]
    assert count_parameters(made.space, hard[2]) > 0.8 * total - 2000
    assert phases == ["control"] * 10
    plan = search.plan()
    assert plan.provenance["lora_residue"]["before_projection"] == 0
    assert_equal(hard[-1], plan.masks(made.space))
    assert hooks_of(made.model) == 0


def test_last_period_may_end_with_the_run(tmp_path):
    made = setting(tmp_path, steps=5)
    search = begin(made, end_share=1.0)
    made.tuner.run(search)
    assert search.plan().provenance["lora_residue"]["before_projection"] == 0


def test_probe_undoes_the_gate_on_what_reads_a_unit(tmp_path):
    """With a gate c on a channel, <w, g> of its readers is c times the derivative by the gate."""
    made = setting(tmp_path)
    batch, group, gates = same_batch(made), channels(made), Gates(made.model, made.space)
    nothing = {name: torch.zeros_like(mask) for name, mask in made.space.ones().items()}
    assert_equal(probed_saliency(made.subject, gates, nothing, 0.5), saliency(unit_gradients(made.subject)))
    masks = made.space.ones()
    masks[group.name][3] = 0.25
    masks[group.name].requires_grad_()
    with gates(masks):
        slope = torch.autograd.grad(made.tuner.runtime.loss(batch), masks[group.name])[0][3].item()
    reader = next(piece.param for piece in group.slices if piece.dim == 1)
    weight = base_weight(made.model, reader)
    weight.requires_grad_(True)
    masks[group.name].requires_grad_(False)
    with gates(masks):
        gradient = torch.autograd.grad(made.tuner.runtime.loss(batch), weight)[0]
    weight.requires_grad_(False)
    assert (gradient * weight)[:, 3].sum().item() / 0.25 == pytest.approx(slope, rel=1e-3)


def test_corrective_cycle_expels_what_proves_indispensable(tmp_path, monkeypatch):
    made = setting(tmp_path)
    budget, group = Budget(keep=0.8), channels(made)
    draw = torch.Generator().manual_seed(0)
    first = {g.name: 1 + torch.rand(g.size, generator=draw).double() for g in made.space.groups}
    first[group.name][5] = 0.0  # looks redundant
    probed = []

    def probe(subject, gates, violating, fallen):
        probed.append((fallen, {name: mask.clone() for name, mask in violating.items()}))
        grown = {name: score.clone() for name, score in first.items()}
        grown[group.name][5] = 40.0
        return grown

    monkeypatch.setattr(hesso, "unit_gradients", lambda _: None)
    monkeypatch.setattr(hesso, "saliency", lambda _: first)
    monkeypatch.setattr(hesso, "probed_saliency", probe)
    scores = corrected_saliency(made.subject, budget, 10)
    assert not allocate(first, made.space, budget)[group.name][5]
    assert allocate(scores, made.space, budget)[group.name][5]
    assert scores[group.name][5].item() == pytest.approx(30)  # the mean of 0, 40, 40, 40
    assert [fallen for fallen, _ in probed] == [0.25, 0.5, 0.75] * (len(probed) // 3)
    assert 3 < len(probed) <= 30  # what took its place was probed as well
    cycles = [masks for _, masks in probed[::3]]
    assert all(sum(masks[name] for masks in cycles).max() <= 1 for name in first)  # nobody twice


@pytest.mark.parametrize("space_name", ["width", "head_dim", "disp"])
def test_corrective_preset_meets_the_budget(tmp_path, space_name):
    made = setting(tmp_path, steps=4, space_name=space_name)
    search = methods.build({"name": "hesso-cric"}).begin(made.subject, Budget(keep=0.65))
    made.tuner.run(search)
    plan = search.plan()
    assert plan.provenance["method"]["name"] == "hesso-cric"
    assert count_parameters(made.space, plan.masks(made.space)) <= Budget(keep=0.65).target(made.space)


def test_the_end_comes_after_the_start():
    with pytest.raises(ConfigError, match=r"start_share=0.5 must be below end_share=0.5"):
        methods.build({"name": "hesso", "start_share": 0.5, "end_share": 0.5})


def test_quantised_weights_are_refused_before_training(tmp_path):
    made = setting(tmp_path)
    linear = base_module(made.model, "model.layers.1.mlp.up_proj")
    linear.weight = torch.nn.Parameter(linear.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match=r"up_proj\.weight` is stored as int8.*or a method that works"):
        begin(made)
