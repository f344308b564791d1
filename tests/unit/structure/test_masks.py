"""Gates and noise: a masked forward computes the right numbers and leaves nothing behind."""

import math

import pytest
import torch
from helpers.tiny import CASES, SPACES, logits, probe_ids, random_masks, tiny_model
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from tuneprune import families
from tuneprune.structure import spaces
from tuneprune.structure.masks import Gates, gumbel, gumbel_sigmoid, straight_through

FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def gated(variant, name, *, lora=False, **changes):
    model = tiny_model(variant, **changes)
    architecture = families.describe(model)
    space = spaces.build(name, architecture, model)
    if lora:
        add_lora(model, architecture)
    return model, space, Gates(model, space)


def add_lora(model, architecture, rank=2):
    torch.manual_seed(3)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(architecture.linears()))
    inject_adapter_in_model(config, model)
    for parameter in (p for n, p in model.named_parameters() if "lora_" in n):
        parameter.data = 0.2 * torch.randn_like(parameter, dtype=torch.float64)


def count_hooks(model):
    return sum(len(getattr(module, hooks)) for module in model.modules() for hooks in FORWARD_HOOKS)


def soft_masks(space, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {group.name: torch.rand(group.size, generator=generator, dtype=torch.float64) for group in space.groups}


@pytest.mark.parametrize("mode", ["masked", "open"])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", SPACES)
def test_gates_leave_no_hook_behind(name, lora, mode):
    model, space, gates = gated("phi3", name, lora=lora)
    dense = logits(model)
    with gates(random_masks(space), mode):
        assert count_hooks(model) > 0
        assert not torch.equal(logits(model), dense)
    assert count_hooks(model) == 0
    assert torch.equal(logits(model), dense)


def test_gates_leave_no_hook_behind_after_an_error():
    model, space, gates = gated("llama", "width")
    with pytest.raises(KeyboardInterrupt), gates(space.ones()):
        raise KeyboardInterrupt
    assert count_hooks(model) == 0
    incomplete = space.ones()
    incomplete.popitem()
    with pytest.raises(KeyError), gates(incomplete):
        pass
    assert count_hooks(model) == 0


def test_gates_can_be_switched_on_again_with_other_masks():
    model, space, gates = gated("qwen2", "width")
    found = []
    for seed in (1, 2, 1):
        with gates(random_masks(space, seed=seed)):
            found.append(logits(model))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def outputs_of(model, path, ids):
    """Input and output of a module in one forward."""
    seen = {}

    def look(_, inputs, output):
        seen.update(input=inputs[0], output=output)

    handle = model.get_submodule(path).register_forward_hook(look)
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    return seen["input"], seen["output"]


def test_packed_projections_are_masked_at_the_right_segment():
    model, space, gates = gated("phi3", "head_dim")
    masks = space.ones()
    masks["model.layers.0.self_attn.qk"][1] = 0  # of four rotary pairs: dims 1 and 5 of every head
    path, ids = "model.layers.0.self_attn.qkv_proj", probe_ids()
    dense = outputs_of(model, path, ids)[1]
    with gates(masks):
        masked = outputs_of(model, path, ids)[1]
    heads = [4, 2]  # query heads, key heads; then v, which is masked where o reads it
    removed = [8 * head + dim for head in range(sum(heads)) for dim in (1, 5)]
    expected = dense.clone()
    expected[..., removed] = 0
    assert torch.equal(masked, expected)


def test_packed_values_are_masked_at_the_right_segment_when_open():
    model, space, gates = gated("phi3", "width")
    masks = space.ones()
    masks["model.layers.0.self_attn"][1] = 0
    masks["model.layers.0.mlp"][5] = 0
    ids = probe_ids()
    removed = {
        "model.layers.0.self_attn.qkv_proj": [*range(16, 32), *range(40, 48), *range(56, 64)],
        "model.layers.0.mlp.gate_up_proj": [5, 53],
    }
    for path, rows in removed.items():
        with gates(masks, "open"):
            states, masked = outputs_of(model, path, ids)
        expected = model.get_submodule(path)(states)
        expected[..., rows] = 0
        torch.testing.assert_close(masked, expected)


PRODUCERS = {
    "width": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    "head_dim": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"),
    "disp": ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "residual": ("self_attn.o_proj", "mlp.down_proj"),
    "depth": ("self_attn.o_proj", "mlp.down_proj"),
}


def spread_over(space, module, dim, masks):
    """The mask of every position of a linear, from the slices of the groups that own its rows or columns."""
    param = f"{module}.weight"
    full = torch.ones(space.shapes[param][dim], dtype=torch.float64)
    for group in space.groups:
        for piece in group.slices:
            if (piece.param, piece.dim) == (param, dim):
                full[piece.segment.positions(torch.arange(group.size))] = 1
                for unit, value in enumerate(masks[group.name]):
                    full[piece.segment.positions(torch.tensor([unit]))] *= value
    return full


@pytest.mark.parametrize("variant", ["llama", "qwen2"])
@pytest.mark.parametrize("name", SPACES)
def test_open_mode_masks_the_frozen_path_and_leaves_lora_open(name, variant):
    model, space, gates = gated(variant, name, lora=True)
    masks = soft_masks(space)
    for part in PRODUCERS[name]:
        path = f"model.layers.1.{part}"
        with gates(masks, "open"):
            states, found = outputs_of(model, path, probe_ids())
        layer = model.get_submodule(path)
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        frozen = states @ layer.base_layer.weight.T
        if layer.base_layer.bias is not None:
            frozen = frozen + layer.base_layer.bias
        expected = spread_over(space, path, 0, masks) * frozen + 2.0 * (states @ down.T @ up.T)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["masked", "open"])
