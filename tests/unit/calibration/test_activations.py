"""Scores from activations against numbers worked out by hand."""

import pytest
import torch
from helpers.tiny import tiny_model
from helpers.tiny_tuning import setting

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.calibration.activations import consumer, consumer_statistics, gather, per_unit, standardised, wanda
from tuneprune.calibration.batch import real_tokens
from tuneprune.calibration.statistics import Statistics, reading
from tuneprune.compress import rewrite
from tuneprune.errors import UnreachableBudget
from tuneprune.methods.flap import feature_scores
from tuneprune.structure.edits import Bias
from tuneprune.structure.masks import Gates

INPUTS = torch.tensor([[1.0, 2], [3, 2], [2, -4]], dtype=torch.double)  # 3 tokens of 2 features


def statistics_of(inputs):
    return Statistics(torch.tensor(float(len(inputs))), inputs.sum(0), inputs.pow(2).sum(0))


def group_of(made, kind, layer=0):
    return next(group for group in made.space.groups if group.kind == kind and group.layer == layer)


def give_weight(made, group, columns):
    """Let the consumer's weight be zero but for its first rows."""
    weight = made.model.get_parameter(f"{consumer(group).module}.weight").data
    weight.zero_()
    weight[: len(columns), : columns.shape[1]] = columns
    return weight


def padded(values, size):
    return torch.cat([values, torch.zeros(len(values), size - values.shape[1], dtype=values.dtype)], 1)


def test_flap_metrics_by_hand(tmp_path):
    made = setting(tmp_path, lora=False)
    group = group_of(made, "mlp_channel")
    give_weight(made, group, torch.tensor([[3.0, 1], [4, -1]]))
    found = statistics_of(padded(INPUTS, 48))
    variances = [2 / 3, 8]
    assert feature_scores(made.subject, group, found, "ifv")[:2].tolist() == pytest.approx(variances)
    assert feature_scores(made.subject, group, found, "wifv")[:2].tolist() == pytest.approx([25 * 2 / 3, 2 * 8])
    norms = [14**0.5, 24**0.5]
    expected = [7 / 32 * norms[0], 2 / 32 * norms[1]]  # the mean over 32 outputs
    assert feature_scores(made.subject, group, found, "wifn")[:2].tolist() == pytest.approx(expected)
    assert wanda(made.subject, group, found)[:2].tolist() == pytest.approx(expected)


def test_features_of_a_kv_group_are_those_of_all_its_query_heads(tmp_path):
    made = setting(tmp_path, lora=False)  # 4 query heads of 8, 2 KV groups
    units = per_unit(torch.arange(32), group_of(made, "kv_group"))
    assert units.tolist() == [list(range(16)), list(range(16, 32))]


def test_standardised_by_hand():
    assert standardised(torch.tensor([1.0, 3])).tolist() == [-1, 1]
    assert standardised(torch.ones(3)).tolist() == [0, 0, 0]


def test_the_statistics_of_the_consumers_come_from_one_pass(tmp_path):
    made = setting(tmp_path, lora=False)
    drawn = []

    def calibration():
        drawn.append(made.tuner.next_calibration())
        return drawn[-1]

    object.__setattr__(made.subject, "calibration", calibration)
    found = consumer_statistics(made.subject, 3)
    assert found.keys() == {consumer(group).module for group in made.space.groups}
    assert len(drawn) == 3
    for one in found.values():
        assert one.tokens == sum(int(real_tokens(batch).sum()) for batch in drawn)
        assert one.gram is None


def mean_outputs(made, model, modules, masks, batches):
    """Mean output of linears under masks when everything before them is as in the dense model."""
    inputs = {}
    with torch.no_grad(), reading(made.model, modules, lambda path, x: inputs.setdefault(path, []).append(x)):
        for batch in batches:
            made.subject.runtime.loss(batch)
    means = {}
    for group in made.space.groups:
        path = consumer(group).module
        rows = torch.cat([x[real_tokens(batch)] for x, batch in zip(inputs[path], batches, strict=True)])
        mask = consumer(group).segment.spread(masks[group.name].to(rows))
        means[path] = model.get_submodule(path)(rows * mask).mean(0)
    return means


@pytest.mark.parametrize("variant", ["llama", "llama_mha_biased", "phi3", "qwen2"])
def test_flaps_bias_keeps_the_mean_output_on_the_calibration_data(tmp_path, variant):
    made = setting(tmp_path, lora=False, variant=variant)
    made.model.double()
    batches = [made.tuner.next_calibration() for _ in range(4)]
    rest = iter(batches)
    object.__setattr__(made.subject, "calibration", lambda: next(rest))
    plan = methods.build({"name": "flap", "batches": 4}).begin(made.subject, Budget(keep=0.6)).plan()
    modules = [edit.module for edit in plan.of_kind(Bias)]
    assert modules
    dense = mean_outputs(made, made.model, modules, made.space.ones(), batches)
    small = rewrite(tiny_model(variant), made.architecture, made.space, plan)
    small.load_state_dict(made.model.state_dict(), strict=False)  # its weights; biases that are new stay
    for edit in plan.of_kind(Bias):
        linear = small.get_submodule(edit.module)
        old = made.model.get_submodule(edit.module).bias
        linear.bias.data = edit.bias + (0 if old is None else old.data)
    masked = mean_outputs(made, small, modules, plan.masks(made.space), batches)
    for module in modules:
        torch.testing.assert_close(masked[module], dense[module], rtol=1e-9, atol=1e-9)


