"""A model on one or several processes, with the losses and averages of one process that sees the whole batch."""

import resource
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneprune.calibration.batch import Batch
from tuneprune.calibration.finite import all_finite
from tuneprune.calibration.labels import IGNORED
from tuneprune.system.processes import transfer
from tuneprune.train.config import TuneConfig
from tuneprune.train.health import Health
from tuneprune.train.lora import has_lora, without_lora
from tuneprune.train.output_head import OutputHead


class BatchWithOrigins(dict[str, Tensor]):
    """A batch with the places of the records that it was made from."""

    def __init__(self, tensors: Batch, origins: list[str]) -> None:
        super().__init__(tensors)
        self.origins = origins


class ModelRuntime:
    """Operations on a model for the tuning loop, and for a search that takes part in it.

    Gradients are averaged by hand instead of by a DDP wrapper, because a search runs forwards of its own between the
    tuning steps. Every process gets its rows of each global batch. Losses are sums over the global batch's tokens,
    so the result equals that of one process at the same batch size.
    """

    def __init__(self, model: PreTrainedModel, config: TuneConfig, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator
        self.health = Health(config.max_skipped)
        self._bad_batch: Batch = {}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy summed over this process's tokens, divided by the mean token count of the processes.

        Its average over processes is the mean per token of the global batch.
        """
        return self.summed_loss(batch) / self.mean_tokens(batch)

    def summed_loss(self, batch: Batch, *, autocast: bool = True) -> Tensor:
        """Cross-entropy summed over this process's tokens; gradients of first order only."""
        head = OutputHead(self.model)
        measure = partial(cross_entropy, reduction="sum")
        return self._at_labels(batch, head, lambda rows, labels: head.sum(measure, rows, labels), autocast=autocast)

    def logits(self, batch: Batch) -> Tensor:
        """The logits that predict this process's tokens with a label, [labels, vocabulary], in float32 or finer."""
        head = OutputHead(self.model)
        return self._at_labels(batch, head, lambda rows, _: head.logits(rows))

    def _at_labels(
        self, batch: Batch, head: OutputHead, compute: Callable[[Tensor, Tensor], Tensor], *, autocast: bool = True
    ) -> Tensor:
        """What `compute` makes of the head's inputs at the positions before a label, and of the labels."""
        labels = batch["labels"][:, 1:]
        has_label = labels != IGNORED
        found: list[Tensor] = []
        with (
            self._autocast() if autocast else nullcontext(),
            head.inputs(has_label, lambda rows: found.append(compute(rows, labels[has_label]))),
        ):
            self.model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
        return found[0]

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

    def accepts(self, batch: Batch, tensors: Iterable[Tensor], what: str = "calibration") -> bool:
        """Whether all results of a batch are finite, on all processes; if not, notes what was bad and the records.

        Every process has to call it equally often.
        """
        is_good = not self.any_process(not all_finite(tensors))
        if is_good:
            self.health.good(what)
        else:
            self.note(what, batch, getattr(batch, "origins", []))
        return is_good

    def note(self, what: str, batch: Batch, records: list[str]) -> None:
        """Remember a bad batch, and what in it was bad."""
        if self.accelerator.num_processes > 1:
            records = gather_object(records)
        self.health.bad(what, records)
        self._bad_batch = batch

    @torch.no_grad()
    def examine(self) -> dict[str, float]:
        """Losses of the newest bad batch, without autocast, gates and dropout: `tuned`, and `base` without LoRA.

        If the weights themselves are tuned, there is no base to compare with.
        """
        if not self._bad_batch:
            return {}
        training = self.model.training
        self.model.eval()
        losses: dict[str, float] = {}
        for name in ("tuned", "base") if has_lora(self.model) else ("tuned",):
            with without_lora(self.model) if name == "base" else nullcontext():
                loss = self.summed_loss(self._bad_batch, autocast=False) / self.mean_tokens(self._bad_batch)
            self.average([loss])
            losses[name] = loss.item()
        self.model.train(training)
        return losses

    def any_process(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        self.average([flags])
        return bool(flags.item())

    def gather(self, number: int) -> list[int]:
        """The numbers of all processes."""
        numbers: Any = self.accelerator.gather(torch.tensor([number], device=self.accelerator.device))
        return numbers.tolist()

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """The rows of a batch, split into parts for one forward each."""
        rows = len(batch["input_ids"])
        size = self.config.micro_batch_size or rows
        return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)]

    def to_device(self, batch: Batch) -> Batch:
        """The batch on the model's device."""
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    @property
    def computes_in_bf16(self) -> bool:
        """Whether forwards run under autocast."""
        gains = self.accelerator.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.config.precision == "bf16" or (self.config.precision == "auto" and gains)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if self.computes_in_bf16 else nullcontext()


def peak_memory(device: torch.device) -> int:
    """Bytes: the largest allocation on a GPU, the largest resident set on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


@contextmanager
def activation_checkpointing(model: PreTrainedModel, is_on: bool) -> Iterator[None]:
    """Inside, where `is_on`, backward recomputes every block's activations instead of keeping them.

    The non-reentrant kind: the reentrant one silently returns wrong gradients when gates differ between both forwards.
    """
    if not is_on:
        yield
        return
    is_renamed = hasattr(model, "activation_checkpointing_enable")  # `gradient_...` in older releases
    name = "activation_checkpointing" if is_renamed else "gradient_checkpointing"
    getattr(model, f"{name}_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        getattr(model, f"{name}_disable")()
