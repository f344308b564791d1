"""PAT: its schedule and losses on hand-computed numbers, and that folding leaves what the modules computed."""

import copy
import math

import pytest
import torch
from helpers.precision import EXACT, FLOAT32
from helpers.tiny import cast_exactly, logits
from helpers.tiny_tuning import hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.compress import compress
from tuneprune.methods.pat import Operator, margin, schedule
from tuneprune.structure.masks import Gates
from tuneprune.train import merge_lora


def begin(made, keep=0.7, **options):
    return methods.build({"name": "pat"} | options).begin(made.subject, Budget(keep=keep))


def test_schedule_starts_with_ones_and_ends_with_a_step():
    assert schedule(0, 100) == (0.0, 0.5)  # sigmoid(0) + 0.5 = 1
    assert schedule(1, 100) == (1.0, 0.49)
    temperature, bias = schedule(10, 100)
    assert temperature == pytest.approx(2.0)  # ln 10 / ln 100 is a half
    assert bias == pytest.approx(0.4)
    assert schedule(80, 100)[0] == pytest.approx(1 / (1 - math.log(80) / math.log(100)))
    assert schedule(60, 100)[1] == 0.0
    assert schedule(100, 100) == (math.inf, 0.0)
    assert schedule(0, 1) == (0.0, 0.5)


def test_margin_pulls_both_sides_to_a_half():
    # positive: 0.5 is there, 0.1 misses by 0.4; the other: -0.2 misses by 0.3
    assert margin(torch.tensor([0.5, 0.1, -0.2])).item() == pytest.approx(0.16 / 2 + 0.09, rel=FLOAT32)
    assert margin(torch.tensor([0.0, -0.5])).item() == pytest.approx(0.25 / 2, rel=FLOAT32)


def test_operator_is_the_identity_at_first_and_then_what_its_factors_say():
    operator = Operator(3, 2, torch.Generator().manual_seed(0))
    states = torch.randn(4, 3)
    assert torch.equal(operator(states), states)
    with torch.no_grad():
        operator.down.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
        operator.up.copy_(torch.tensor([[0.0, 1.0], [0.0, 1.0], [3.0, 0.0]]))
        operator.scale.copy_(torch.tensor([1.0, 2.0, 1.0]))
    # x + up down x = (x0 + 2 x1, x1 + 2 x1, x2 + 3 x0)
    assert operator(torch.tensor([1.0, 1.0, 1.0])).tolist() == [3.0, 6.0, 4.0]
    # rows of down: lengths 1 and 2, so one entry of four misses by 3; columns of up are orthogonal, their lengths free
    assert operator.identity_loss().item() == pytest.approx(9 / 4)


@pytest.mark.parametrize("variant", ["llama", "llama3", "llama_mha_biased", "qwen3", "phi3", "gemma2", "olmo2"])
def test_the_merged_model_is_the_stack_of_modules(tmp_path, variant, full_precision):
    made = setting(tmp_path, variant=variant, space_name="residual", dropout=0.1)
    cast_exactly(made.model, torch.float64).eval()
    search = begin(made, rank_share=0.1)
    torch.manual_seed(3)
    factors = [p for operator in search.operators.values() for p in operator.parameters()]
    lora = [p for p in made.model.parameters() if p.requires_grad]
    with torch.no_grad():
        for parameter in (*factors, *lora, search.logits):
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    dense = logits(made.model)
    search.freeze()
    with search.context():
        expected = logits(made.model)
    assert (expected - dense).abs().max() > 1e-3
    plan = search.plan()
    assert search.plan() is plan  # folded once
    assert hooks_of(made.model) == 0
    with Gates(made.model, made.space)(plan.masks(made.space)):
        torch.testing.assert_close(logits(made.model), expected, **EXACT)
    merge_lora(made.model, made.architecture)
    small = compress(made.model, made.architecture, made.space, plan)
    torch.testing.assert_close(logits(small), expected, **EXACT)
    assert not plan.added(made.space)


def test_a_tied_embedding_is_masked_but_not_mixed(tmp_path):
    made = setting(tmp_path, variant="llama3", space_name="residual")
    search = begin(made)
    assert set(search.sites) - set(search.operators) == {made.architecture.embed}
    assert len(begin(setting(tmp_path / "untied", space_name="residual")).operators) == 5  # 2 L + 1


def test_nothing_changes_before_the_first_step(tmp_path):
    made = setting(tmp_path, space_name="residual")
    expected = logits(made.model)
    search = begin(made)
    search.before_step(0)
    with search.context():
        assert torch.equal(logits(made.model), expected)
    assert search.masks()["residual"].all()


def test_training_reaches_mask_and_operators_until_the_decision(tmp_path):
    made = setting(tmp_path, space_name="residual", steps=12)
    search = begin(made, milestone_share=0.5, freeze_share=0.8)  # decides at step 5
    before = {site: copy.deepcopy(operator.state_dict()) for site, operator in search.operators.items()}
    seen = []
    after_step = search.after_step

    def watch(rate):
        seen.append((search.phase, search.logits.detach().clone()))
        after_step(rate)

    search.after_step = watch
    made.tuner.run(search)
    assert [phase for phase, _ in seen] == ["control"] * 5 + ["frozen"] * 7
    assert not torch.equal(seen[0][1], seen[4][1])
    assert torch.equal(seen[4][1], seen[-1][1])
    for site, operator in search.operators.items():
        for name, value in operator.state_dict().items():
            assert not torch.equal(value, before[site][name]), (site, name)
    kept = int(search.masks()["residual"].sum())
    target = Budget(keep=0.7).target(made.space)
    assert made.space.count({"residual": kept}) <= target < made.space.count({"residual": kept + 1})


def test_the_penalty_pulls_towards_the_budget(tmp_path):
    made = setting(tmp_path, space_name="residual")
    search = begin(made, margin_weight=0.0, identity_weight=0.0)
    for value, sign in ((-0.1, -1), (0.1, 1)):  # too few dims: the gradient asks for more; too many: for fewer
        with torch.no_grad():
            search.logits.fill_(value)
        (gradient,) = torch.autograd.grad(search.penalty(), search.logits)
        assert (gradient.sign() == sign).all()
    target = Budget(keep=0.7).target(made.space)
    assert search.penalty().item() == pytest.approx(10 * (made.space.num_parameters - target) / target, rel=FLOAT32)


def test_orthogonality_is_asked_of_all_operators(tmp_path):
    made = setting(tmp_path, space_name="residual")
    search = begin(made, active_weight=0.0, margin_weight=0.0, identity_weight=2.0)
    operators = list(search.operators.values())
    for index, operator in enumerate(operators):
        torch.nn.init.constant_(operator.up, 0.1 * (index + 1))
    losses = [operator.identity_loss().item() for operator in operators]
    assert len(set(losses)) == 5
    penalty = search.penalty()
    assert penalty.item() == pytest.approx(2 * sum(losses) / 5, rel=FLOAT32)
    penalty.backward()
    for operator in operators:
        assert operator.down.grad.abs().sum() > 0
        assert operator.up.grad.abs().sum() > 0
