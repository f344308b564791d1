"""LLM-Pruner's criteria against numbers worked out by hand, its protected layers and its refusals."""

import pytest
import torch
from helpers.tiny_tuning import hooks_of, setting
from helpers.toy_spaces import tiny_space

from tuneprune import methods
from tuneprune.budget import Budget, count_parameters
from tuneprune.calibration.batch import rows_of, with_prompts
from tuneprune.calibration.gradients import Gradients, weight_gradients
from tuneprune.errors import ConfigError, UnreachableBudget, UnsupportedModel
from tuneprune.methods.llm_pruner import reduced, salience

WEIGHT = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
GRADIENTS = Gradients(torch.tensor([[2.0, 1.0], [-1.0, 0.5]]), torch.tensor([[4.0, 1.0], [2.0, 0.25]]))
MLP = "model.layers.0.mlp"


def pruner(**options):
    return methods.build({"name": "llm_pruner", "batches": 1, **options})


@pytest.mark.parametrize(
    ("criterion", "rows", "columns"),
    [  # W g = [[2, -2], [-3, 2]]; W^2 f = [[4, 4], [18, 4]]
        ("vector", [0, 1], [1, 0]),
        ("element1", [4, 5], [5, 4]),
        ("element2", [8, 22], [22, 8]),
        ("mix", [0 + 4, 12 + 0], [0 + 12, 4 + 0]),
    ],
)
def test_criteria_by_hand(criterion, rows, columns):
    assert salience(WEIGHT, GRADIENTS, criterion, 0).tolist() == rows
    assert salience(WEIGHT, GRADIENTS, criterion, 1).tolist() == columns


@pytest.mark.parametrize(
    ("reduction", "expected"), [("sum", [6, 6]), ("mean", [2, 2]), ("max", [3, 4]), ("prod", [6, 4]), ("first", [1, 4])]
)
def test_reductions_by_hand(reduction, expected):
    parts = torch.tensor([[1.0, 4.0], [2.0, 1.0], [3.0, 1.0]])
    assert reduced(parts, reduction).tolist() == expected


@pytest.fixture
def made(tmp_path):
    made = setting(tmp_path, lora=False)
    batch = made.subject.calibration()
    made.subject = type(made.subject)(**vars(made.subject) | {"calibration": lambda: batch})
    return made


def gradients_of(made, batch):
    params = [name for name, _ in made.model.named_parameters()]
    found = torch.autograd.grad(made.tuner.runtime.loss(batch), list(made.model.parameters()))
    return dict(zip(params, found, strict=True))


def test_importance_sums_rows_of_producers_and_columns_of_consumers(made):
    gradient = gradients_of(made, made.subject.calibration())
    found = pruner().importance(made.subject)
    products = {name: (made.model.get_parameter(name) * g).abs().double() for name, g in gradient.items()}
    attention = "model.layers.1.self_attn"
    for channel in (0, 17):
        expected = sum(products[f"{MLP}.{part}_proj.weight"][channel].sum() for part in ("gate", "up"))
        expected += products[f"{MLP}.down_proj.weight"][:, channel].sum()
        assert found[MLP][channel].item() == pytest.approx(expected.item(), rel=1e-5)
    group = products[f"{attention}.q_proj.weight"][16:32].sum() + products[f"{attention}.o_proj.weight"][:, 16:32].sum()
    group += sum(products[f"{attention}.{part}_proj.weight"][8:16].sum() for part in "kv")
    assert found[attention][1].item() == pytest.approx(group.item(), rel=1e-5)


@pytest.mark.parametrize("criterion", ["element2", "mix"])
def test_second_order_criteria_square_the_gradient_of_every_row(made, criterion):
    rows = [gradients_of(made, row) for row in rows_of(made.subject.calibration())]
    found = pruner(criterion=criterion, reduction="first").importance(made.subject)
    gate = f"{MLP}.gate_proj.weight"
    mean = torch.stack([row[gate] for row in rows]).mean(0)
    square = torch.stack([row[gate].square() for row in rows]).mean(0)
    weight = made.model.get_parameter(gate)
    terms = weight**2 * square if criterion == "element2" else (weight * mean - weight**2 * square / 2).abs()
    torch.testing.assert_close(found[MLP].float(), terms.sum(1).detach(), rtol=1e-4, atol=1e-9)


