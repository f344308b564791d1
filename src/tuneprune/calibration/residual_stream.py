"""The residual stream on calibration data: how far layers turn it, and where its energy lies."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import PreTrainedModel

from tuneprune.calibration.batch import Batch, real_tokens
from tuneprune.calibration.finite import FiniteSums, refuse_none
from tuneprune.calibration.statistics import reading
from tuneprune.calibration.subject import Runtime, Subject
from tuneprune.structure.architecture import Architecture

Watcher = Callable[[Tensor], None]


@contextmanager
def streams(
    model: nn.Module, architecture: Architecture, see: Callable[[int, Tensor, Tensor], None]
) -> Generator[None, None, None]:
    """Call `see` with each layer's index and the residual stream before and behind it, in every forward."""

    def hook(index: int) -> Callable[..., None]:
        def look(
            _: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor | tuple[Tensor, ...]
        ) -> None:
            before = inputs[0] if inputs else named["hidden_states"]
            see(index, before, output[0] if isinstance(output, tuple) else output)

        return look

    with ExitStack() as hooks:
        for index, block in enumerate(architecture.blocks):
            layer = model.get_submodule(block.path)
            hooks.callback(layer.register_forward_hook(hook(index), with_kwargs=True).remove)
        yield


class Turns:
    """How far every layer turns the stream: the mean over real tokens of a function of cos(x_in, x_out).

    `sums` decides which batches count; it is on the model's device, where processes can average it.
    """

    KEY = "turns"

    def __init__(self, subject: Subject, measure: Callable[[Tensor], Tensor]) -> None:
        self.measure, self.sums = measure, FiniteSums(subject.runtime.accepts)
        size = len(subject.architecture.blocks) + 1  # by layer, and the number of tokens
        self._zeros = torch.zeros(size, dtype=torch.double, device=subject.model.device)
        self._real = torch.zeros(0, dtype=torch.bool)

    def counted(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; each is counted before it is run."""
        for batch in batches:
            self._real = real_tokens(batch)
            self._add(-1, self._real.sum())
            yield batch

    def see(self, index: int, before: Tensor, after: Tensor) -> None:
        """Add a layer's turn of the newest batch; called by `streams`."""
        here = self._real.to(before.device)
        cosines = torch.cosine_similarity(before[here].double(), after[here].double(), dim=-1).clamp(-1, 1)
        self._add(index, self.measure(cosines).sum())

    def mean(self, runtime: Runtime) -> Float[Tensor, " layers"]:
        """The mean over all tokens of all processes, of the batches that were closed.

        Raises:
            NonFinite: no batch gave finite numbers.
        """
        total = self.sums.result()[self.KEY]
        runtime.average([total])
        return (total[:-1] / total[-1].clamp(min=1e-12)).cpu()

    def _add(self, index: int, value: Tensor) -> None:
        placed = self._zeros.clone()
        placed[index] = value.to(placed)
        self.sums.add(self.KEY, placed)


class Moments:
    """Sum of x x^T over tokens in float64, for a stream that is normalised as by an RMSNorm without weight."""

    def __init__(self, size: int, device: torch.device, epsilon: float) -> None:
        self.total = torch.zeros(size, size, dtype=torch.double, device=device)
        self.epsilon = epsilon

    def add(self, stream: Float[Tensor, "rows length hidden"], real: Bool[Tensor, "rows length"]) -> None:
        """Count the real tokens of one batch."""
        tokens = stream.detach()[real].double()
        tokens = tokens * torch.rsqrt(tokens.pow(2).mean(1, keepdim=True) + self.epsilon)
        self.total += tokens.T @ tokens


def principal_axes(
    moments: Float[Tensor, "hidden hidden"], damping: float
) -> tuple[Float[Tensor, " hidden"], Float[Tensor, "hidden hidden"]]:
    """Eigenvalues, largest first, and eigenvectors as columns, of moments damped by a share of their mean diagonal.

    A vector's largest entry is positive, so that equal moments give equal signs.
    """
    moments = moments.double()
    damped = moments + damping * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.double).to(moments)
    values, vectors = torch.linalg.eigh(damped)
    values, vectors = values.flip(0), vectors.flip(1)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return values, vectors * largest.sign()


