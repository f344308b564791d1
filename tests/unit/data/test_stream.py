from collections import Counter

import numpy as np
import pytest
import torch
from helpers.precision import EXACT, FLOAT32, within
from helpers.tiny import tiny_model

from tuneprune.data import Encoded, Stream
from tuneprune.errors import ConfigError, DataError

PAD = 0


def documents(*lengths, first=1):
    """Documents whose tokens are all the document's number, from `first`."""
    return [Encoded([n] * length, [n] * length) for n, length in enumerate(lengths, start=first)]


def stream(encoded, weights=None, **changes):
    settings = {"batch_size": 4, "max_length": 16, "pad_id": PAD, "seed": 3}
    return Stream(encoded, weights, **settings | changes)


LENGTHS = np.random.default_rng(0).integers(1, 17, 60).tolist()


def epoch_rows(source):
    """The rows of a whole epoch, with the document number of each token."""
    count = len(source)
    rows = []
    while len(rows) < count:
        rows += source.next()["input_ids"].tolist()
    return rows[:count]


def test_an_epoch_holds_every_document_once_and_whole():
    source = stream(documents(*LENGTHS), batch_size=1)
    tokens = Counter(token for row in epoch_rows(source) for token in row if token != PAD)
    assert tokens == dict(enumerate(LENGTHS, start=1))


