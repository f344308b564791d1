"""Least-squares compensation: against closed forms, and on whole models."""

import pytest
import torch
from helpers.tiny_tuning import hooks_of, setting

from tuneprune.compress.compensate import gated_inputs
from tuneprune.methods.atp.compensation import Compensation, ridge_update
from tuneprune.structure.masks import Gates
from tuneprune.structure.weights import base_weight


def removing_channels(space, units):
    masks = space.ones()
    group = next(group for group in space.groups if group.kind == "mlp_channel")
    masks[group.name][units] = 0.0
    return masks, next(gate.module for gate in group.gates)


def forward(made, batch):
    arguments = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
    with torch.no_grad():
        return made.model(**arguments).logits


def see(compensation, made, *batches, masks=None):
    """Watch batches, each one twice as activation checkpointing runs it."""
    for batch in batches:
        with compensation.watching(), Gates(made.model, made.space)(masks or made.space.ones()):
            forward(made, batch)
            forward(made, batch)
        compensation.close(is_good=True)


def test_moments_are_those_of_the_inputs_before_the_gate(tmp_path):
    made = setting(tmp_path, lora=False)
    masks, module = removing_channels(made.space, [1, 2])
    seen = []
    hook = made.model.get_submodule(module).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    batches = [made.tuner.calibration_stream.next() for _ in range(2)]
    forward(made, batches[0])
    forward(made, batches[1])
    hook.remove()
    compensation = Compensation(made.subject, ridge=0.01, momentum=0.75)
    for batch in batches:
        see(compensation, made, batch, masks=masks)
        if not compensation.moments:
            compensation.begin(1)
    first, second = (inputs.T @ inputs / len(inputs) for inputs in seen)
    torch.testing.assert_close(compensation.moments[module], 0.75 * first + 0.25 * second, rtol=1e-5, atol=1e-7)
    assert set(compensation.moments) == set(gated_inputs(made.space, masks))
    assert hooks_of(made.model) == 0


def test_first_batches_count_alike(tmp_path):
    made = setting(tmp_path, lora=False)
    batches = [made.tuner.calibration_stream.next() for _ in range(3)]
    single = []
    for batch in batches:
        alone = Compensation(made.subject, ridge=0.01, momentum=0.9)
        see(alone, made, batch)
        alone.begin(1)
        single.append(alone.moments)
    together = Compensation(made.subject, ridge=0.01, momentum=0.9)
    see(together, made, *batches)
    together.begin(3)
    assert together.moments
    for name, moment in together.moments.items():
        mean = torch.stack([moments[name] for moments in single]).mean(0)
        torch.testing.assert_close(moment, mean, rtol=1e-5, atol=1e-7)


def test_moments_are_exact_under_autocast(tmp_path):
    made = setting(tmp_path, lora=False)
    seen = []
    _, module = removing_channels(made.space, [])
    hook = made.model.get_submodule(module).register_forward_pre_hook(lambda _, x: seen.append(x[0].flatten(0, 1)))
    compensation = Compensation(made.subject, ridge=0.01, momentum=0.9)
    with torch.autocast("cpu", torch.bfloat16), compensation.watching():
        forward(made, made.tuner.calibration_stream.next())
    compensation.close(is_good=True)
    compensation.begin(1)
    hook.remove()
    rows = seen[0].float()
    torch.testing.assert_close(compensation.moments[module], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-9)


def test_update_is_the_ridge_solution():
    draw = torch.Generator().manual_seed(3)
    inputs, weight = (torch.randn(rows, 6, dtype=torch.double, generator=draw) for rows in (200, 4))
    kept = torch.tensor([True, False, True, True, False, True])
    moment = inputs.T @ inputs
    scale = (0.1 * moment.diagonal()[kept].mean()).sqrt()
    rows = torch.cat([inputs[:, kept], scale * torch.eye(4, dtype=torch.double)])
    wanted = torch.cat([inputs[:, ~kept] @ weight[:, ~kept].T, torch.zeros(4, 4, dtype=torch.double)])
    solution = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(ridge_update(weight, moment, kept, ridge=0.1), solution)
    torch.testing.assert_close(ridge_update(weight[:2], moment, kept, ridge=0.1), solution[:2])  # removed: not fewer


