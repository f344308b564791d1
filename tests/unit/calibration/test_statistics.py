"""Statistics of inputs against numbers worked out by hand."""

import pytest
import torch
from helpers.tiny_tuning import hooks_of
from torch import nn

from tuneprune.calibration.batch import real_tokens
from tuneprune.calibration.statistics import input_statistics


class Doubler(nn.Module):
    """Feeds twice its tokens, as one feature and its square, into a linear."""

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(2, 1, dtype=torch.double)

    def forward(self, batch):
        tokens = 2 * batch["input_ids"].double()
        return self.read(torch.stack([tokens, tokens**2], -1))


def batch(ids, labels):
    return {"input_ids": torch.tensor(ids), "labels": torch.tensor(labels)}


BATCHES = [
    batch([[1, 2, 9], [3, 9, 9]], [[-100, 2, -100], [3, -100, -100]]),
    batch([[4, 9, 9]], [[4, -100, -100]]),
]


def test_padding_is_what_comes_behind_the_last_label():
    assert real_tokens(BATCHES[0]).tolist() == [[True, True, False], [True, False, False]]
    assert not real_tokens(batch([[1, 2]], [[-100, -100]])).any()


def test_sums_over_real_tokens_of_all_batches():
    model = Doubler().train()
    found = input_statistics(model, ["read"], BATCHES, model, lambda _: None, gram=True)["read"]
    values = torch.tensor([2.0, 4, 6, 8], dtype=torch.double)  # the padding, 9, is left out
    both = torch.stack([values, values**2])
    assert found.tokens == 4
    assert found.mean.tolist() == [5, 30]
    assert found.variance.tolist() == pytest.approx([5, (16 + 256 + 1296 + 4096) / 4 - 900])
    assert found.norm[0] == pytest.approx(120**0.5)
    torch.testing.assert_close(found.gram, both @ both.T)
    assert model.training
    assert hooks_of(model) == 0


def test_without_gram_nothing_quadratic_is_held():
    model = Doubler()
    found = input_statistics(model, ["read"], BATCHES, model, lambda _: None)["read"]
    assert found.gram is None
    assert found.tensors().keys() == {"tokens", "total", "squares"}


def test_every_process_gets_the_same_average():
    def halve(tensors):  # what averaging with an idle process does
        for tensor in tensors:
            tensor /= 2

    model = Doubler()
    found = input_statistics(model, ["read"], BATCHES, model, halve)["read"]
    assert found.tokens == 2
    assert found.mean.tolist() == [5, 30]
