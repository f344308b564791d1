"""Minitron's importance against numbers worked out by hand."""

import pytest
import torch
from helpers.tiny_tuning import hooks_of, setting

from tuneprune import methods
from tuneprune.budget import Budget
from tuneprune.calibration.activations import consumer
from tuneprune.calibration.batch import real_tokens
from tuneprune.calibration.statistics import reading
from tuneprune.errors import ConfigError
from tuneprune.methods.minitron import importance, joined
from tuneprune.structure.space import PruningSpace


def test_joined_by_hand():
    sizes = torch.tensor([[[3.0], [4], [0]]])  # one row of two tokens and padding
    tokens = torch.tensor([[2.0]])
    assert joined(sizes, tokens, "mean").tolist() == [[3.5]]
    assert joined(sizes, tokens, "l2").tolist() == [[5]]


@pytest.mark.parametrize(("over_sequence", "over_batch"), [("mean", "l2"), ("l2", "mean")])
def test_importance_joins_tokens_then_rows(tmp_path, over_sequence, over_batch):
    made = setting(tmp_path, lora=False)
    batches = [made.tuner.next_calibration() for _ in range(2)]
    rest = iter(batches)
    object.__setattr__(made.subject, "calibration", lambda: next(rest))
    found = importance(made.subject, 2, over_sequence, over_batch)
    assert hooks_of(made.model) == 0
    for group in made.space.groups:
        module, inputs = consumer(group).module, []
        with torch.no_grad(), reading(made.model, [module], lambda _, x, inputs=inputs: inputs.append(x.double())):
            for batch in batches:
                made.subject.runtime.loss(batch)
        rows = []
        for batch, states in zip(batches, inputs, strict=True):
            for row, real in zip(states, real_tokens(batch), strict=True):
                sizes = row[real].view(int(real.sum()), group.size, -1).norm(dim=2)
                rows.append(sizes.mean(0) if over_sequence == "mean" else sizes.norm(dim=0))
        stacked = torch.stack(rows)
        expected = stacked.norm(dim=0) if over_batch == "l2" else stacked.mean(0)
        torch.testing.assert_close(found[group.name], expected)


def test_all_layers_keep_equally_many_unless_told_otherwise(tmp_path):
    made = setting(tmp_path, lora=False)
    plan = methods.build({"name": "minitron", "batches": 1}).begin(made.subject, Budget(keep=0.61)).plan()
    widths = plan.widths(made.space)
    assert len({widths[group.name] for group in made.space.groups if group.kind == "mlp_channel"}) == 1
    assert plan.provenance["budget"]["per_layer"] == "uniform"
    free = methods.build({"name": "minitron", "batches": 1, "uniform": False}).begin(made.subject, Budget()).plan()
    assert free.provenance["budget"]["per_layer"] == "free"


def test_layers_of_different_width_are_refused_before_any_work(tmp_path):
    made = setting(tmp_path, lora=False)
    ragged = PruningSpace("width", made.space.groups[:-1], made.space.shapes)
    smaller = PruningSpace("width", (*made.space.groups[:2], *reversed(made.space.groups[2:])), made.space.shapes)
    method = methods.build({"name": "minitron"})
    method.check(made.space, Budget())
    with pytest.raises(ConfigError, match="layers of equal width"):
        method.check(smaller, Budget())
    methods.build({"name": "minitron", "uniform": False}).check(ragged, Budget())
