"""The only training loop: LoRA on the training stream, together with a search on the calibration stream."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from tuneprune.budget import count_parameters
from tuneprune.calibration.batch import Batch
from tuneprune.data import Stream
from tuneprune.errors import ConfigError, TrainingDiverged
from tuneprune.methods.base import Search
from tuneprune.structure.space import PruningSpace
from tuneprune.system.processes import wait_for_all
from tuneprune.system.signals import Stopped, on_signals
from tuneprune.train import checkpoint
from tuneprune.train.config import TuneConfig
from tuneprune.train.health import first_bad, update_in_range
from tuneprune.train.log import StepLog
from tuneprune.train.runtime import BatchWithOrigins, ModelRuntime, activation_checkpointing, peak_memory
from tuneprune.train.state import Stateful, capture, restore, state_bytes
from tuneprune.train.watches import Watches

Observer = Callable[[Mapping[str, Any]], None]


@dataclass
class TuneResult:
    """One tuning: its last step, skipped steps, seconds, peak memory in bytes, and the last metrics."""

    steps: int = 0
    first: int = 0
    """Steps of the run that came before this tuning."""
    skipped_steps: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    last: dict[str, Any] = field(default_factory=dict)

    @property
    def taken(self) -> int:
        """Steps of this tuning alone."""
        return self.steps - self.first


class Tuner:
    """One tuning of one model: streams, optimiser, checkpoints, and the runtime that searches use."""

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
        first: int = 0,
        observe: Observer = lambda _: None,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.model, self.config, self.folder, self.accelerator = model, config, folder, accelerator
        self.train_stream, self.calibration_stream = train, calibration
        self.end = config.steps
        self.space, self.observe, self.note, self.seed = space, observe, note, seed
        self.optimizer: torch.optim.AdamW | None = None
        self.log = StepLog(folder)
        self.result = TuneResult(steps=first, first=first)
        self.runtime = ModelRuntime(model, config, accelerator)
        self.health, self.watches = self.runtime.health, Watches()
        self._stop_requested = False

    def next_calibration(self) -> Batch:
        """The next calibration batch, on the model's device."""
        tensors = self.runtime.to_device(self.calibration_stream.next())
        return BatchWithOrigins(tensors, self.calibration_stream.last_origins())

    def findings(self) -> dict[str, Any]:
        """Counts and first examples of bad numbers, and the warnings of watches, for the run's record."""
        return self.health.summary() | {"warnings": self.watches.summary()}

    def run(self, search: Search, *, fingerprint: str = "", resume: bool = False) -> TuneResult:
        """Tune to the end, or until the search lets the model be cut; with `resume`, from the newest checkpoint.

        Raises:
            Stopped: a signal was received; the state is saved.
            TrainingDiverged: too many non-finite steps in a row, or nothing but such steps; the state is saved.
            TunePruneError: a checkpoint of another run, damaged checkpoints only, or a disk that refuses one.
        """
        self.model.train()
        self.end = self.config.steps if search.cut_at is None else min(search.cut_at, self.config.steps)
        optimizer = self._build_optimizer(search)
        torch.manual_seed(self.seed)
        if resume:
            self._resume(search, fingerprint)
        if self.accelerator.is_main_process:
            checkpoint.check_disk_space(self._checkpoints, state_bytes(self.model, optimizer, search))
            self.log.rewind(self.result.steps)
        recompute = activation_checkpointing(self.model, self.config.gradient_checkpointing)
        with on_signals(self._request_stop), recompute:
            while self.result.steps < self.end:
                self._step(search)
                self._after(search, fingerprint)
        self.result.peak_bytes = peak_memory(self.accelerator.device)
        self.model.eval()
        return self.result

    @property
    def _checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    def _build_optimizer(self, search: Search) -> torch.optim.AdamW:
        """One AdamW: LoRA in its first group, the search's own parameters in the others."""
        groups = search.parameters()
        own = {id(parameter) for group in groups for parameter in group.parameters}
        lora = [p for p in self.model.parameters() if p.requires_grad and id(p) not in own]
        rate = self.config.learning_rate
        optimizer = torch.optim.AdamW([{"params": lora}], lr=rate, weight_decay=self.config.weight_decay)
        for group in groups:
            extra = {"params": group.parameters, "weight_decay": group.weight_decay, "rate": group.rate}
            optimizer.add_param_group(extra)
        self.optimizer = optimizer
        return optimizer

    def _step(self, search: Search) -> None:
        """One step: let the search revise its decision, then tune under it."""
        started = time.perf_counter()
        assert self.optimizer is not None
        groups = self.optimizer.param_groups
        step = self.result.steps
        self.health.step = step + 1
        metrics: dict[str, Any] = search.before_step(step)
        batch = self.runtime.to_device(self.train_stream.next())
        tokens = self.runtime.mean_tokens(batch)
        total = torch.zeros((), device=self.accelerator.device)
        for micro in self.runtime.micro_batches(batch):
            with search.context():  # until backward is over: activation checkpointing runs the forward again there
                loss = self.runtime.summed_loss(micro) / tokens
                loss.backward()
            total += loss.detach()
        penalty = search.penalty()
        if penalty is not None:
            penalty.backward()
            metrics[search.penalty_name] = penalty.item()
        if not search.trains_lora:
            for parameter in groups[0]["params"]:  # AdamW skips what has no gradient, moments and decay included
                parameter.grad = None
        parameters = [p for group in groups for p in group["params"] if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.runtime.average([*gradients, total])
        norm = torch.nn.utils.get_total_norm(gradients)
        rate = self.config.learning_rate_at(step, self.result.first)
        metrics |= {"loss": total.item(), "grad_norm": norm.item(), "learning_rate": rate}
        if self._may_step(search, metrics, batch, parameters):
            search.after_backward()
            torch.nn.utils.clip_grads_with_norm_(parameters, self.config.clip, norm)
            for group in groups:
                group["lr"] = rate * group.get("rate", 1.0)
            self.optimizer.step()
            search.after_step(rate)
        self.result.skipped_steps = self.health.skipped
        self.optimizer.zero_grad(set_to_none=True)
        self.result.steps += 1
        seconds = time.perf_counter() - started
        self.result.seconds += seconds
        speed = batch["input_ids"].numel() * self.accelerator.num_processes / seconds
        self._report(search, metrics | {"tokens_per_s": speed, "skipped_steps": self.result.skipped_steps})

    def _may_step(
        self, search: Search, metrics: dict[str, Any], batch: Batch, parameters: list[torch.nn.Parameter]
    ) -> bool:
        """Whether all numbers of a step are finite and its update stays in range; if not, notes what is bad."""
        assert self.optimizer is not None
        self.health.last = metrics
        bad = first_bad(metrics, search.penalty_name, self.model, parameters)
        if bad is None and not update_in_range(self.optimizer.param_groups, metrics["learning_rate"]):
            bad = "update"
        if bad is None:
            self.health.good("loss")
            return True
        self.runtime.note(bad, batch, self.train_stream.last_origins())
        return False

    def _report(self, search: Search, metrics: dict[str, Any]) -> None:
        """Show a step, and log every `log_every`th, the first, the last, and each with bad numbers or a warning."""
        step = self.result.steps
        masks = search.masks()
        metrics = {"step": step, "phase": search.phase, **metrics}
        if masks is not None and self.space is not None:
            metrics["kept_share"] = count_parameters(self.space, masks) / self.space.num_parameters
        bad, warnings = self.health.take_new(), self.watches.see(metrics | {"steps": self.config.steps})
        events = {"bad": bad, "warnings": [found.what for found in warnings]}
        metrics |= {name: found for name, found in events.items() if found}
        self.result.last = metrics
        if not self.accelerator.is_main_process:
            return
        for found in warnings:
            self.note(f"{found.what} at step {step}: {found.value:.4g}, limit {found.limit:.4g}. {found.advice}")
        self.observe(metrics | {"steps": self.config.steps})
        is_due = step in (self.result.first + 1, self.end) or step % self.config.log_every == 0
        if is_due or bad or warnings:
            metrics["memory_bytes"] = peak_memory(self.accelerator.device)
            self.log.write(metrics)
            self.accelerator.log({k: v for k, v in metrics.items() if not isinstance(v, str | list)}, step=step)

    def _after(self, search: Search, fingerprint: str) -> None:
        """Save a checkpoint when one is due, when asked to stop, and before giving up."""
        took_none = self.health.skipped == self.result.taken and self.result.steps == self.end
        diverged = self._diagnosis() if self.health.has_diverged or took_none else ""
        stop = self.runtime.any_process(self._stop_requested)
        due = self.result.steps % self.config.checkpoint_every == 0 or self.result.steps == self.end
        if due or stop or diverged:
            if self.accelerator.is_main_process:
                self.log.flush()
                checkpoint.save(self._checkpoints, self.result.steps, self._state(search), fingerprint)
            wait_for_all(self.accelerator)
        if diverged:
            raise TrainingDiverged(diverged)
        if stop:
            raise Stopped(f"Stopped after step {self.result.steps}; the state is saved. Run again with --resume.")

    def _diagnosis(self) -> str:
        """Why the run gives up. A resumed run may skip as many steps again."""
        text = self.health.diagnosis(self.runtime.examine(), autocast=self.runtime.computes_in_bf16)
        self.health.reset_in_a_row()
        return text

    def _parts(self, search: Search) -> dict[str, Stateful]:
        """Everything that has a state in addition to the trained weights."""
        assert self.optimizer is not None
        return {
            "optimizer": self.optimizer,
            "search": search,
            "health": self.health,
            "watches": self.watches,
            "train_stream": self.train_stream,
            "calibration_stream": self.calibration_stream,
        }

    def _state(self, search: Search) -> dict[str, Any]:
        return {"result": asdict(self.result)} | capture(self.model, self._parts(search))

    def _resume(self, search: Search, fingerprint: str) -> None:
        """Continue from the newest valid checkpoint, if there is one."""
        found = checkpoint.load_latest(self._checkpoints, fingerprint)
        steps = self.runtime.gather(-1 if found is None else found.step)
        if len(set(steps)) > 1:
            raise ConfigError(
                f"The processes of this run see different checkpoints in {self._checkpoints}. Name an --out on a disk"
                " that all of them share."
            )
        if found is None:
            if self.accelerator.is_main_process and self.log.has_steps:
                self.note(f"There is no checkpoint in {self._checkpoints}, so this tuning starts again.")
            return
        self.result = TuneResult(**found.state["result"])
        restore(self.model, self._parts(search), found.state)
        if self.accelerator.is_main_process:
            for message in checkpoint.rename_damaged(found):
                self.note(message)

    def _request_stop(self) -> None:
        self._stop_requested = True
