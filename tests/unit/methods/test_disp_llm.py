"""DISP-LLM: what trains when, its masks and budget term by hand, and that it goes on where it stopped."""

import math

import pytest
import torch
from helpers.precision import FLOAT32
from helpers.tiny_tuning import assert_equal, hooks_of, setting, trainable

from tuneprune import methods
from tuneprune.budget import Budget, allocate, count_parameters
from tuneprune.methods.disp_llm import Hypernetwork, rounded


def made_with_disp(folder, **options):
    return setting(folder, space_name="disp", **options)


def begin(made, budget=None, **options):
    return methods.build({"name": "disp_llm", **options}).begin(made.subject, budget or Budget())


def test_rounding_keeps_at_least_the_largest():
    found = rounded({"a": torch.tensor([0.5, 0.49, 0.9]), "b": torch.tensor([0.1, 0.3])})
    assert {name: mask.tolist() for name, mask in found.items()} == {"a": [1, 0, 1], "b": [0, 1]}


def test_hypernetwork_reads_both_ways_and_follows_its_seed(tmp_path):
    space = made_with_disp(tmp_path).space

    def build(seed):
        return Hypernetwork(space, input_size=4, hidden_size=3, random=torch.Generator().manual_seed(seed))

    state, network = torch.get_rng_state(), build(1)
    assert torch.equal(state, torch.get_rng_state())
    logits = network()
    assert {name: len(value) for name, value in logits.items()} == {g.name: g.size for g in space.groups}
    assert_equal(logits, build(1)())
    assert "inputs" not in dict(network.named_parameters())
    names = list(logits)
    for moved, read in ((0, -1), (-1, 0)):
        other = build(1)
        other.inputs[moved] += 1
        assert not torch.equal(other()[names[read]], logits[names[read]])


def test_hypernetwork_by_hand(tmp_path):
    """Zero GRU weights leave h = 0, so logits are heads of GELU of the norm's bias."""
    space = made_with_disp(tmp_path).space
    network = Hypernetwork(space, input_size=4, hidden_size=3, random=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in network.gru.parameters():
            parameter.zero_()
        network.norm.bias.fill_(1.0)
    token = 0.5 * (1 + math.erf(1 / math.sqrt(2)))
    for head, logits in zip(network.heads, network().values(), strict=True):
        torch.testing.assert_close(logits, head.weight.sum(1) * token)


def test_masks_and_budget_term_by_hand(tmp_path):
    made = made_with_disp(tmp_path)
    search = begin(made, Budget(keep=0.5, of="prunable"), budget_weight=2.0)
    fixed = {group.name: torch.full((group.size,), -6.0, requires_grad=True) for group in made.space.groups}
    for logits in fixed.values():
        logits.data[:5] = 1.0
    search.hypernetwork = lambda: fixed
    search._noise = {name: torch.full_like(value, 0.2).detach() for name, value in fixed.items()}
    kept = made.space.count(dict.fromkeys(fixed, 5)) - (made.space.num_parameters - made.space.num_prunable)
    expected = 2 * abs(math.log(kept) - math.log(made.space.num_prunable / 2))
    penalty = search.penalty()
    assert penalty.item() == pytest.approx(expected, rel=FLOAT32)
    penalty.backward()
    assert all((logits.grad < 0).all() for logits in fixed.values())  # too little is kept: every logit is pulled up
    soft = search._soft()
    for value in soft.values():
        assert value[0].item() == pytest.approx(1 / (1 + math.exp(-(1 + 0.2 + 3) / 0.4)), rel=FLOAT32)
        assert value[-1].item() == pytest.approx(1 / (1 + math.exp((6 - 0.2 - 3) / 0.4)), rel=FLOAT32)


def test_hypernetwork_learns_while_lora_waits(tmp_path):
    made = made_with_disp(tmp_path, steps=8, weight_decay=0.1)
    search, budget = begin(made, search_share=0.5), Budget()
    start, weights, nets, phases = trainable(made.model), [], [], []

    def note(metrics):
        weights.append(trainable(made.model))
        nets.append({name: p.detach().clone() for name, p in search.hypernetwork.named_parameters()})
        phases.append((metrics["phase"], "budget_penalty" in metrics))

    made.tuner.observe = note
    made.tuner.run(search)
    assert phases == [("control", True)] * 4
    assert_equal(start, weights[3])
    assert any(not torch.equal(value, nets[0][name]) for name, value in nets[3].items())
    plan = search.plan()
    assert_equal(dict(search.masks()), allocate(search.hypernetwork(), made.space, budget))
    assert plan.provenance["lora_residue"]["before_projection"] == 0
    assert hooks_of(made.model) == 0


def test_search_starts_from_the_whole_model_and_approaches_the_budget(tmp_path):
    made = made_with_disp(tmp_path, steps=60, warmup_share=0.0)
    search, shares = begin(made, Budget(keep=0.6), search_share=1.0, base=5.0), []
    made.tuner.observe = lambda metrics: shares.append(metrics["kept_share"])
    made.tuner.run(search)
    assert shares[0] > 0.95
    assert abs(sum(shares[-5:]) / 5 - 0.6) < 0.1
    assert count_parameters(made.space, search.plan().masks(made.space)) <= Budget(keep=0.6).target(made.space)


@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_micro_batches_share_a_sample(tmp_path, micro_batch_size):
    searches = []
    for name, size in (("whole", None), ("parts", micro_batch_size)):
        made = made_with_disp(tmp_path / name, steps=3, micro_batch_size=size, gradient_checkpointing=bool(size))
        searches.append(begin(made, search_share=1.0))
        made.tuner.run(searches[-1])
    states = [search.hypernetwork.state_dict() for search in searches]
    assert_equal(*states, rtol=1e-3, atol=2e-4)
