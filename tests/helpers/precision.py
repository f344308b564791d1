"""Precision of comparisons in tests: a mode that keeps models in float64, and tolerances with their reasons.

Rounding differs between CPUs: AVX2, AVX-512 and other vector units add in different orders, and may fuse a product and
a sum. So a tolerance is chosen by the precision in which the compared numbers were computed.
"""

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def within(bound: float) -> dict[str, float]:
    """Keywords of `torch.testing.assert_close`: a bound relative to the numbers, and as large absolutely."""
    return {"rtol": bound, "atol": bound}


EXACT = within(1e-10)
"""Float64 throughout: 450,000 times its epsilon; measured differences of two layers of a tiny model are 500 times."""

FLOAT32 = 1e-5
"""A formula in float32 with some tens of operations, for `pytest.approx`: 84 times its epsilon; measured: 8 times."""
TUNED = within(1e-4)
"""Weights in float32 after some steps of Adam at rate 0.01, with gradients summed in two orders; measured: 8e-6.

Adam divides a gradient by its own size, so the rounding of a small one moves a weight by a part of the rate."""
FLOAT32_LOGITS = 3e-5
"""Logits of a tiny model in float32, over the largest one: 250 times its epsilon; measured: 18 times."""


class FullPrecision(TorchFunctionMode):
    """Float64 stays float64 where Hugging Face's norms, routers and eager attention convert to float32 and back.

    RoPE stays in float32, which is the same in the dense and the smaller model: its conversion names the device too.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float or (func is Tensor.to and args[1:] == (torch.float32,) and not kwargs):
                return args[0]
            if func is nn.functional.softmax and kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)