@pytest.mark.parametrize(("outputs", "removed"), [(24, 10), (96, 10), (24, 60), (96, 1)])
def test_update_equals_its_equation_for_float32_moments_of_correlated_inputs(outputs, removed):
    draw = torch.Generator().manual_seed(4)
    inputs = torch.randn(50, 64, generator=draw) + 30 * torch.randn(50, 1, generator=draw)  # fewer tokens than inputs
    moment, weight = inputs.T @ inputs / 50, torch.randn(outputs, 64, generator=draw)
    kept = torch.randperm(64, generator=draw) >= removed
    wide, dense = moment.double(), weight.double()
    among = wide[kept][:, kept]
    among = among + 0.01 * among.diagonal().mean() * torch.eye(len(among), dtype=torch.double)
    expected = dense[:, ~kept] @ wide[~kept][:, kept] @ among.inverse()
    torch.testing.assert_close(ridge_update(weight, moment, kept, ridge=0.01), expected, rtol=1e-8, atol=1e-9)


def test_linears_of_one_input_share_moments_and_get_their_own_solution(tmp_path):
    made = setting(tmp_path, space_name="disp")
    masks = made.space.ones()
    group = next(group for group in made.space.groups if group.kind == "read")
    masks[group.name][[1, 4, 5]] = 0.0
    names = [gate.module for gate in group.gates]
    compensation = Compensation(made.subject, ridge=0.01, momentum=0.9)
    compensation.begin(2)
    assert len(names) == 3
    assert [name in compensation.moments for name in names] == [True, False, False]
    dense = {name: base_weight(made.model, f"{name}.weight").clone() for name in names}
    compensation.apply(masks)
    kept = masks[group.name] > 0
    for name in names:
        expected = dense[name].clone()
        expected[:, kept] += ridge_update(dense[name], compensation.moments[names[0]], kept, ridge=0.01).float()
        torch.testing.assert_close(base_weight(made.model, f"{name}.weight"), expected, rtol=1e-6, atol=1e-7)


def test_a_reloaded_compensation_sets_the_same_bits(tmp_path):
    made, fresh = setting(tmp_path / "one", space_name="disp"), setting(tmp_path / "two", space_name="disp")
    masks = made.space.ones()
    for group in made.space.groups:
        masks[group.name][[1, 4]] = 0.0
    compensation = Compensation(made.subject, ridge=0.01, momentum=0.9)
    compensation.begin(2)
    compensation.apply(made.space.ones())
    compensation.apply(masks)
    Compensation(fresh.subject, ridge=0.01, momentum=0.9).load_state_dict(compensation.state_dict(), masks)
    for name in compensation.modules:
        assert torch.equal(*(base_weight(one.model, f"{name}.weight") for one in (made, fresh)))


@pytest.mark.parametrize("space_name", ["width", "head_dim"])
def test_a_removed_twin_is_replaced_by_its_twin(tmp_path, space_name):
    made = setting(tmp_path, space_name=space_name)
    masks, module = removing_channels(made.space, [5])
    with torch.no_grad():
        for name in ("gate_proj", "up_proj"):
            weight = base_weight(made.model, f"{module.rpartition('.')[0]}.{name}.weight")
            weight[5] = weight[4]
    batch = made.tuner.calibration_stream.next()
    dense = forward(made, batch)
    compensation = Compensation(made.subject, ridge=1e-6, momentum=0.9)
    with compensation.watching():
        forward(made, batch)
    compensation.close(is_good=True)
    compensation.begin(1)
    compensation.apply(masks)
    with Gates(made.model, made.space)(masks):
        torch.testing.assert_close(forward(made, batch), dense, rtol=1e-3, atol=1e-3)
    compensation.apply(made.space.ones())
    assert torch.equal(forward(made, batch), dense)


def test_a_settled_compensation_keeps_the_weights_alone(tmp_path):
    """Checkpoints of the frozen phase then hold no moments, which are larger than the model."""
    made = setting(tmp_path / "one")
    masks, module = removing_channels(made.space, [5])
    compensation = Compensation(made.subject, ridge=1e-6, momentum=0.9)
    compensation.begin(1)
    compensation.apply(masks)
    compensation.settle()
    state = compensation.state_dict()
    assert set(state) == {"weights"}
    assert not compensation.moments
    weights = {name: weight.clone() for name, weight in state["weights"].items()}

    fresh = setting(tmp_path / "two")
    resumed = Compensation(fresh.subject, ridge=1e-6, momentum=0.9)
    assert not torch.equal(base_weight(fresh.model, f"{module}.weight"), weights[module])
    resumed.load_state_dict({"weights": weights}, masks)
    for name, weight in weights.items():
        assert torch.equal(base_weight(fresh.model, f"{name}.weight"), weight)
    assert resumed.state_dict().keys() == state.keys()
