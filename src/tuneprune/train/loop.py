"""The only training loop: LoRA on the training stream, and a search beside it on the calibration stream."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from tuneprune.data import Stream
from tuneprune.errors import TrainingDiverged
from tuneprune.methods.base import Search
from tuneprune.signals import Stopped, on_signals
from tuneprune.structure.budget import count_parameters
from tuneprune.structure.space import PruningSpace
from tuneprune.structure.statistics import IGNORED
from tuneprune.train import checkpoint
from tuneprune.train.config import TuneConfig
from tuneprune.train.log import StepLog
from tuneprune.train.memory import activation_checkpointing, peak_memory
from tuneprune.train.schedule import learning_rate

Batch = Mapping[str, Tensor]
Observer = Callable[[Mapping[str, Any]], None]


@dataclass
class TuneResult:
    """What a tuning did: steps, those skipped for a non-finite loss or gradient, seconds, peak memory in bytes."""

    steps: int = 0
    skipped_steps: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    last: dict[str, Any] = field(default_factory=dict)


class Tuner:
    """One tuning of one model: streams, optimiser, checkpoints, and the runtime it lends to searches.

    Gradients are averaged by hand instead of by a DDP wrapper, because a search runs forwards of its own between the
    tuning steps. Every process sees its rows of each global batch; losses are sums over the global batch's tokens, so
    the result equals one process at the same batch size.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        train: Stream,
        calibration: Stream,
        config: TuneConfig,
        folder: Path,
        *,
        accelerator: Accelerator,
        seed: int,
        space: PruningSpace | None = None,
        observe: Observer = lambda _: None,
    ) -> None:
        self.model, self.config, self.folder, self.accelerator = model, config, folder, accelerator
        self.train_stream, self.calibration_stream = train, calibration
        self.space, self.observe, self.seed = space, observe, seed
        self.optimizer: torch.optim.AdamW | None = None
        self.log = StepLog(folder)
        self.result = TuneResult()
        self._skipped_in_a_row = 0
        self._stop_requested = False

    def next_calibration(self) -> Batch:
        """The next calibration batch, on the model's device."""
        return self._to_device(self.calibration_stream.next())

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy summed over this process's tokens, divided by the mean token count of the processes.

        Its average over processes is the mean per token of the global batch.
        """
        return self._summed_loss(batch) / self._mean_tokens(batch)

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Average tensors over all processes, in place, in one transfer, in float32 or finer."""
        tensors = list(tensors)
        if self.accelerator.num_processes == 1 or not tensors:
            return
        flat = torch.cat([t.reshape(-1).to(torch.promote_types(t.dtype, torch.float32)) for t in tensors])
        torch.distributed.all_reduce(flat)
        flat /= self.accelerator.num_processes
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def run(self, search: Search, *, fingerprint: str = "", resume: bool = False) -> TuneResult:
        """Tune to the end; with `resume`, from the newest checkpoint.

        Raises:
            Stopped: SIGINT or SIGTERM came; the state is saved.
            TrainingDiverged: too many non-finite steps in a row; the state is saved.
        """
        self.model.train()
        self._build_optimizer(search)
        state = checkpoint.load_latest(self._checkpoints, fingerprint) if resume else None
        torch.manual_seed(self.seed)
        if state is not None:
            self._restore(state, search)
        if self.accelerator.is_main_process:
            self.log.rewind(self.result.steps)
        recompute = activation_checkpointing(self.model, self.config.gradient_checkpointing)
        with on_signals(self._request_stop), recompute:
            while self.result.steps < self.config.steps:
                self._step(search)
                self._after(search, fingerprint)
        self.result.peak_bytes = peak_memory(self.accelerator.device)
        self.model.eval()
        return self.result

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _build_optimizer(self, search: Search) -> None:
        """One AdamW: LoRA in its first group, what the search wants trained in the others."""
        groups = search.parameters()
        own = {id(parameter) for group in groups for parameter in group.parameters}
        lora = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        rate = self.config.learning_rate
        self.optimizer = torch.optim.AdamW([{"params": lora}], lr=rate, weight_decay=self.config.weight_decay)
        for group in groups:
            extra = {"params": group.parameters, "weight_decay": group.weight_decay, "rate": group.rate}
            self.optimizer.add_param_group(extra)

    def _step(self, search: Search) -> None:
        """One step: revise the decision, tune under it."""
        started = time.perf_counter()
        assert self.optimizer is not None
        groups = self.optimizer.param_groups
        step = self.result.steps
        metrics: dict[str, Any] = search.before_step(step)
        batch = self._to_device(self.train_stream.next())
        tokens = self._mean_tokens(batch)
        total = torch.zeros((), device=self.accelerator.device)
        for micro in self._micro_batches(batch):
            with search.context():  # on through backward: activation checkpointing runs the forward again there
                loss = self._summed_loss(micro) / tokens
                loss.backward()
            total += loss.detach()
        penalty = search.penalty()
        if penalty is not None:
            penalty.backward()
            metrics[search.penalty_name] = penalty.item()
        if not search.trains_lora:
            _forget_gradients(groups[0]["params"])  # AdamW passes over what has none, moments and decay included
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.average([*gradients, total])
        norm = torch.nn.utils.get_total_norm(gradients)
        rate = learning_rate(self.config, step)
        metrics |= {"loss": total.item(), "grad_norm": norm.item(), "learning_rate": rate}
        if math.isfinite(metrics["loss"]) and math.isfinite(metrics["grad_norm"]):
            search.after_backward()
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)
            for group in groups:
                group["lr"] = rate * group.get("rate", 1.0)
            self.optimizer.step()
            search.after_step(rate)
            self._skipped_in_a_row = 0
        else:
            self.result.skipped_steps += 1
            self._skipped_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.result.steps += 1
        seconds = time.perf_counter() - started
        self.result.seconds += seconds
        speed = batch["input_ids"].numel() * self.accelerator.num_processes / seconds
        self._report(search, metrics | {"tokens_per_s": speed, "skipped_steps": self.result.skipped_steps})

    def _report(self, search: Search, metrics: dict[str, Any]) -> None:
        """Show a step, and log every `log_every`th, the first and the last."""
        step = self.result.steps
        masks = search.masks()
        metrics = {"step": step, "phase": search.phase, **metrics}
        if masks is not None and self.space is not None:
            metrics["kept_share"] = count_parameters(self.space, masks) / self.space.num_parameters
        self.result.last = metrics
        if not self.accelerator.is_main_process:
            return
        self.observe(metrics | {"steps": self.config.steps})
        if step == 1 or step % self.config.log_every == 0 or step == self.config.steps:
            metrics["memory_bytes"] = peak_memory(self.accelerator.device)
            self.log.write(metrics)
            self.accelerator.log({k: v for k, v in metrics.items() if not isinstance(v, str)}, step=step)

    def _after(self, search: Search, fingerprint: str) -> None:
        """Save when it is time to, when asked to stop, and before giving up."""
        diverged = self._skipped_in_a_row >= self.config.max_skipped
        stop = self._anyone(self._stop_requested)
        due = self.result.steps % self.config.checkpoint_every == 0 or self.result.steps == self.config.steps
        if due or stop or diverged:
            if self.accelerator.is_main_process:
                checkpoint.save(self._checkpoints, self.result.steps, self._state(search, fingerprint))
            self.accelerator.wait_for_everyone()
        if diverged:
            raise TrainingDiverged(
                f"{self._skipped_in_a_row} steps in a row had a non-finite loss or gradient (last loss"
                f" {self.result.last['loss']}, gradient norm {self.result.last['grad_norm']}, learning rate"
                f" {self.result.last['learning_rate']:.2g}). Weights are those of the last good step."
                " Lower tune.learning_rate, or set tune.precision=fp32."
            )
        if stop:
            raise Stopped(f"Stopped after step {self.result.steps}; the state is saved. Run again with --resume.")

    def _state(self, search: Search, fingerprint: str) -> dict[str, Any]:
        assert self.optimizer is not None
        trainable = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        cuda = torch.cuda.get_rng_state_all() if self.accelerator.device.type == "cuda" else []
        return {
            "fingerprint": fingerprint,
            "result": asdict(self.result),
            "skipped_in_a_row": self._skipped_in_a_row,
            "parameters": trainable,
            "optimizer": self.optimizer.state_dict(),
            "search": search.state_dict(),
            "train_stream": self.train_stream.state_dict(),
            "calibration_stream": self.calibration_stream.state_dict(),
            "random": torch.get_rng_state(),
            "cuda_random": cuda,
        }

    def _restore(self, state: dict[str, Any], search: Search) -> None:
        assert self.optimizer is not None
        self.result = TuneResult(**state["result"])
        self._skipped_in_a_row = state["skipped_in_a_row"]
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in state["parameters"].items():
                named[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        search.load_state_dict(state["search"])
        self.train_stream.load_state_dict(state["train_stream"])
        self.calibration_stream.load_state_dict(state["calibration_stream"])
        torch.set_rng_state(state["random"])
        if state["cuda_random"]:
            torch.cuda.set_rng_state_all(state["cuda_random"])

    def _micro_batches(self, batch: Batch) -> list[Batch]:
        rows = len(batch["input_ids"])
        size = self.config.micro_batch_size or rows
        return [{k: v[i : i + size] for k, v in batch.items()} for i in range(0, rows, size)]

    def _summed_loss(self, batch: Batch) -> Tensor:
        with self._autocast():
            logits = self.model(
                input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
            ).logits
        labels = batch["labels"][:, 1:].reshape(-1)
        return cross_entropy(
            logits[:, :-1].reshape(len(labels), -1).float(), labels, ignore_index=IGNORED, reduction="sum"
        )

    def _mean_tokens(self, batch: Batch) -> float:
        """Tokens with a loss in the global batch, per process."""
        count = (batch["labels"][:, 1:] != IGNORED).sum().float()
        self.average([count])
        return max(1.0, count.item())

    def _autocast(self) -> AbstractContextManager[Any]:
        device = self.accelerator.device
        gains = device.type == "cuda" and torch.cuda.is_bf16_supported()
        if self.config.precision == "bf16" or (self.config.precision == "auto" and gains):
            return torch.autocast(device.type, torch.bfloat16)
        return nullcontext()

    def _to_device(self, batch: Batch) -> Batch:
        return {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}

    def _anyone(self, flag: bool) -> bool:
        if self.accelerator.num_processes == 1:
            return flag
        flags = torch.tensor([float(flag)], device=self.accelerator.device)
        self.average([flags])
        return bool(flags.item())

    def _request_stop(self) -> None:
        self._stop_requested = True


def _forget_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None
