"""What the stages of a run or of a recovery share, from its checks to its end."""

import json
import os
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Generic

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import PreTrainedModel

from tuneprune import evaluate, export
from tuneprune.calibration.score_store import ScoreStore
from tuneprune.config import RecoverConfig, RunConfig
from tuneprune.errors import ConfigError
from tuneprune.model.loading import load_model
from tuneprune.pipeline.budget_costs import TABLE, Costs
from tuneprune.pipeline.checks import Settings, check_shares
from tuneprune.pipeline.output_folder import identify, open_folder, stored_identity
from tuneprune.pipeline.validation import Checked, check
from tuneprune.report import load_scores
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.space import PruningSpace
from tuneprune.system.processes import check_launcher, wait_for_all, world_size
from tuneprune.system.progress import Progress
from tuneprune.system.storage import write_text
from tuneprune.train import TuneConfig, Tuner, TuneResult
from tuneprune.train.checkpoint import fingerprint

Scores = dict[str, dict[str, float]]
FINAL_SCORES = ("pruned", "after")
"""Names of scores of the finished model, which a resumed run computes again."""
TRANSFER_TIMEOUT = timedelta(days=1)
"""How long a transfer between processes may take; a process that exited is noticed long before (`Peers`)."""


@dataclass(kw_only=True)
class Job(Generic[Settings]):
    """Everything that the stages of one run or recovery share."""

    checked: Checked[Settings]
    out: Path
    resume: bool
    progress: Progress
    accelerator: Accelerator
    load: Callable[[torch.device], PreTrainedModel]
    loaded: PreTrainedModel | None
    """A copy of the starting model, loaded before anything was written, for the first stage that needs one."""
    depends_on: Mapping[str, Any]
    """Settings, and what else must be the same when a run is resumed."""
    lock: ExitStack
    """Holds the output folder, on the process that writes there."""
    store: ScoreStore | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, TuneResult] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """`Tuner.findings` of every stage."""

    @property
    def config(self) -> Settings:
        """The run file, with its epochs as steps."""
        return self.checked.config

    @property
    def architecture(self) -> Architecture:
        """The parts of the starting model."""
        return self.checked.architecture

    @property
    def costs(self) -> Costs:
        """The space, the budget on it, and the times it counts; a recovery has none."""
        assert self.checked.costs is not None
        return self.checked.costs

    @property
    def space(self) -> PruningSpace:
        """The space that is pruned."""
        return self.costs.space

    def fresh_model(self) -> PreTrainedModel:
        """A fresh copy of the model that the run started from."""
        model, self.loaded = self.loaded, None
        return self.load(self.accelerator.device) if model is None else model

    def tuner(self, model: PreTrainedModel, options: TuneConfig, folder: Path, after: Tuner | None = None) -> Tuner:
        """A tuning of `model` on this run's data; every tuning of a run reads the same batches in the same order.

        Args:
            after: the tuning that it continues with another model: its steps count, and its batches are not read again.
        """
        data, seed = self.checked.data, self.config.seed
        shared = {"seed": seed, "batch_size": options.batch_size}
        shared |= {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        return Tuner(
            model,
            data.stream(data.train_part, **shared) if after is None else after.train_stream,
            data.stream(data.calibration_part, **shared),
            options,
            folder,
            accelerator=self.accelerator,
            seed=seed,
            space=self.checked.costs and self.space,
            first=0 if after is None else after.result.steps,
            observe=self.progress.step,
            note=self.progress.note,
        )

    def fingerprint(self, stage: str) -> str:
        """Identifies a stage's checkpoints, so that those of another run are refused."""
        return fingerprint(stage, self.depends_on)

    def score(self, model: PreTrainedModel, name: str) -> Scores:
        """The scores of a model; kept in `scores.json`, so that a resumed run does not repeat finished ones."""
        store, options = self.out / "scores.json", self.config.evaluate
        known = load_scores(store)
        if name in known and name not in FINAL_SCORES:
            return known[name]
        self.progress.stage(f"evaluate {name.replace('_', ' ')}")
        started = time.perf_counter()
        known[name] = evaluate.evaluate(
            model,
            self.checked.tokenizer,
            self.checked.tasks,
            batch_size=options.batch_size,
            max_length=options.max_length,
            progress=self.progress.item,
        )
        self.seconds["evaluate_s"] = self.seconds.get("evaluate_s", 0.0) + time.perf_counter() - started
        if self.accelerator.is_main_process:
            write_text(store, json.dumps(known, indent=1) + "\n")
        return known[name]

    def take_probe(self, model: PreTrainedModel) -> export.Probe:
        """Logits on the first test items."""
        texts = [example.prompt + example.completion for task in self.checked.tasks for example in task.examples[:4]]
        return export.take_probe(model, self.checked.tokenizer, texts)

    def resources(self) -> dict[str, Any]:
        """`time` and `memory` as records have them."""
        return {
            "time": self.seconds | {f"{stage}_s": result.seconds for stage, result in self.results.items()},
            "memory": {"peak_bytes": max((result.peak_bytes for result in self.results.values()), default=None)},
        }

    def close(self) -> None:
        """Wait for all processes, and let the trackers write what they hold."""
        wait_for_all(self.accelerator)
        for tracker in self.accelerator.trackers:
            tracker.finish()


RunJob = Job[RunConfig]


def prepare(config: RunConfig, out: Path, *, resume: bool, progress: Progress, store: Path | None = None) -> RunJob:
    """All checks of a run, then the processes and the output folder, which `Job.lock` holds.

    Args:
        store: a folder for unit scores, shared with runs of other budgets.

    Raises:
        TunePruneError: what is wrong with the run file, the model, the data, the budget or the folder.
    """
    progress.stage("prepare")
    base, adapter = config.model.base, config.model.adapter
    job = begin(
        check(config, out / TABLE if resume else None),
        partial(load_model, base, adapter),
        out,
        named=(base, adapter),
        resume=resume,
        progress=progress,
    )
    if store is not None and job.accelerator.num_processes == 1:  # several must all compute a score or all reuse it
        config = job.config
        identity = {name: job.depends_on[name] for name in ("model", "adapter", "data", "code")}
        rows = {"batch_size": config.tune.batch_size, "max_length": config.tune.max_length}
        job.store = ScoreStore(store, identity | {"rows": rows, "space": config.space, "seed": config.seed})
    return job


def begin(
    checked: Checked[Settings],
    load: Callable[[torch.device], PreTrainedModel],
    out: Path,
    *,
    named: tuple[str, str | None],
    resume: bool,
    progress: Progress,
) -> Job[Settings]:
    """Join the processes, load the model and open the output folder.

    Args:
        named: the model and its adapter, whose files a resumed run must find unchanged.

    Raises:
        TunePruneError: a batch that the processes cannot share, a model that does not load, or a folder in use.
    """
    config, table = checked.config, checked.costs and checked.costs.table
    accelerator = make_accelerator(config, out)
    check_shares(config, accelerator.num_processes)
    loaded = load(accelerator.device)
    with ExitStack() as held:
        if accelerator.is_main_process:
            identity = identify(checked.data, checked.tasks, *named, accelerator)
            held.enter_context(open_folder(out, config, identity, resume=resume, note=progress.note))
            if table is not None and not (out / TABLE).exists():
                write_text(out / TABLE, table.model_dump_json(indent=1) + "\n")
        if config.tune.trackers:
            accelerator.init_trackers("tuneprune")
        wait_for_all(accelerator)
        progress.detail(checked.data.words())
        return Job(
            checked=checked,
            out=out,
            resume=resume,
            progress=progress,
            accelerator=accelerator,
            load=load,
            loaded=loaded,
            depends_on=stored_identity(out, config),
            lock=held.pop_all(),
        )


def make_accelerator(config: RunConfig | RecoverConfig, out: Path) -> Accelerator:
    """This process among those of the run: one, or all that `accelerate launch` or torchrun started.

    Raises:
        ConfigError: processes that would not know of each other, and so would all write to one folder.
    """
    if config.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    check_launcher()
    accelerator = Accelerator(
        cpu=world_size() > 1 and not torch.accelerator.is_available(),  # or each would believe it is the only one
        log_with=[*config.tune.trackers] or None,
        project_dir=str(out),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=TRANSFER_TIMEOUT)],
    )
    if accelerator.num_processes != world_size():
        raise ConfigError(
            f"{world_size()} processes were launched, but accelerate joins {accelerator.num_processes} of them. Start"
            " them with torchrun, or start one without a launcher."
        )
    return accelerator
