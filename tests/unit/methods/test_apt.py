"""APT: its salience and outlier term by hand, its falling masks, and that it goes on where it stopped."""

from itertools import pairwise

import pytest
import torch
from helpers.precision import FLOAT32
from helpers.tiny_tuning import assert_equal, hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget, count_parameters
from tuneprune.errors import ConfigError, TunePruneError
from tuneprune.methods.apt import fallen, kurtosis, weight_moments
from tuneprune.structure.weights import base_weight


def begin(made, budget=None, **options):
    return methods.build({"name": "apt", **options}).begin(made.subject, budget or Budget())


def consumer(group):
    """The linear that reads what the group's units produced."""
    (module,) = {piece.param for piece in group.slices if piece.dim == 1}
    return module.removesuffix(".weight")


def raw_moments(values):
    return torch.stack([values.pow(power).mean(0) for power in (1, 2, 3, 4)])


def test_kurtosis_by_hand():
    values = torch.tensor([[0.0, 5.0], [0.0, 5.0], [0.0, 5.0], [4.0, 5.0]], dtype=torch.double)
    # mean 1, deviations -1 -1 -1 3: second moment 3, fourth 21
    assert kurtosis(raw_moments(values)).tolist() == pytest.approx([21 / 9, 0])


def test_moments_of_the_outer_product_are_products_of_moments(tmp_path):
    """What unit j adds to the residual stream, w_ij x_j over all rows and tokens, never has to be built."""
    made = setting(tmp_path)
    search = begin(made)
    group = next(g for g in made.space.groups if g.kind == "mlp_channel")
    weight = base_weight(made.model, f"{consumer(group)}.weight").double()
    draw = torch.randn(30, group.size, generator=torch.Generator().manual_seed(0), dtype=torch.double).pow(3)
    built = (draw[:, None, :] * weight[None]).reshape(-1, group.size)
    centred = built - built.mean(0)
    expected = centred.pow(4).mean(0) / centred.pow(2).mean(0).pow(2)
    found = kurtosis(raw_moments(draw) * weight_moments(made.subject, search.activities[group.name]))
    torch.testing.assert_close(found, expected.detach())


@pytest.mark.parametrize(
    "options", [{}, {"micro_batch_size": 2}, {"gradient_checkpointing": True}, {"variant": "olmo2"}]
)
def test_salience_of_a_step_by_hand(tmp_path, options):
    made = setting(tmp_path, steps=1, **options)
    search = begin(made, momentum=0.75, outlier_weight=0.5)
    seen = {group.name: [] for group in made.space.groups}

    def keep(name):
        def hook(_, inputs):
            hidden = inputs[0]
            seen[name].append(hidden)
            hidden.retain_grad()

        return hook

    handles = [
        made.model.get_submodule(consumer(group)).register_forward_pre_hook(keep(group.name))
        for group in made.space.groups
    ]
    made.tuner.run(search)
    for handle in handles:
        handle.remove()
    salience, outliers = {}, {}
    for group in made.space.groups:
        hidden = torch.cat([h.detach().flatten(0, -2) for h in seen[group.name] if h.grad is not None])
        slopes = torch.cat([h.grad.flatten(0, -2) for h in seen[group.name] if h.grad is not None])
        product = hidden.abs().mean(0) * slopes.abs().sum(0)
        weight = base_weight(made.model, f"{consumer(group)}.weight").double()
        tails = kurtosis(raw_moments(hidden.double()) * raw_moments(weight)).sqrt()
        salience[group.name] = product.view(group.size, -1).sum(1)  # heads of a KV group lie side by side
        outliers[group.name] = tails.view(group.size, -1).mean(1).float()
    scales = [torch.cat(list(term.values())).mean() for term in (salience, outliers)]
    for name, value in salience.items():
        expected = 0.25 * (value / scales[0] + 0.5 * outliers[name] / scales[1])
        torch.testing.assert_close(search._salience[name], expected.detach(), rtol=1e-3, atol=1e-5)
    assert hooks_of(made.model) == int("gradient_checkpointing" in options)  # transformers leaves one on the embedding


def test_falling_by_hand():
    soft, hard = torch.tensor([1.0, 1.0, 0.4]), torch.tensor([1.0, 0.0, 0.0])
    seen = []
    for _ in range(10):
        soft = fallen(soft, hard, 10)
        seen.append(soft[1].item())
    assert seen == pytest.approx([1 - step / 10 for step in range(1, 11)], abs=FLOAT32)
    assert soft.tolist() == [1, 0, 0]


def test_dropped_units_fall_and_never_come_back(tmp_path):
    made = setting(tmp_path, steps=20)
    budget = Budget(keep=0.6)
    search, soft, hard, phases = begin(made, budget, every=4, fall_share=0.2), [], [], []

    def note(metrics):
        soft.append(dict(search._soft))
        hard.append(dict(search.masks()))
        phases.append(metrics["phase"])

    made.tuner.observe = note
    made.tuner.run(search)
    changes = [any((after[name] < before[name]).any() for name in after) for before, after in pairwise(hard)]
    assert [step for step, is_changed in enumerate(changes, 1) if is_changed] == [6, 10]  # of steps 2 to 10
    for one, other in pairwise(soft):
        assert all((other[name] <= one[name]).all() for name in one)
        assert all((one[name] - other[name]).max() <= 0.25 + 1e-6 for name in one)
    assert phases == ["control"] * 13 + ["frozen"]
    assert_equal(soft[-1], hard[-1])
    assert count_parameters(made.space, hard[-1]) <= budget.target(made.space)
    plan = search.plan()
    assert plan.provenance["lora_residue"]["before_projection"] == 0
    assert_equal(hard[-1], plan.masks(made.space))


def test_skipped_step_is_not_observed(tmp_path):
    made = setting(tmp_path, steps=3)
    search = begin(made)
    search.penalty = lambda: (
        next(p for p in made.model.parameters() if p.requires_grad).sum()
        * (float("nan") if made.tuner.result.steps == 1 else 0.0)
    )
    assert made.tuner.run(search).skipped_steps == 1
    assert all(torch.isfinite(value).all() for value in search._salience.values())


def test_nothing_seen_is_an_error(tmp_path):
    with pytest.raises(TunePruneError, match="saw no finite gradient"):
        begin(setting(tmp_path)).plan()


def test_the_end_comes_after_the_start():
    with pytest.raises(ConfigError, match=r"start_share=0.6 must be below end_share=0.5"):
        methods.build({"name": "apt", "start_share": 0.6})
