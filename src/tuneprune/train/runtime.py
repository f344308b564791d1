"""One model on one or several processes: losses and averages as if a single process saw the whole batch."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneprune.peers import transfer
from tuneprune.structure.statistics import IGNORED
from tuneprune.train.config import TuneConfig

Batch = Mapping[str, Tensor]


class ModelRuntime:
    """What the tuning loop, and a search through it, may ask of a model.

    Gradients are averaged by hand instead of by a DDP wrapper, because a search runs forwards of its own between the
    tuning steps. Every process sees its rows of each global batch; losses are sums over the global batch's tokens, so
    the result equals one process at the same batch size.
    """

    def __init__(self, model: PreTrainedModel, config: TuneConfig, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy summed over this process's tokens, divided by the mean token count of the processes.

        Its average over processes is the mean per token of the global batch.
        """
        return self.summed_loss(batch) / self.mean_tokens(batch)

    def summed_loss(self, batch: Batch) -> Tensor:
        """Cross-entropy summed over this process's tokens."""
        with self._autocast():
            logits = self.model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits
        labels = batch["labels"][:, 1:].reshape(-1)
        return cross_entropy(
            logits[:, :-1].reshape(len(labels), -1).float(), labels, ignore_index=IGNORED, reduction="sum"
        )

    def mean_tokens(self, batch: Batch) -> float:
        """Tokens with a loss in the global batch, per process."""
        count = (batch["labels"][:, 1:] != IGNORED).sum().float()
        self.average([count])
        return max(1.0, count.item())

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over all processes, in place, in one transfer, in float32 or finer."""
        tensors = list(tensors)
        if self.accelerator.num_processes == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1).to(torch.promote_types(t.dtype, torch.float32)) for t in tensors])
        with transfer():
            torch.distributed.all_reduce(flat)
        flat /= self.accelerator.num_processes
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def anyone(self, flag: bool) -> bool:
        """Whether the flag is up on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        self.average([flags])
        return bool(flags.item())

    def everyones(self, number: int) -> list[int]:
        """A number of every process."""
        numbers: Any = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return numbers.tolist()

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """The rows of a batch, as many at a time as one forward takes."""
        rows = len(batch["input_ids"])
        size = self.config.micro_batch_size or rows
        return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)]

    def to_device(self, batch: Batch) -> Batch:
        """The batch where the model is."""
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _autocast(self) -> AbstractContextManager[Any]:
        device = self.accelerator.device
        gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
        if self.config.precision == "bf16" or (self.config.precision == "auto" and gains):
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()