def test_a_constant_channel_goes_first_and_costs_nothing(tmp_path):
    made = setting(tmp_path, lora=False, variant="llama_mha_biased")
    group = group_of(made, "mlp_channel")
    with torch.no_grad():
        mlp = made.model.get_submodule(group.name)
        mlp.gate_proj.weight[7], mlp.up_proj.weight[7] = 0, 0
        mlp.gate_proj.bias[7], mlp.up_proj.bias[7] = 2, 3
    batches = [made.tuner.next_calibration()]
    found = gather(made.subject, batches)[consumer(group).module]
    assert found.variance[7] == pytest.approx(0, abs=1e-9)
    plan = methods.build({"name": "flap", "batches": 1}).begin(made.subject, Budget(keep=0.9)).plan()
    assert plan.masks(made.space)[group.name][7] == 0


@pytest.mark.parametrize("variant", ["llama", "llama_mha_biased"])
def test_flap_pays_for_the_biases_it_needs_and_for_no_other(tmp_path, variant):
    made = setting(tmp_path, lora=False, variant=variant)
    for keep in (0.5, 0.62, 0.8, 0.97, 0.999):
        budget = Budget(keep=keep)
        plan = methods.build({"name": "flap", "batches": 1}).begin(made.subject, budget).plan()
        total = made.space.count(plan.widths(made.space)) + plan.added(made.space)
        assert budget.target(made.space) - 3 * 32 - 3 < total <= budget.target(made.space)
        assert (plan.added(made.space) > 0) == (variant == "llama")


def test_flap_removes_nothing_where_nothing_has_to_go(tmp_path):
    made = setting(tmp_path, lora=False)
    plan = methods.build({"name": "flap", "batches": 1}).begin(made.subject, Budget(keep=1.0)).plan()
    assert plan.widths(made.space) == {group.name: group.size for group in made.space.groups}
    assert plan.added(made.space) == 0


def test_flap_refuses_before_calibration_what_its_biases_leave_no_room_for(tmp_path):
    made = setting(tmp_path, lora=False)
    with pytest.raises(UnreachableBudget) as told:
        methods.build({"name": "flap"}).check(made.space, Budget(keep=0.01))
    lowest = float(str(told.value).split("on this model: ")[1][:6])
    methods.build({"name": "flap", "batches": 1}).begin(made.subject, Budget(keep=lowest)).plan()
    with pytest.raises(UnreachableBudget):
        methods.build({"name": "flap"}).check(made.space, Budget(keep=lowest - 0.001))
    methods.build({"name": "flap", "bias": False}).check(made.space, Budget(keep=lowest - 0.001))


def widths(made, **options):
    method = methods.build({"name": "flap", "batches": 2, "bias": False, **options})
    return method.begin(made.subject, Budget(keep=0.7)).plan().widths(made.space)


def test_structures_fix_what_their_names_say(tmp_path):
    made = setting(tmp_path, lora=False, variant="llama_mha_biased")  # 4 KV groups in each of 2 layers
    attention = [group.name for group in made.space.groups if group.kind == "kv_group"]
    mlp = [group.name for group in made.space.groups if group.kind == "mlp_channel"]
    uniform = widths(made, structure="ul-um")
    assert len({uniform[name] for name in attention}) == 1
    assert abs(uniform[mlp[0]] - uniform[mlp[1]]) <= 1
    mixed = widths(made, structure="ul-mm", attention_keep=0.75)
    assert [mixed[name] for name in attention] == [3, 3]
    assert abs(mixed[mlp[0]] - mixed[mlp[1]]) <= 1
    adaptive = widths(made, structure="al-mm", attention_keep=0.625)
    assert sum(adaptive[name] for name in attention) == 5


def test_under_flaps_masks_gates_and_biases_act_alike(tmp_path):
    made = setting(tmp_path, lora=False)
    plan = methods.build({"name": "flap", "batches": 1}).begin(made.subject, Budget()).plan()
    rewritten = rewrite(made.model, made.architecture, made.space, plan)
    with torch.no_grad(), Gates(rewritten, made.space)(plan.masks(made.space)):
        loss = made.subject.runtime.loss(made.tuner.next_calibration())
    assert loss.isfinite()
