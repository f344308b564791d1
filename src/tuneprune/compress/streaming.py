"""Makes the smaller model without loading the dense one: tensors are read, cut and passed on a few rows at a time."""

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tuneprune.compress.checkpoint import Checkpoint
from tuneprune.compress.conversion import Conversion, Pattern
from tuneprune.compress.cut import reshape
from tuneprune.compress.pruned_config import new_biases
from tuneprune.compress.rewrite import add_biases
from tuneprune.compress.tensor_plan import TensorPlan, plan_tensors
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.edits import Bias, Rotate
from tuneprune.structure.plan import Plan
from tuneprune.structure.space import PruningSpace

RUN_BYTES = 2**26
"""Bytes of a tensor that are read at once, but at least a row."""


class Streamed:
    """A smaller model that has shapes but no weights, and the tensors for its files.

    `tensors` has their names and shapes, on the meta device; `runs` computes their values.
    """

    def __init__(
        self, model: PreTrainedModel, planned: TensorPlan, checkpoint: Checkpoint, biases: dict[str, Tensor]
    ) -> None:
        self.model = model
        self._planned, self._checkpoint, self._biases = planned, checkpoint, biases
        model.tie_weights()
        once = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}  # tied ones under one name
        self._dense = {name: tensor for name, tensor in model.state_dict().items() if name in once}
        self._conversion = Conversion(model)
        is_stock = planned.is_stock  # shipped code has no conversion rules
        stored = self._conversion.split(self._dense) if is_stock else self._dense
        self.tensors = {key: torch.empty_like(tensor, device="meta") for key, tensor in stored.items()}
        self._places: dict[str, tuple[str, Pattern, int]] = {name: (name, None, 0) for name in self._dense}
        if is_stock:
            for name, sources in self._conversion.sources(stored).items():
                for pattern, keys in sources.items():
                    self._places |= {key: (name, pattern, row) for row, key in enumerate(keys)}

    def runs(self, key: str) -> Iterator[Tensor]:
        """The values of a tensor, as runs of its rows."""
        name, pattern, row = self._places[key]
        if pattern is not None:
            yield self._conversion.part(name, self._rows(name, row, row + 1), pattern)
            return
        tensor = self._dense[name]
        step = max(1, RUN_BYTES * len(tensor) // max(1, tensor.nbytes))
        for start, stop in pairwise([*range(0, len(tensor), step), len(tensor)]):
            yield self._rows(name, start, stop)

    def _rows(self, name: str, start: int, stop: int) -> Tensor:
        dtype = self._dense[name].dtype
        if name in self._planned.added:
            return self._planned.added[name][start:stop].to(dtype)
        first, last, part = self._planned.parts[name].rows(start, stop)
        tensor = self._stored_rows(part.source, first, last)
        if part.factor != 1.0:
            tensor = _exact(tensor)
        return part.of(tensor).to(dtype)

    def _stored_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of the dense tensor, with the constants that the plan adds."""
        if name not in self._biases:
            return self._checkpoint.rows(name, start, stop)
        added = _exact(self._biases[name][start:stop])
        return _exact(self._checkpoint.rows(name, start, stop)) + added if name in self._checkpoint else added


def stream(
    model_id: str, model: PreTrainedModel, architecture: Architecture, space: PruningSpace, plan: Plan
) -> Streamed | None:
    """Apply a plan to the model stored at `model_id`. Consumes `model`, which has its shapes.

    The result is that of `compress` on the loaded model in float32, stored in `model`'s precision. None if that needs
    all weights at once: the plan rotates the residual stream, or the files lack tensors, have tied ones twice, or store
    them in a way that cannot be read by rows.

    Raises:
        PlanMismatch: the plan belongs to another space.
    """
    checkpoint = Checkpoint.find(model_id, model)
    if checkpoint is None or any(alias in checkpoint for alias in space.tied):
        return None  # only the values show whether they are equal, and the plan's space depends on that
    plan.check(space)
    if plan.of_kind(Rotate):
        return None
    edits = plan.of_kind(Bias)
    add_biases(model, edits)
    planned = plan_tensors(model, architecture, space, plan)
    biases = {f"{edit.module}.bias": edit.bias for edit in edits}
    made = {f"{module}.bias" for module in new_biases(space, plan)}
    if any(part.source not in checkpoint for part in planned.parts.values() if part.source not in {*made, *space.tied}):
        return None
    return Streamed(reshape(model, planned), planned, checkpoint, biases)


def _exact(tensor: Tensor) -> Tensor:
    """The tensor in at least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
