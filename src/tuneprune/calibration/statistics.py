"""Statistics of the inputs of linears: running sums over the tokens of a few batches, from one forward pass."""

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tuneprune.calibration.batch import Batch, real_tokens
from tuneprune.calibration.finite import FiniteSums


@dataclass(frozen=True)
class Statistics:
    """Float64 sums over tokens of the input x of one linear: of 1, x, x^2, and of x x^T if requested."""

    tokens: Float[Tensor, ""]
    total: Float[Tensor, " inputs"]
    squares: Float[Tensor, " inputs"]
    gram: Float[Tensor, "inputs inputs"] | None = None

    @property
    def mean(self) -> Float[Tensor, " inputs"]:
        """Mean of every input feature."""
        return self.total / self.tokens.clamp(min=1)

    @property
    def variance(self) -> Float[Tensor, " inputs"]:
        """Variance of every input feature around its mean, biased."""
        return (self.squares / self.tokens.clamp(min=1) - self.mean.pow(2)).clamp(min=0)

    @property
    def norm(self) -> Float[Tensor, " inputs"]:
        """L2 norm of every input feature over all tokens."""
        return self.squares.sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: tensor for name, tensor in named.items() if tensor is not None}


@contextmanager
def reading(
    model: nn.Module, modules: Iterable[str], see: Callable[[str, Tensor], None]
) -> Generator[None, None, None]:
    """Call `see` with the path and the input of each of `modules` in every forward until the context ends."""

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: see(path, inputs[0].detach())

    with ExitStack() as hooks:
        for path in modules:
            hooks.callback(model.get_submodule(path).register_forward_pre_hook(hook(path)).remove)
        yield


@torch.no_grad()
def input_statistics(
    model: nn.Module,
    modules: Iterable[str],
    batches: Iterable[Batch],
    forward: Callable[[Batch], Tensor],
    average: Callable[[Iterable[Tensor]], None],
    *,
    gram: bool = False,
    sums: FiniteSums | None = None,
) -> dict[str, Statistics]:
    """The statistics of every module's input over the real tokens of `batches`; dropout is off meanwhile.

    Memory: three vectors a module, and a square matrix with `gram`, on the model's device, twice.

    Args:
        forward: runs the model on one batch, such as the tuning loop's loss; its result has to be finite too.
        average: averages tensors over processes, so that every process gets the same statistics.
        sums: decides which batches count; callers can add other sums of the same forwards.

    Raises:
        NonFinite: no batch gave finite numbers.
    """
    sums = FiniteSums() if sums is None else sums
    counted = torch.zeros(0)
    keys: dict[str, dict[str, str]] = {}

    def see(path: str, states: Tensor) -> None:
        rows = states[counted.to(states.device)]
        wide = rows.double()
        new = {"tokens": wide.new_tensor(float(len(rows))), "total": wide.sum(0), "squares": wide.pow(2).sum(0)}
        if gram:
            exact = rows.to(torch.promote_types(rows.dtype, torch.float32))
            new["gram"] = (exact.T @ exact).double()
        mine = keys.setdefault(path, {name: f"{path}/{name}" for name in new})
        for name, tensor in new.items():
            sums.add(mine[name], tensor)

    training = model.training
    model.eval()
    with reading(model, modules, see):
        for batch in batches:
            counted = real_tokens(batch)
            sums.close(batch, forward(batch))
    model.train(training)
    totals = sums.result()
    found = {path: {name: totals[key] for name, key in named.items()} for path, named in keys.items()}
    for mine in found.values():
        average(mine.values())
    return {path: Statistics(**mine) for path, mine in found.items()}
