import json
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

from tuneprune.train.state import flatten, unflatten

DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.float8_e4m3fn,
)


@st.composite
def tensors(draw):
    """Any bits in any dtype: subnormals and all kinds of nan too."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape)
    if dtype is torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count))).bool().reshape(shape)
    content = bytearray(draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize)))
    flat = torch.frombuffer(content, dtype=dtype) if count else torch.empty(0, dtype=dtype)
    return flat.reshape(shape)


keys = st.integers() | st.text(max_size=5)
leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | tensors()
states = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(keys, inner, max_size=3)
    ),
    max_leaves=12,
)


def through_files(state):
    content, found = flatten(state)
    return unflatten(json.loads(json.dumps(content, allow_nan=False)), load(save(found)))


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.contiguous().view(-1).view(torch.uint8).equal(other.contiguous().view(-1).view(torch.uint8))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert [type(key) for key in one] == [type(key) for key in other]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert repr(one) == repr(other)  # floats with their sign and nan


@settings(max_examples=150, deadline=None)
@given(states)
def test_state_comes_back_exactly(state):
    assert_same(state, through_files(state))


def test_shared_memory_is_shared_again():
    one = torch.arange(6.0)
    part = one[:3]
    found = through_files(
        {"a": one, "b": [one.detach()], "part": part, "turned": one.view(2, 3).T, "0": torch.zeros(0)}
    )
    assert found["a"] is found["b"][0]
    assert found["part"].tolist() == [0, 1, 2]
    assert found["turned"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert len(flatten({"a": one, "b": one})[1]) == 1


def test_states_of_modules_and_optimisers():
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.ones(2)).sum().backward()
    optimiser.step()
    found = through_files({"model": model.state_dict(), "optimiser": optimiser.state_dict()})
    assert isinstance(model.state_dict(), OrderedDict)
    assert type(found["model"]) is dict
    assert_same(optimiser.state_dict(), found["optimiser"])
    assert_same(dict(model.state_dict()), found["model"])


@pytest.mark.parametrize(
    "value",
    [b"x", {1, 2}, np.float64(1), np.int64(1), torch.float32, object(), torch.Size([1]), torch.eye(2).to_sparse()],
)
def test_unsupported_values_are_named(value):
    with pytest.raises(TypeError, match=r"state\['search'\]\[1\] is"):
        flatten({"search": [0, value]})


@pytest.mark.parametrize(
    "content",
    [{}, {"a": 1, "b": 2}, {"tensor": "7"}, {"tensor": []}, {"float": "1"}, {"dict": [[1]]}, {"dict": 3}, {"tuple": 3}],
)
def test_other_content_is_refused(content):
    with pytest.raises((ValueError, TypeError)):
        unflatten(content, {"0": torch.zeros(1)})
