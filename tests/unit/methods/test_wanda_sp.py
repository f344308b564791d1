"""Wanda-sp in order equals statistics of the whole model with the layers before masked."""

import pytest
import torch
from helpers.tiny_tuning import hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget, allocate
from tuneprune.calibration.activations import consumer, gather
from tuneprune.calibration.statistics import Statistics
from tuneprune.methods.wanda_sp import in_order, unit_scores
from tuneprune.structure.masks import Gates


def test_a_kv_group_counts_all_features_of_its_query_heads(tmp_path):
    made = setting(tmp_path, lora=False)
    group = next(group for group in made.space.groups if group.kind == "kv_group")
    weight = made.model.get_parameter(f"{consumer(group).module}.weight").data
    weight.zero_()
    weight[:2, 15:17] = torch.tensor([[1.0, 2], [-3, 4]])  # the last of the first group, the first of the second
    squares = torch.zeros(32)
    squares[15:17] = torch.tensor([4.0, 9])
    found = {consumer(group).module: Statistics(torch.tensor(1.0), torch.zeros(32), squares)}
    assert unit_scores(made.subject, group, found).tolist() == pytest.approx([(1 + 3) / 32 * 2, (2 + 4) / 32 * 3])


@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen3", "phi3", "gemma2", "gpt_neox"])
def test_in_order_is_the_masked_model_layer_by_layer(tmp_path, variant):
    made = setting(tmp_path, lora=False, variant=variant)
    made.model.double()
    batches = [made.tuner.next_calibration() for _ in range(3)]
    kept = {group.name: max(1, group.size // 2) for group in made.space.groups}
    masks = in_order(made.subject, batches, kept)
    assert hooks_of(made.model) == 0
    before = made.space.ones()
    for layer in range(2):
        with Gates(made.model, made.space)(before):
            found = gather(made.subject, batches)
        for group in made.space.groups:
            if group.layer == layer:
                best = unit_scores(made.subject, group, found).topk(kept[group.name]).indices
                assert masks[group.name].nonzero().squeeze(1).tolist() == sorted(best.tolist())
        before |= {group.name: masks[group.name] for group in made.space.groups if group.layer == layer}


def test_in_order_or_not_keeps_equally_many(tmp_path):
    widths = []
    for sequential in (True, False):
        made = setting(tmp_path / str(sequential), lora=False)
        method = methods.build({"name": "wanda_sp", "batches": 2, "sequential": sequential})
        widths.append(method.begin(made.subject, Budget(keep=0.6)).plan().widths(made.space))
    assert widths[0] == widths[1]


def test_how_many_a_group_keeps_does_not_depend_on_the_scores(tmp_path):
    made = setting(tmp_path, lora=False)
    for budget in (Budget(), Budget(multiple_of=4), Budget(per_layer="uniform")):
        counts = []
        for seed in range(3):
            draw = torch.Generator().manual_seed(seed)
            scores = {group.name: torch.rand(group.size, generator=draw) for group in made.space.groups}
            masks = allocate(scores, made.space, budget, "local")
            counts.append([int(mask.sum()) for mask in masks.values()])
        assert counts[0] == counts[1] == counts[2]
