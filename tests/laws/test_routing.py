"""A routed MLP: token masks on the dense model == physical experts, in every way that they are executed."""

import copy

import pytest
import torch
from helpers.precision import EXACT
from helpers.tiny import CASES, DENSE, UNGATED, logits, probe_ids, routed_plan, tiny_model

from tuneprune import families
from tuneprune.compress import compress
from tuneprune.compress.modeling_pruned import RoutedMlp
from tuneprune.structure import spaces
from tuneprune.structure.edits import Route
from tuneprune.structure.masks import simulated, token_mask, top_experts

pytestmark = pytest.mark.usefixtures("full_precision")

ROUTED = [
    (variant, space, top_k)
    for variant, space in CASES
    if variant not in UNGATED and space in ("width", "head_dim", "disp")
    for top_k in (1, 2)
]


@pytest.fixture(autouse=True)
def _group_few_tokens(monkeypatch):
    monkeypatch.setattr(RoutedMlp, "tokens_worth_grouping", 0)


@pytest.fixture(params=ROUTED, ids=lambda case: "-".join(map(str, case)))
def case(request):
    variant, space_name, top_k = request.param
    model = tiny_model(variant)
    architecture = families.describe(model)
    space = spaces.build(space_name, architecture, model)
    plan = routed_plan(space, architecture, top_k=top_k)
    with simulated(model, space, plan):
        expected = logits(model)
    small = compress(copy.deepcopy(model), architecture, space, plan)
    return model, space, plan, expected, small


def test_simulated_equals_grouped_execution(case):
    model, _, _, expected, small = case
    assert (expected - logits(model)).abs().max() > 1e-3
    torch.testing.assert_close(logits(small), expected, **EXACT)


def test_masked_execution_equals_grouped_execution(case, monkeypatch):
    _, _, _, expected, small = case
    monkeypatch.setattr(RoutedMlp, "tokens_worth_grouping", 1000)
    torch.testing.assert_close(logits(small), expected, **EXACT)
    monkeypatch.setattr(RoutedMlp, "tokens_worth_grouping", 0)
    masked = small(input_ids=probe_ids(), use_cache=False).logits  # autograd watches
    torch.testing.assert_close(masked.detach(), expected, **EXACT)
    masked.logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in small.parameters())
    assert all(mlp.router.grad.abs().max() > 0 for mlp in small.modules() if isinstance(mlp, RoutedMlp))


def test_counts_the_union_and_the_routers(case):
    _, space, plan, _, small = case
    assert sum(p.numel() for p in small.parameters()) == space.count(plan.widths(space)) + plan.added(space)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("variant", [variant for variant in DENSE if variant not in UNGATED])
def test_generates_what_the_routed_dense_model_does(variant, use_cache):
    model = tiny_model(variant)
    architecture = families.describe(model)
    space = spaces.build("head_dim", architecture, model)
    plan = routed_plan(space, architecture, seed=2)
    prompt = torch.tensor([[1, 9, 17, 33], [1, 4, 5, 6]])
    settings = {"max_new_tokens": 8, "do_sample": False, "attention_mask": torch.ones_like(prompt)}
    with simulated(model, space, plan):
        expected = model.generate(prompt, use_cache=True, **settings)
    small = compress(model, architecture, space, plan)
    assert torch.equal(small.generate(prompt, use_cache=use_cache, **settings), expected)


def test_only_the_chosen_experts_channels_are_computed(monkeypatch):
    model = tiny_model("llama")
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    small = compress(model, architecture, space, routed_plan(space, architecture))
    monkeypatch.setattr(RoutedMlp, "_masked", None)  # would raise
    assert logits(small).isfinite().all()


def test_a_hooked_projection_is_not_passed_by():
    model = tiny_model("llama")
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    small = compress(model, architecture, space, routed_plan(space, architecture))
    plain, calls = logits(small), []
    small.model.layers[0].mlp.down_proj.register_forward_pre_hook(lambda *_: calls.append(1))
    torch.testing.assert_close(logits(small), plain, **EXACT)
    assert calls


def test_of_equal_experts_the_first_is_chosen():
    assert top_experts(torch.tensor([[0.0, 2.0, 2.0, 1.0]]), 2).tolist() == [[1, 2]]
    experts = torch.tensor([[True, False, False], [False, True, True]])
    mask = token_mask(Route("mlp", experts, {"weight": torch.tensor([[1.0, 0.0], [0.0, 1.0]])}))
    states = torch.tensor([[[2.0, 1.0], [1.0, 2.0], [1.0, 1.0]]])
    assert mask(states).tolist() == [[[True, False, False], [False, True, True], [True, False, False]]]