def test_packing_wastes_little():
    lengths = [1 + length // 2 for length in LENGTHS]
    assert len(stream(documents(*lengths))) <= 1.05 * sum(lengths) / 16
    assert len(stream(documents(*LENGTHS), packing=False)) == len(LENGTHS)


def test_tensors_of_a_packed_row():
    source = stream(documents(3, 2), batch_size=1, max_length=8)
    batch = source.next()
    assert list(batch) == ["input_ids", "labels", "position_ids"]
    assert all(tensor.shape == (1, 5) and tensor.dtype == torch.int64 for tensor in batch.values())
    assert batch["position_ids"].tolist() in ([[0, 1, 2, 0, 1]], [[0, 1, 0, 1, 2]])
    starts = batch["position_ids"] == 0
    assert (batch["labels"][starts] == -100).all()
    assert torch.equal(batch["labels"][~starts], batch["input_ids"][~starts])


def test_padding_is_a_document_of_its_own_and_never_learned():
    source = stream(documents(8, 5), batch_size=2, max_length=8)
    batch = source.next()
    short = batch["input_ids"][:, -1] == PAD
    assert batch["position_ids"][short].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch["labels"][short][0, 5:].tolist() == [-100] * 3
    batch = stream(documents(8, 5), batch_size=2, max_length=8, packing=False).next()
    assert batch["position_ids"].tolist() == [list(range(8))] * 2
    assert batch["labels"][batch["input_ids"] == PAD].tolist() == [-100] * 3


def test_prompts_stay_unlearned():
    encoded = [Encoded([5, 6, 7, 8], [-100, -100, 7, 8])]
    assert stream(encoded, batch_size=1).next()["labels"].tolist() == [[-100, -100, 7, 8]]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("num_before", [0, 1, 3, 17])
def test_a_resumed_stream_continues_exactly(packing, num_before):
    settings = {"packing": packing, "batch_size": 6}
    one = stream(documents(*LENGTHS), **settings)
    for _ in range(num_before):
        one.next()
    other = stream(documents(*LENGTHS), **settings)
    other.load_state_dict(one.state_dict())
    for _ in range(12):
        ours, theirs = one.next(), other.next()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert one.state_dict() == other.state_dict()
    assert one.state_dict()["epoch"] > 0


def test_epochs_and_seeds_differ_but_repeat():
    first, second = stream(documents(*LENGTHS)), stream(documents(*LENGTHS))
    epochs = [epoch_rows(first) for _ in range(2)]
    assert epochs == [epoch_rows(second) for _ in range(2)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != epoch_rows(stream(documents(*LENGTHS), seed=4))


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_global_batch(world_size):
    whole = stream(documents(*LENGTHS), batch_size=8)
    ranks = [stream(documents(*LENGTHS), batch_size=8, rank=rank, world_size=world_size) for rank in range(world_size)]
    for _ in range(5):
        batch = whole.next()
        for rank, part in enumerate(ranks):
            shard = part.next()
            assert all(torch.equal(shard[key], batch[key][rank::world_size]) for key in batch)
            assert part.state_dict() == whole.state_dict()


def test_weights_are_expected_counts():
    lengths, weights = [1] * 400, [2.0] * 100 + [0.25] * 200 + [1.5] * 100
    source = stream(documents(*lengths), weights, batch_size=1, packing=False)
    counts = Counter(row[0] for row in epoch_rows(source))
    assert all(counts[n] == 2 for n in range(1, 101))
    assert 25 < sum(counts[n] for n in range(101, 301)) < 80
    assert all(counts[n] in (1, 2) for n in range(301, 401))
    assert 120 < sum(counts[n] for n in range(301, 401)) < 180


def test_tiny_weights_never_empty_an_epoch():
    source = stream(documents(3, 4), [1e-9, 1e-9], batch_size=3)
    assert source.next()["input_ids"].shape[0] == 3


def test_a_batch_larger_than_the_data_repeats_it():
    batch = stream(documents(2), batch_size=5, packing=False).next()
    assert batch["input_ids"].tolist() == [[1, 1]] * 5


@pytest.mark.parametrize("packing", [True, False])
def test_the_origins_of_a_batch_are_those_of_its_rows(packing):
    settings = {"batch_size": 6, "packing": packing, "rank": 1, "world_size": 2}
    source = stream(documents(*LENGTHS), **settings, origin="a.jsonl:{}".format)
    assert source.last_origins() == []
    for _ in range(12):
        rows = source.next()["input_ids"].tolist()
        drawn = dict.fromkeys(f"a.jsonl:{token - 1}" for row in rows for token in row if token != PAD)
        assert source.last_origins() == list(drawn)
    source.load_state_dict({"epoch": 0, "row": 0})
    assert source.last_origins() == []


@pytest.mark.parametrize(
    ("encoded", "changes", "error", "message"),
    [
        ([], {}, DataError, "holds no documents"),
        (documents(20), {}, ConfigError, "longer than max_length = 16"),
        (documents(3), {"batch_size": 3, "world_size": 2}, ConfigError, "3 rows cannot be shared by 2 processes"),
        (documents(3), {"batch_size": 0}, ConfigError, "0 rows"),
        (documents(3), {"weights": [1.0, 2.0]}, ConfigError, "1 documents need as many weights, got 2"),
    ],
)
def test_what_cannot_be_streamed(encoded, changes, error, message):
    with pytest.raises(error, match=message):
        stream(encoded, **changes)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("variant", ["llama", "mistral", "qwen2", "qwen3", "phi3"])
def test_a_packed_document_is_computed_as_if_alone(variant, attention):
    model = tiny_model(variant, dtype=torch.float64).eval()
    model.set_attn_implementation(attention)
    random = np.random.default_rng(1)
    encoded = [
        Encoded(ids, ids) for ids in (random.integers(3, 64, length).tolist() for length in (7, 5, 1, 9, 11, 3, 2))
    ]
    batch = stream(encoded, batch_size=3, max_length=16).next()
    assert (batch["position_ids"] == 0).sum() > 4
    assert (batch["input_ids"] == PAD).any()
    inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
    with torch.no_grad():
        packed = model(**inputs, use_cache=False).logits
        for row, positions in enumerate(batch["position_ids"].tolist()):
            starts = [i for i, position in enumerate(positions) if position == 0]
            for start, end in zip(starts, [*starts[1:], len(positions)], strict=True):
                alone = model(batch["input_ids"][row : row + 1, start:end], use_cache=False).logits
                torch.testing.assert_close(packed[row, start:end], alone[0], **EXACT)


def test_loss_of_a_packed_batch_is_the_mean_over_documents_alone():
    model = tiny_model("llama", dtype=torch.float64).eval()
    random = np.random.default_rng(2)
    encoded = [Encoded(ids, [-100, *ids[1:]]) for ids in (random.integers(3, 64, n).tolist() for n in (7, 5, 9, 11))]
    total = sum(
        model(torch.tensor([d.input_ids]), labels=torch.tensor([d.labels])).loss * (len(d.input_ids) - 1)
        for d in encoded
    )
    mean = total / sum(len(d.input_ids) - 1 for d in encoded)
    for packing in (True, False):
        source = stream(encoded, packing=packing)
        source = stream(encoded, packing=packing, batch_size=len(source))
        torch.testing.assert_close(model(**source.next(), use_cache=False).loss, mean, **within(FLOAT32))