@torch.no_grad()
def pooled_moments(
    model: PreTrainedModel, architecture: Architecture, batches: int, calibration: Callable[[], Batch], runtime: Runtime
) -> Tensor:
    """The joint moments of all places that read the stream, from one pass over the calibration data.

    Raises:
        NonFinite: no batch gave finite numbers.
    """
    norms = [site.own_norm for site in architecture.sites()]
    moments = Moments(architecture.hidden, model.device, epsilon_of(model.get_submodule(norms[0])))
    real, counted = torch.zeros(0, dtype=torch.bool), 0
    with reading(model, norms, lambda _, stream: moments.add(stream, real)):
        for _ in range(batches):
            batch = calibration()
            real, before = real_tokens(batch), moments.total.clone()
            forward(model, batch)
            if runtime.accepts(batch, [moments.total]):
                counted += 1
            else:
                moments.total = before
    refuse_none(counted, batches)
    runtime.average([moments.total])
    return moments.total


class Walk:
    """A walk along the layers that holds the stream of all calibration batches at the current layer, on the CPU.

    Every place that reads the stream may replace it, and later layers see the replacement: a layer runs twice, once to
    look at the stream inside it and once to go on from there.
    """

    def __init__(self, model: PreTrainedModel, architecture: Architecture, batches: list[Batch]) -> None:
        self.model, self.architecture, self.batches = model, architecture, batches
        self.streams = [self._run(batch, None, {}) for batch in batches]

    def look(self, moments: Moments) -> None:
        """Count the stream at the current layer."""
        for batch, stream in zip(self.batches, self.streams, strict=True):
            moments.add(stream.to(moments.total.device), real_tokens(batch))

    def look_inside(self, index: int, moments: Moments) -> None:
        """Count the stream between attention and MLP of the current layer `index`."""
        norm = list(self.architecture.sites())[2 * index + 1].own_norm
        for batch, stream in zip(self.batches, self.streams, strict=True):
            real = real_tokens(batch)
            self._run(batch, (index, stream), {norm: lambda inside, real=real: moments.add(inside, real)})

    def project(self, projection: Float[Tensor, "hidden hidden"]) -> None:
        """Replace the stream at the current layer."""
        self.streams = [stream @ projection.to(stream) for stream in self.streams]

    def go_on(self, index: int, projection: Float[Tensor, "hidden hidden"]) -> None:
        """Go past layer `index`, replacing the stream between its attention and MLP."""
        norm = list(self.architecture.sites())[2 * index + 1].own_norm

        def replace(inside: Tensor) -> None:
            inside.copy_(inside @ projection.to(inside))  # in place: the skip connection reads the same tensor

        pairs = zip(self.batches, self.streams, strict=True)
        self.streams = [self._run(batch, (index, stream), {norm: replace}) for batch, stream in pairs]

    def run(self, index: int) -> Iterator[Tensor]:
        """The stream of every batch behind the current layer `index`, without going on."""
        for batch, stream in zip(self.batches, self.streams, strict=True):
            yield self._run(batch, (index, stream), {})

    def _run(self, batch: Batch, start: tuple[int, Tensor] | None, watchers: dict[str, Watcher]) -> Tensor:
        """The stream after one layer that starts from a stored one, or without one that of the embedding."""
        found: list[Tensor] = []
        blocks = [self.model.get_submodule(block.path) for block in self.architecture.blocks]
        with ExitStack() as stack:
            for index, block in enumerate(blocks):
                if start is not None and index == start[0]:
                    stream = start[1].to(self.model.device)
                    hook = block.register_forward_pre_hook(lambda _, inputs, stream=stream: (stream, *inputs[1:]))
                    stack.callback(hook.remove)
                else:
                    block.forward = _pass_through
                    stack.callback(delattr, block, "forward")
            watchers = {**watchers, self.architecture.final_norm: lambda stream: found.append(stream.cpu())}
            stack.enter_context(reading(self.model, watchers, lambda path, stream: watchers[path](stream)))
            forward(self.model, batch)
        return found[0]


def forward(model: PreTrainedModel, batch: Batch) -> Tensor:
    """The stream that the decoder hands to its head on one batch."""
    decoder: Any = model.base_model
    return decoder(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).last_hidden_state


def finite_batches(model: PreTrainedModel, batches: list[Batch], runtime: Runtime) -> list[Batch]:
    """The batches on which the model computes finite numbers.

    Raises:
        NonFinite: there are none.
    """
    found = [batch for batch in batches if runtime.accepts(batch, [forward(model, batch)])]
    refuse_none(len(found), len(batches))
    return found


def epsilon_of(norm: nn.Module) -> float:
    """The number that an RMSNorm adds to the mean square; families use two names for it."""
    return getattr(norm, "eps" if hasattr(norm, "eps") else "variance_epsilon")


def _pass_through(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states
