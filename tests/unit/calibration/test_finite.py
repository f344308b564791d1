import math

import pytest
import torch

from tuneprune.calibration.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_among_finite_ones_is_found(dtype, bad):
    good, worse = torch.ones(3, 4, dtype=dtype), torch.ones(5, dtype=dtype)
    assert all_finite([good, worse])
    worse[2] = bad
    assert not all_finite([good, worse])
    assert not all_finite([torch.tensor([math.inf, -math.inf], dtype=dtype)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_numbers_whose_sum_is_not_are_finite(dtype):
    assert all_finite([torch.full((9,), torch.finfo(dtype).max, dtype=dtype), torch.zeros(0, dtype=dtype)])


def test_no_tensors_and_whole_numbers_are_finite():
    assert all_finite([])
    assert all_finite([torch.tensor([2**62]), torch.tensor([True])])
