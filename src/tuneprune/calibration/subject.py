"""The model that a method works on, with its data and the services of the training loop."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel

from tuneprune.calibration.batch import Batch
from tuneprune.calibration.score_store import ScoreStore
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.space import PruningSpace


class Runtime(Protocol):
    """Services of the training loop for a search, so that one process and many give the same result."""

    def loss(self, batch: Batch) -> Tensor:
        """Mean cross-entropy per token of this process's share, scaled so that averaging gradients is exact."""
        ...

    def logits(self, batch: Batch) -> Tensor:
        """The logits that predict this process's tokens with a label, [labels, vocabulary], in float32 or finer."""
        ...

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over all processes, in place."""
        ...

    def accepts(self, batch: Batch, tensors: Iterable[Tensor], what: str = "calibration") -> bool:
        """Whether everything computed from a batch is finite, on all processes; bad numbers are counted and logged.

        A search leaves all of its state as it was before a batch that is not accepted.
        """
        ...


@dataclass(frozen=True)
class Subject:
    """The model that a method works on, with everything that it may need.

    `calibration()` gives the next batch of held-out data; `total_steps` is the length of the tuning that the search
    takes part in; `store` keeps scores for other runs if this run is part of a comparison.
    """

    model: PreTrainedModel
    architecture: Architecture
    space: PruningSpace
    runtime: Runtime
    calibration: Callable[[], Batch]
    total_steps: int
    seed: int
    store: ScoreStore | None = None

    def scores(
        self, statistic: str, compute: Callable[[], Mapping[str, Tensor]], **options: object
    ) -> Mapping[str, Tensor]:
        """The result of `compute`, taken from the store if another budget of the comparison has already computed it.

        For one-shot methods: `compute` may depend on the dense model, the space, the calibration data that it draws,
        the seed and `options`, and on nothing else, such as the budget.

        Args:
            statistic: a name for the result, such as `taylor`.
        """
        if self.store is None:
            return compute()
        return self.store.get(statistic, options, compute, self.calibration)