def test_reads_mask_what_frozen_weights_and_lora_see(mode):
    model, space, gates = gated("llama", "disp", lora=True)
    masks = soft_masks(space)
    path = "model.layers.0.self_attn.q_proj"
    states, _ = outputs_of(model, path, probe_ids())  # the first norm's output, which no gate reaches
    with gates(masks, mode):
        seen, found = outputs_of(model, path, probe_ids())
    torch.testing.assert_close(seen, states * masks["model.layers.0.self_attn.read"])
    torch.testing.assert_close(found, model.get_submodule(path)(seen))


def test_a_router_never_picks_what_is_masked_and_shares_its_odds_among_the_rest():
    model, space, gates = gated("qwen3_moe", "experts")
    router = model.model.layers[0].mlp.gate
    states = torch.randn(5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    odds = (states @ router.weight.T).exp() * torch.tensor([1.0, 0, 0.5, 1, 0, 1, 0, 0])
    masks = space.ones() | {"model.layers.0.mlp": torch.tensor([1.0, 0, 0.5, 1, 0, 1, 0, 0])}
    with gates(masks):
        _, weights, picked = router(states)
    best = odds.topk(2)
    assert torch.equal(picked, best.indices)
    torch.testing.assert_close(weights, best.values / odds.sum(-1, keepdim=True), rtol=1e-5, atol=1e-6)


def test_masked_mode_masks_lora_as_well():
    model, space, gates = gated("llama", "head_dim", lora=True)
    masks = space.ones()
    masks["model.layers.0.self_attn.qk"].zero_()
    with gates(masks):
        assert (outputs_of(model, "model.layers.0.self_attn.q_proj", probe_ids())[1] == 0).all()


@pytest.mark.parametrize("mode", ["masked", "open"])
@pytest.mark.parametrize(("variant", "name"), CASES)
@pytest.mark.usefixtures("full_precision")
def test_every_soft_mask_gets_its_gradient(variant, name, mode):
    every = {"num_experts_per_tok": 8} if name == "experts" else {}  # choosing some of them jumps
    model, space, gates = gated(variant, name, lora=True, **every)
    model.requires_grad_(False)
    masks = {key: mask.requires_grad_() for key, mask in soft_masks(space).items()}
    ids = probe_ids()

    def loss(values):
        with gates(values, mode):
            predicted = model(ids, use_cache=False).logits[:, :-1]
        return nn.functional.cross_entropy(predicted.flatten(0, 1), ids[:, 1:].flatten())

    loss(masks).backward()
    for key, mask in masks.items():
        assert mask.grad is not None, key
        assert mask.grad.abs().sum() > 0, key
    direction = soft_masks(space, seed=9)
    slope = sum((mask.grad * direction[key]).sum() for key, mask in masks.items())
    step = 1e-3
    at = {
        scale: loss({key: mask.detach() + scale * step * direction[key] for key, mask in masks.items()})
        for scale in (-2, -1, 1, 2)
    }
    measured = (8 * (at[1] - at[-1]) - (at[2] - at[-2])) / (12 * step)
    torch.testing.assert_close(measured, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("mode", ["masked", "open"])
@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("variant", ["llama", "qwen3", "phi3"])
def test_activation_checkpointing_under_gates_gives_the_same_gradients(variant, name, mode):
    model, space, gates = gated(variant, name, lora=True)
    model.train()
    ids, found = probe_ids(), []
    for checkpointed in (False, True):
        if checkpointed:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        masks = {key: mask.requires_grad_() for key, mask in soft_masks(space).items()}
        with gates(masks, mode):
            model(ids, labels=ids, use_cache=False).loss.backward()
        gradients = {key: parameter.grad for key, parameter in model.named_parameters() if "lora_" in key}
        found.append(gradients | {key: mask.grad for key, mask in masks.items()})
    assert all(gradient.abs().sum() > 0 for gradient in found[0].values())
    for key, gradient in found[0].items():
        assert torch.equal(found[1][key], gradient), key


def test_masks_may_be_of_another_precision_than_the_model():
    model = tiny_model("llama", dtype=torch.bfloat16)
    space = spaces.build("width", families.describe(model), model)
    with Gates(model, space)(random_masks(space)):
        assert logits(model).dtype == torch.bfloat16


def test_gumbel_sigmoid_is_the_formula():
    found = gumbel_sigmoid(torch.tensor([0.0, -3.5, 1.0]), torch.tensor([0.0, 0.1, -2.0]), base=3.0, temperature=0.4)
    expected = [1 / (1 + math.exp(-x)) for x in (3 / 0.4, -0.4 / 0.4, 2 / 0.4)]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_gumbel_noise_has_the_distribution_and_is_reproducible():
    noise = gumbel((200_000,), torch.Generator().manual_seed(1))
    assert torch.equal(noise, gumbel((200_000,), torch.Generator().manual_seed(1)))
    assert noise.isfinite().all()
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_gumbel_noise_is_finite_at_both_ends_of_the_uniform(monkeypatch):
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0, 1.0 - 2**-24]))
    assert gumbel((2,), torch.Generator()).isfinite().all()


def test_straight_through_has_the_value_of_hard_and_the_gradient_of_soft():
    logits = nn.Parameter(torch.tensor([0.3, -0.7, 2.0], dtype=torch.float64))
    soft = torch.sigmoid(logits)
    hard = (soft >= 0.5).double()
    value = straight_through(hard, soft)
    torch.testing.assert_close(value, hard)
    (value * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(logits.grad, (soft * (1 - soft)).detach() * torch.tensor([1.0, 2.0, 3.0]))
