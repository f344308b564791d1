"""Block influence and angular distances against numbers worked out by hand."""

import math
from itertools import pairwise

import pytest
import torch
from helpers.tiny_tuning import hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget, count_parameters
from tuneprune.methods.short import angular_distances, block_influence, flattest, last_tokens
from tuneprune.structure.edits import Drop

BATCH = {  # two rows: documents of 3 and 2 tokens and one of padding; a document of 4, its padding counted on
    "input_ids": torch.tensor([[5, 6, 7, 8, 9, 0], [10, 11, 12, 13, 0, 0]]),
    "labels": torch.tensor([[-100, 6, 7, -100, 9, -100], [-100, -100, 12, 13, -100, -100]]),
    "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 5]]),
}


@pytest.fixture
def made(tmp_path):
    made = setting(tmp_path, space_name="depth", lora=False)
    made.subject = type(made.subject)(**vars(made.subject) | {"calibration": lambda: BATCH})
    return made


def silence(layer):
    """Make a layer hand its input on."""
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


@torch.no_grad()
def stream(model):
    """The residual stream before each of the four layers and behind the last."""
    seen = []
    handles = [model.model.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    handles += [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in model.model.layers]
    model(input_ids=BATCH["input_ids"], position_ids=BATCH["position_ids"], use_cache=False)
    for handle in handles:
        handle.remove()
    return [states.double() for states in seen]


def test_influence_is_one_minus_the_mean_cosine_of_real_tokens(made):
    states = stream(made.model)
    found = block_influence(made.subject, 2)
    for index, (before, after) in enumerate(pairwise(states)):
        cosines = []
        for row, length in ((0, 5), (1, 4)):
            for token in range(length):
                x, y = before[row, token], after[row, token]
                cosines.append((x @ y / (x.norm() * y.norm())).item())
        assert found[f"model.layers.{index}"].tolist() == [pytest.approx(1 - sum(cosines) / 9, abs=1e-6)]


def test_a_layer_that_does_nothing_has_no_influence_and_goes_first(made):
    silence(made.model.model.layers[2])
    assert block_influence(made.subject, 1)["model.layers.2"].item() == pytest.approx(0, abs=1e-12)
    plan = methods.build({"name": "short", "batches": 1}).begin(made.subject, Budget(keep=0.9)).plan()
    assert plan.edits == (Drop("model.layers.2"),)
    assert hooks_of(made.model) == 0


def test_angular_distance_is_the_angle_over_pi_at_the_last_token_of_every_document(made):
    states = stream(made.model)
    found = angular_distances(made.subject, 2)["distances"]
    last = [(0, 2), (0, 4), (1, 3)]
    for i in range(5):
        for j in range(5):
            angles = []
            for row, token in last:
                x, y = states[i][row, token], states[j][row, token]
                angles.append(math.acos(min(1.0, (x @ y / (x.norm() * y.norm())).item())))
            assert found[i, j].item() == pytest.approx(sum(angles) / 3 / math.pi, abs=1e-6)
    assert hooks_of(made.model) == 0


def test_last_tokens_end_documents_and_are_no_padding():
    assert last_tokens(BATCH).nonzero().tolist() == [[0, 2], [0, 4], [1, 3]]


def test_the_flattest_run_by_hand():
    distances = torch.tensor([[0.0, 0.3, 0.5, 0.6], [0.3, 0.0, 0.1, 0.4], [0.5, 0.1, 0.0, 0.2], [0.6, 0.4, 0.2, 0.0]])
    assert [flattest(distances, length) for length in (1, 2, 3)] == [1, 1, 0]


@pytest.mark.parametrize(("keep", "dropped"), [(0.9, 1), (0.7, 2), (0.4, 3), (1.0, 0)])
def test_contiguous_drops_neighbours_within_the_budget(made, keep, dropped):
    budget = Budget(keep=keep)
    plan = methods.build({"name": "short", "contiguous": True, "batches": 1}).begin(made.subject, budget).plan()
    gone = [made.space.by_name[edit.block].layer for edit in plan.of_kind(Drop)]
    assert gone == list(range(gone[0], gone[0] + dropped)) if gone else dropped == 0
    assert len(gone) == dropped
    assert count_parameters(made.space, plan.masks(made.space)) <= budget.target(made.space)


def test_contiguous_takes_the_run_across_which_the_stream_turns_least(made):
    for index in (1, 2):
        silence(made.model.model.layers[index])
    method = methods.build({"name": "short", "contiguous": True, "batches": 1})
    plan = method.begin(made.subject, Budget(keep=0.7)).plan()
    assert plan.edits == (Drop("model.layers.1"), Drop("model.layers.2"))
