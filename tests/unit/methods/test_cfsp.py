"""CFSP's shares and scores against numbers worked out by hand."""

import math

import pytest
import torch
from helpers.tiny_tuning import hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.calibration.activations import consumer, gather
from tuneprune.calibration.batch import real_tokens
from tuneprune.errors import UnreachableBudget
from tuneprune.methods.cfsp import is_mlp, layer_shares, mean_share


def mlp_group(made, layer=0):
    return next(group for group in made.space.groups if group.kind == "mlp_channel" and group.layer == layer)


def test_layer_shares_by_hand():
    influence = torch.tensor([0.1, 0.3], dtype=torch.double)
    low, high = 1 / (1 + math.exp(0.2)), 1 / (1 + math.exp(-0.2))  # sharpness 2, 0.1 from the mean
    shares = layer_shares(influence, 0.5, 2.0)
    assert shares.tolist() == pytest.approx([low, high])  # their mean is 0.5
    assert layer_shares(influence, 0.5, 0.0).tolist() == [0.5, 0.5]


def test_shares_shrink_towards_the_mean_where_one_would_reach_all():
    influence = torch.tensor([0.0, 0.0, 1.0], dtype=torch.double)
    shares = layer_shares(influence, 0.8, 100.0)
    assert shares.mean() == pytest.approx(0.8)
    assert shares.max() == pytest.approx(0.8 + 0.2 / 1.05)
    assert layer_shares(influence, 1.0, 100.0).tolist() == [1, 1, 1]


def test_the_influence_is_the_mean_angle_over_real_tokens(tmp_path):
    made = setting(tmp_path, lora=False)
    batches = [made.tuner.next_calibration() for _ in range(2)]
    influence = scores(made, batches)["influence"]
    assert hooks_of(made.model) == 0
    angles = []
    with torch.no_grad():
        for batch in batches:
            inputs = {"input_ids": batch["input_ids"], "position_ids": batch["position_ids"], "use_cache": False}
            states = made.model(**inputs, output_hidden_states=True).hidden_states
            cosine = torch.cosine_similarity(states[0], states[1], dim=-1)[real_tokens(batch)]
            angles.append(cosine.clamp(-1, 1).arccos() / math.pi)
    assert influence[0] == pytest.approx(torch.cat(angles).mean().item(), rel=1e-5)


def scores(made, batches, **options):
    rest = iter(batches)
    object.__setattr__(made.subject, "calibration", lambda: next(rest))
    method = methods.build({"name": "cfsp", "batches": len(batches), **options})
    return method._observe(made.subject)


def test_the_literal_score_knows_nothing_of_the_weights(tmp_path):
    made = setting(tmp_path, lora=False)
    batches = [made.tuner.next_calibration()]
    group = mlp_group(made)
    norm = gather(made.subject, batches)[consumer(group).module].norm
    literal = scores(made, batches, score="literal")[group.name]
    torch.testing.assert_close(literal, 3 / 32 * norm)
    squared = scores(made, batches, score="literal", activation_exponent=2)[group.name]
    torch.testing.assert_close(squared, 3 / 32 * norm**2)


@pytest.mark.parametrize("variant", ["llama", "phi3"])
def test_the_intended_score_by_hand(tmp_path, variant):
    made = setting(tmp_path, lora=False, variant=variant)
    batches = [made.tuner.next_calibration()]
    group = mlp_group(made)
    mlp = made.model.get_submodule(group.name)
    norm = gather(made.subject, batches)[consumer(group).module].norm
    down = mlp.down_proj.weight.detach().double().abs()
    if variant == "phi3":
        gate, up = mlp.gate_up_proj.weight.detach().double().abs().chunk(2)
    else:
        gate, up = (linear.weight.detach().double().abs() for linear in (mlp.gate_proj, mlp.up_proj))
    expected = []
    for j in range(48):
        terms = [
            down[i, j] * norm[j] / (down[i] * norm).sum() + up[j, i] / up[:, i].sum() + gate[j, i] / gate[:, i].sum()
            for i in range(32)
        ]
        expected.append(torch.stack(terms).mean() * norm[j])
    torch.testing.assert_close(scores(made, batches)[group.name], torch.stack(expected))


def test_attention_stays_whole_and_layers_follow_their_influence(tmp_path):
    made = setting(tmp_path, lora=False)
    widths = {}
    for sharpness in (0, 1, 20):
        method = methods.build({"name": "cfsp", "batches": 2, "sharpness": sharpness})
        widths[sharpness] = method.begin(made.subject, Budget(keep=0.7)).plan().widths(made.space)
    groups = [mlp_group(made, layer).name for layer in (0, 1)]
    for found in widths.values():
        assert all(found[g.name] == g.size for g in made.space.groups if g.kind == "kv_group")
    assert abs(widths[0][groups[0]] - widths[0][groups[1]]) <= 1
    gaps = [abs(widths[sharpness][groups[0]] - widths[sharpness][groups[1]]) for sharpness in (0, 1, 20)]
    assert gaps == sorted(gaps)
    assert gaps[2] > gaps[0]


def test_the_mean_share_is_what_the_budget_leaves_to_the_mlps(tmp_path):
    made = setting(tmp_path, lora=False)
    mlps = 2 * 48 * 3 * 32
    keep = 1 - mlps / 2 / made.space.num_parameters
    assert mean_share(
        made.space, Budget(keep=keep), {group.name for group in made.space.groups if is_mlp(group)}
    ) == pytest.approx(0.5)


@pytest.mark.parametrize("of", ["total", "prunable"])
def test_a_budget_below_the_rest_of_the_model_is_refused(tmp_path, of):
    made = setting(tmp_path, lora=False)
    method = methods.build({"name": "cfsp"})
    with pytest.raises(
        UnreachableBudget, match=r"`cfsp` removes MLP channels only.*keeps at least 0\.\d+ of this model"
    ) as told:
        method.check(made.space, Budget(keep=0.1, of=of))
    lowest = float(str(told.value).split("at least ")[1].split()[0])
    method.check(made.space, Budget(keep=lowest, of=of))
    with pytest.raises(UnreachableBudget):
        method.check(made.space, Budget(keep=lowest - 0.001, of=of))