def test_rows_weigh_the_same_whatever_another_process_has_in_its_own(made, monkeypatch):
    gate, rows = f"{MLP}.gate_proj.weight", rows_of(made.subject.calibration())
    alone = weight_gradients(made.subject, [gate], rows, squares=True)[gate]

    def with_longer_rows(tensors):
        for tensor in tensors:
            tensor.mul_(1.5 if tensor.numel() == 1 else 1)  # counts of tokens

    monkeypatch.setattr(made.subject.runtime, "average", with_longer_rows)
    beside = weight_gradients(made.subject, [gate], rows, squares=True)[gate]
    torch.testing.assert_close(beside.mean, alone.mean)
    torch.testing.assert_close(beside.squares, alone.squares)


def test_gradients_leave_the_model_as_it_was(made):
    made.model.lm_head.weight.requires_grad_(False)
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in made.model.named_parameters()}
    weight_gradients(made.subject, [f"{MLP}.up_proj.weight"], [made.subject.calibration()], squares=True)
    for name, parameter in made.model.named_parameters():
        assert parameter.requires_grad == before[name][0]
        assert parameter.grad is None
        assert torch.equal(parameter, before[name][1])
    assert hooks_of(made.model) == 0


def test_a_quantised_base_is_refused(made):
    layer = made.model.model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
    with pytest.raises(UnsupportedModel, match=r"up_proj\.weight` is stored as int8.*works on a quantised"):
        pruner().begin(made.subject, Budget(keep=0.7))


def test_loss_on_prompts_labels_every_real_token_but_the_first_of_a_document():
    batch = {
        "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0]]),
        "labels": torch.tensor([[-100, -100, 7, -100, 9, -100]]),
        "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0]]),
    }
    assert with_prompts(batch)["labels"].tolist() == [[-100, 6, 7, -100, 9, -100]]


def test_protected_layers_are_the_papers_at_32_layers():
    space = tiny_space(num_hidden_layers=32)
    whole = pruner().protecting(space, Budget()).whole(space)
    assert sorted({group.layer for group in space.groups if group.name not in whole}) == list(range(4, 30))
    numbers = pruner(protect_first=3, protect_last=1).protecting(space, Budget(protect=[7]))
    assert sorted({space.by_name[name].layer for name in numbers.whole(space)}) == [0, 1, 2, 7, 31]
    with pytest.raises(ConfigError, match=r"protect_first: write a share of the layers below 1, or a whole number"):
        pruner(protect_first=1.5)


@pytest.mark.parametrize("of", ["total", "prunable"])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_whole_model_meets_the_budget_though_outer_layers_stay_whole(tmp_path, scope, of):
    made = setting(tmp_path, lora=False, num_hidden_layers=6)
    budget = Budget(keep=0.7, of=of)
    plan = pruner(scope=scope, protect_last=0.15).begin(made.subject, budget).plan()
    masks = plan.masks(made.space)
    whole = {group.layer for group in made.space.groups if masks[group.name].all()}
    assert {0, 5} <= whole
    kept, unit = count_parameters(made.space, masks), 2 * 16 * 32 + 2 * 8 * 32
    assert budget.target(made.space) - unit < kept <= budget.target(made.space)
    if scope == "local":
        shares = [masks[group.name].mean().item() for group in made.space.groups if group.kind == "mlp_channel"]
        assert max(shares[1:5]) - min(shares[1:5]) <= 1 / 48 + 1e-6


def test_equal_widths_protect_no_layer():
    space = tiny_space(num_hidden_layers=8)
    assert not pruner().protecting(space, Budget(per_layer="uniform")).whole(space)


def test_a_budget_below_what_the_protected_layers_leave_is_refused():
    space = tiny_space(num_hidden_layers=8)
    pruner().check(space, Budget(keep=0.5))
    with pytest.raises(
        UnreachableBudget, match=r"keep=0\.3 of total.*protect_first=0\.5.*goes down to 0\.\d+\. Protect"
    ):
        pruner(protect_first=0.5).check(space, Budget(keep=0.3))
    with pytest.raises(UnreachableBudget, match=r"goes down to 1\.0000"):
        pruner(protect_first=0.5, protect_last=0.5).check(space, Budget(keep=0.99))


@pytest.mark.parametrize("of", ["total", "prunable"])
@pytest.mark.parametrize("layers", [4, 6, 7, 8, 11])
def test_the_refusal_names_a_budget_that_can_be_met(of, layers):
    space = tiny_space(num_hidden_layers=layers)
    with pytest.raises(UnreachableBudget) as told:
        pruner(protect_first=0.5).check(space, Budget(keep=0.01, of=of))
    pruner(protect_first=0.5).check(space, Budget(keep=float(str(told.value).split("goes down to ")[1][:6]), of=of))
