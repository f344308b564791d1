"""Weights and norms, with and without LoRA, against numbers worked out by hand."""

import pytest
import torch
from helpers.tiny import CASES, tiny_model
from peft import LoraConfig, inject_adapter_in_model

from tuneprune import families
from tuneprune.structure import spaces
from tuneprune.structure.space import Gate, Group, Segment, WeightSlice
from tuneprune.structure.weights import (
    base_module,
    base_weight,
    effective_weight,
    group_norms,
    lora_entries,
    lora_factors,
    lora_norms,
    scale_lora,
)

Q = "model.layers.0.self_attn.q_proj"


def parts(variant="llama", name="width", *, lora=True):
    model = tiny_model(variant)
    architecture = families.describe(model)
    space = spaces.build(name, architecture, model)
    if lora:
        torch.manual_seed(4)
        config = LoraConfig(r=2, lora_alpha=6, target_modules=list(architecture.linears()))
        inject_adapter_in_model(config, model)
        for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
            parameter.data = torch.randn_like(parameter, dtype=torch.float64)
    return model, space


class Pair(torch.nn.Module):
    """Two units: rows of `first`, columns of `second`."""

    def __init__(self):
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1, bias=False)
        self.first.weight.data = torch.tensor([[3.0, 0.0], [1.0, 2.0]])
        self.first.bias.data = torch.tensor([0.0, 4.0])
        self.second.weight.data = torch.tensor([[4.0, -2.0]])


UNITS = Segment((2,), 0)
GROUP = Group(
    name="pair",
    layer=0,
    kind="mlp_channel",
    size=2,
    slices=(
        WeightSlice("first.weight", 0, UNITS),
        WeightSlice("first.bias", 0, UNITS),
        WeightSlice("second.weight", 1, UNITS),
    ),
    gates=(Gate("second", "input", UNITS),),
    tuning_gates=(),
)


def pair_with_lora():
    model = Pair()
    inject_adapter_in_model(LoraConfig(r=1, lora_alpha=2, target_modules=["first", "second"]), model)
    model.first.lora_A["default"].weight.data = torch.tensor([[1.0, 2.0]])
    model.first.lora_B["default"].weight.data = torch.tensor([[3.0], [0.0]])
    model.second.lora_A["default"].weight.data = torch.tensor([[4.0, 5.0]])
    model.second.lora_B["default"].weight.data = torch.tensor([[0.5]])
    return model


def test_group_norms_join_weights_and_biases_of_a_unit():
    assert group_norms(Pair(), GROUP).tolist() == [5.0, 5.0]  # sqrt(9 + 16), sqrt(1 + 4 + 16 + 4)


def test_group_norms_see_base_plus_scaled_lora():
    # first: [[3, 0], [1, 2]] + 2 [3, 0] x [1, 2]; second: [4, -2] + 2 * 0.5 [4, 5]
    expected = [(9**2 + 12**2 + 8**2) ** 0.5, (1 + 4 + 16 + 3**2) ** 0.5]
    torch.testing.assert_close(group_norms(pair_with_lora(), GROUP), torch.tensor(expected))


def test_lora_norms_join_rows_of_up_in_producers_and_columns_of_down_in_consumers():
    model = pair_with_lora()
    torch.testing.assert_close(lora_norms(model, GROUP), torch.tensor([5.0, 5.0]))  # (3, 4) and (0, 5)
    assert lora_norms(Pair(), GROUP) is None


def test_epsilon_keeps_the_gradient_of_a_zero_norm_finite():
    model = pair_with_lora()
    model.second.lora_A["default"].weight.data.zero_()
    lora_norms(model, GROUP, epsilon=1e-8).sum().backward()
    assert model.first.lora_B["default"].weight.grad.isfinite().all()
    assert lora_norms(model, GROUP, epsilon=1e-8)[1].item() == pytest.approx(1e-4)


def test_scaling_lora_scales_a_units_entries_and_nothing_else():
    model = pair_with_lora()
    scale_lora(model, GROUP, torch.tensor([0.5, 0.0]))
    assert model.first.lora_B["default"].weight.tolist() == [[1.5], [0.0]]
    assert model.second.lora_A["default"].weight.tolist() == [[2.0, 0.0]]
    assert model.first.lora_A["default"].weight.tolist() == [[1.0, 2.0]]
    assert model.second.lora_B["default"].weight.tolist() == [[0.5]]
    assert model.first.base_layer.weight.tolist() == Pair().first.weight.tolist()


def test_weights_are_found_under_their_dense_names_before_and_after_lora():
    plain, _ = parts(lora=False)
    wrapped, _ = parts()
    for model in (plain, wrapped):
        assert torch.equal(base_weight(model, f"{Q}.weight"), plain.get_submodule(Q).weight)
        assert isinstance(base_module(model, Q), torch.nn.Linear)
    assert lora_factors(plain, Q) is None
    assert effective_weight(plain, f"{Q}.weight") is plain.get_submodule(Q).weight
    assert lora_factors(wrapped, "model.norm") is None


def test_effective_weight_is_what_the_layer_computes_with():
    model, _ = parts()
    layer = model.get_submodule(Q)
    states = torch.randn(3, 32, dtype=torch.float64)
    torch.testing.assert_close(layer(states), states @ effective_weight(model, f"{Q}.weight").T)
    assert lora_factors(model, Q).scaling == 3.0


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize(("variant", "name"), CASES)
def test_a_norm_is_zero_exactly_where_all_coupled_weights_are(variant, name, lora):
    model, space = parts(variant, name, lora=lora)
    for group in space.groups:
        assert (group_norms(model, group) > 0).all()
        last = group.size - 1
        for piece in group.slices:  # clear the last unit everywhere, one tensor after the other
            assert group_norms(model, group)[last] > 0
            rows = piece.segment.positions(torch.tensor([last]))
            base_weight(model, piece.param).data.index_fill_(piece.dim, rows, 0)
            if lora:
                scale_lora(model, group, (torch.arange(group.size) != last).float())
        norms = group_norms(model, group)
        assert norms[last] == 0
        assert (norms[:last] > 0).all()


@pytest.mark.parametrize(("variant", "name"), CASES)
def test_lora_norms_are_zero_exactly_where_scaling_removed_lora(variant, name):
    model, space = parts(variant, name)
    for group in (group for group in space.groups if lora_entries(model, group)):
        mask = (torch.arange(group.size) % 2).float()
        scale_lora(model, group, mask)
        assert ((lora_norms(model, group) > 0) == (mask > 0)).all()


def test_every_group_of_every_linear_finds_its_lora():
    model, space = parts("phi3", "width")
    kv, mlp = space.groups[:2]
    assert [tuple(entry.shape) for entry, _ in lora_entries(model, kv)] == [(64, 2)] * 3 + [(2, 32)]
    assert [tuple(entry.shape) for entry, _ in lora_entries(model, mlp)] == [(96, 2)] * 2 + [(2, 48)]


def test_units_of_a_packed_tensor_are_cut_from_their_own_segment():
    tensor = torch.arange(12.0).view(6, 2)
    piece = WeightSlice("qkv", 0, Segment((2, 2), 0, start=2))
    assert piece.segment.by_unit(tensor, piece.dim).tolist() == [[4, 5, 6, 7], [8, 9, 10, 11]]


def test_norms_of_half_precision_weights_are_summed_in_float32():
    model = Pair().half()
    model.first.weight.data = torch.tensor([[300.0, 0.0], [0.0, 0.0]]).half()  # its square overflows float16
    assert group_norms(model, GROUP)[0].item() == pytest.approx((300**2 + 16) ** 0.5)
