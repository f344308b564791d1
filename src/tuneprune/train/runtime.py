"""One model on one or several processes: losses and averages as if a single process saw the whole batch."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneprune.calibration.finite import all_finite
from tuneprune.calibration.statistics import IGNORED
from tuneprune.system.processes import transfer
from tuneprune.train.config import TuneConfig
from tuneprune.train.health import Health
from tuneprune.train.lora import without_lora

Batch = Mapping[str, Tensor]


class Drawn(dict[str, Tensor]):
    """A batch that knows which records it was made of."""

    def __init__(self, tensors: Batch, origins: list[str]) -> None:
        super().__init__(tensors)
        self.origins = origins


class ModelRuntime:
    """What the tuning loop, and a search through it, may ask of a model.

    Gradients are averaged by hand instead of by a DDP wrapper, because a search runs forwards of its own between the
    tuning steps. Every process sees its rows of each global batch; losses are sums over the global batch's tokens, so
    the result equals one process at the same batch size.
    """

    def __init__(self, model: PreTrainedModel, config: TuneConfig, accelerator: Accelerator) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator
        self.health = Health(config.max_skipped)
        self._evidence: Batch = {}

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy summed over this process's tokens, divided by the mean token count of the processes.

        Its average over processes is the mean per token of the global batch.
        """
        return self.summed_loss(batch) / self.mean_tokens(batch)

    def summed_loss(self, batch: Batch, *, autocast: bool = True) -> Tensor:
        """Cross-entropy summed over this process's tokens."""
        with self._autocast() if autocast else nullcontext():
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

    def accepts(self, batch: Batch, tensors: Iterable[Tensor], what: str = "calibration") -> bool:
        """Whether all that a batch gave is finite, on all processes; notes what was bad, and of which records, if not.

        As many calls on every process.
        """
        is_good = not self.anyone(not all_finite(tensors))
        if is_good:
            self.health.good(what)
        else:
            self.note(what, batch, getattr(batch, "origins", []))
        return is_good

    def note(self, what: str, batch: Batch, records: list[str]) -> None:
        """Remember a bad batch, and what in it was bad."""
        self.health.bad(what, self.everywhere(records))
        self._evidence = batch

    @torch.no_grad()
    def examine(self) -> dict[str, float]:
        """The losses of the newest bad batch without autocast, gates and dropout, with LoRA and without."""
        if not self._evidence:
            return {}
        training = self.model.training
        self.model.eval()
        losses: dict[str, float] = {}
        for name, context in (("tuned", nullcontext()), ("base", without_lora(self.model))):
            with context:
                loss = self.summed_loss(self._evidence, autocast=False) / self.mean_tokens(self._evidence)
            self.average([loss])
            losses[name] = loss.item()
        self.model.train(training)
        return losses

    def everywhere(self, texts: list[str]) -> list[str]:
        """The texts of all processes, in their order."""
        return gather_object(texts) if self.accelerator.num_processes > 1 else texts

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

    @property
    def computes_in_bf16(self) -> bool:
        """Whether forwards run under autocast."""
        gains = self.accelerator.device.type == "cuda" and torch.cuda.is_bf16_supported()
        return self.config.precision == "bf16" or (self.config.precision == "auto" and gains)

    def _autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16) if self.computes_in_bf16 else nullcontext()
