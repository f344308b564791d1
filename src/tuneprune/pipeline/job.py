"""One run's checks and what its stages share."""

import json
import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tuneprune import evaluate, export, families
from tuneprune.budget import Budget
from tuneprune.budget.latency_table import LatencyTable
from tuneprune.calibration.score_store import ScoreStore
from tuneprune.config import RecoverConfig, RunConfig
from tuneprune.data import Data, load
from tuneprune.errors import ConfigError
from tuneprune.model.loading import load_config, load_model, load_tokenizer, skeleton, stored_dtype
from tuneprune.pipeline.budget_costs import TABLE, Costs, check_reach, costs_of, size_text
from tuneprune.pipeline.checks import (
    check_answers,
    check_compensation,
    check_counted,
    check_lengths,
    check_shares,
    check_targets,
    check_tokens,
    check_trackers,
    in_steps,
    lengths_in_words,
)
from tuneprune.pipeline.identity import identify
from tuneprune.pipeline.output_folder import claim, fingerprinted
from tuneprune.report import load_scores
from tuneprune.structure import spaces
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.space import PruningSpace
from tuneprune.system.processes import check_launcher, wait_for_all
from tuneprune.system.progress import Progress
from tuneprune.system.storage import write_text
from tuneprune.train import TuneConfig, Tuner, TuneResult
from tuneprune.train.checkpoint import fingerprint

Scores = dict[str, dict[str, float]]
PATIENCE = timedelta(days=1)
"""How long a transfer between processes may take; one that is gone is noticed long before (`peers`)."""


@dataclass
class Checked:
    """A run file that has passed every check that needs no training.

    `budget` is the run file's as a share of this model; `table` has the times that it counts, if any.
    """

    config: RunConfig
    tokenizer: PreTrainedTokenizerBase
    data: Data
    tasks: list[evaluate.LoadedTask]
    architecture: Architecture
    space: PruningSpace
    budget: Budget
    table: LatencyTable | None
    dtype: torch.dtype


@dataclass
class Job(Checked):
    """Everything the stages of one run share."""

    out: Path
    resume: bool
    progress: Progress
    accelerator: Accelerator
    loaded: PreTrainedModel | None
    """A copy of the base model, loaded before anything was written, for whoever needs one first."""
    depends_on: Mapping[str, Any]
    """Settings, and what else a resumed run may not find changed."""
    lock: ExitStack
    """Holds the output folder, on the process that writes there."""
    store: ScoreStore | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    results: dict[str, TuneResult] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What `Tuner.findings` gave of every stage."""

    def dense(self) -> PreTrainedModel:
        """A fresh copy of the base model."""
        model, self.loaded = self.loaded, None
        if model is not None:
            return model
        return load_model(self.config.model.base, self.config.model.adapter, self.accelerator.device)

    def tuner(self, model: PreTrainedModel, options: TuneConfig, folder: Path) -> Tuner:
        """A tuning of `model` on this run's data; every tuning of a run reads the same batches in the same order."""
        shared = {"seed": self.config.seed, "batch_size": options.batch_size}
        place = {"rank": self.accelerator.process_index, "world_size": self.accelerator.num_processes}
        return Tuner(
            model,
            self.data.stream(self.data.train_part, **shared, **place),
            self.data.stream(self.data.calibration_part, **shared, **place),
            options,
            folder,
            accelerator=self.accelerator,
            seed=self.config.seed,
            space=self.space,
            observe=self.progress.step,
            note=self.progress.note,
        )

    def fingerprint(self, stage: str) -> str:
        """Identifies a stage's checkpoints: those of another run are refused."""
        return fingerprint(stage, self.depends_on)

    def score(self, model: PreTrainedModel, name: str) -> Scores:
        """The scores of a model; kept in `scores.json`, so that a resumed run does not repeat finished ones."""
        store = self.out / "scores.json"
        known = load_scores(store)
        if name in known and name != "pruned":
            return known[name]
        self.progress.stage(f"evaluate {name.replace('_', ' ')}")
        started = time.perf_counter()
        known[name] = evaluate.evaluate(
            model,
            self.tokenizer,
            self.tasks,
            batch_size=self.config.evaluate.batch_size,
            max_length=self.config.evaluate.max_length,
            progress=self.progress.item,
        )
        self.seconds["evaluate_s"] = self.seconds.get("evaluate_s", 0.0) + time.perf_counter() - started
        if self.accelerator.is_main_process:
            write_text(store, json.dumps(known, indent=1) + "\n")
        return known[name]

    def close(self) -> None:
        """Wait for all processes, and let the trackers write what they hold."""
        wait_for_all(self.accelerator)
        for tracker in self.accelerator.trackers:
            tracker.finish()


def check(config: RunConfig, table: Path | None = None) -> Checked:
    """Every check that needs no training and writes nothing.

    Args:
        table: the measured times of this run, where it was begun before.

    Raises:
        TunePruneError: what is wrong with the run file, the model, the data or the budget.
    """
    hf_config = load_config(config.model.base, config.model.adapter)
    check_lengths(config, hf_config.max_position_embeddings)
    check_trackers(config.tune.trackers)
    architecture, costs = check_shape(config, hf_config, table)
    tokenizer = load_tokenizer(config.model.base, hf_config, config.model.adapter)
    tasks = evaluate.load_tasks(config.evaluate, tokenizer, config.data.system_role)
    check_answers(tasks, min(config.evaluate.max_length, hf_config.max_position_embeddings))
    test = [example for task in tasks for example in task.examples]
    data = load(config.data, tokenizer, config.tune.max_length, test, sum(task.num_blank for task in tasks))
    check_tokens(tokenizer, data, tasks, hf_config.vocab_size)
    config = in_steps(config, data)
    return Checked(config, tokenizer, data, tasks, architecture, **vars(costs), dtype=stored_dtype(hf_config))


def check_shape(
    config: RunConfig, hf_config: PretrainedConfig, table: Path | None = None
) -> tuple[Architecture, Costs]:
    """The checks that need no data: whether the space offers what the budget and the export ask for.

    Raises:
        TunePruneError: what is wrong with the space, the budget or the export.
    """
    architecture = families.describe_config(hf_config)
    space = spaces.build(config.space, architecture, skeleton(hf_config))
    config.method.check_family(architecture)
    check_targets(config, architecture)
    check_compensation(config, space)
    check_counted(config)
    costs = costs_of(config.budget, hf_config, space, table)
    space, budget = costs.space, costs.budget
    check_reach(costs, config.method, hf_config)
    budget, added = config.method.constrained(budget), config.method.adds(space)
    export.check(config.export, lambda: export.foresee(skeleton(hf_config), architecture, space, budget, added))
    return architecture, costs


def prepare(config: RunConfig, out: Path, *, resume: bool, progress: Progress, store: Path | None = None) -> Job:
    """All checks, then the processes and the output folder, which `Job.lock` holds.

    Args:
        store: a folder for unit scores, shared with runs of other budgets.

    Raises:
        TunePruneError: what is wrong with the run file, the model, the data, the budget or the folder.
    """
    progress.stage("prepare")
    checked = check(config, out / TABLE if resume else None)
    config = checked.config
    accelerator = processes(config, out)
    check_shares(config, accelerator.num_processes)
    loaded = load_model(config.model.base, config.model.adapter, accelerator.device)
    with ExitStack() as held:
        if accelerator.is_main_process:
            named = (config.model.base, config.model.adapter)
            identity = identify(checked.data, checked.tasks, *named, accelerator)
            held.enter_context(claim(out, config, identity, resume=resume, note=progress.note))
            if checked.table is not None and not (out / TABLE).exists():
                write_text(out / TABLE, checked.table.model_dump_json(indent=1) + "\n")
        if config.tune.trackers:
            accelerator.init_trackers("tuneprune")
        wait_for_all(accelerator)
        progress.detail(checked.data.words())
        depends_on = fingerprinted(out, config)
        alone = accelerator.num_processes == 1  # processes of one run must either all compute a score or all reuse it
        kept = ScoreStore(store, score_identity(checked, depends_on)) if store is not None and alone else None
        return Job(
            **vars(checked),
            out=out,
            resume=resume,
            progress=progress,
            accelerator=accelerator,
            loaded=loaded,
            depends_on=depends_on,
            lock=held.pop_all(),
            store=kept,
        )


def score_identity(checked: Checked, depends_on: Mapping[str, Any]) -> dict[str, Any]:
    """What the scores of all one-shot methods depend on: the dense model, the data in its order, the space."""
    config = checked.config
    rows = {"batch_size": config.tune.batch_size, "max_length": config.tune.max_length}
    return {
        **{name: depends_on[name] for name in ("model", "adapter", "data", "code")},
        "rows": rows,
        "space": config.space,
        "seed": config.seed,
    }


def processes(config: RunConfig | RecoverConfig, out: Path) -> Accelerator:
    """This process among those of the run: one, or all that `accelerate launch` or torchrun started.

    Raises:
        ConfigError: processes that would not know of each other, and so all write to one folder.
    """
    if config.deterministic and torch.cuda.is_available():
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    check_launcher()
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    accelerator = Accelerator(
        cpu=launched > 1 and not torch.accelerator.is_available(),  # or each would take itself for the only one
        log_with=[*config.tune.trackers] or None,
        project_dir=str(out),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.num_processes != launched:
        raise ConfigError(
            f"{launched} processes were launched, but accelerate joins {accelerator.num_processes} of them. Start them"
            " with torchrun, or one without a launcher."
        )
    return accelerator


def outlook(config: RunConfig) -> dict[str, Any]:
    """What a checked run would do: sizes before and after, data, and how the result will load."""
    checked = check(config)
    space, budget = checked.space, checked.budget
    hf_config = load_config(config.model.base, config.model.adapter)
    widths, added = config.method.constrained(budget), config.method.adds(space)
    return {
        "model": f"{config.model.base} ({checked.architecture.family}, {space.num_parameters:,} parameters)",
        "method": f"{config.method.title} on space {space.name}",
        "result": size_text(space, budget, checked.table, checked.dtype),
        "loads as": export.loads_as(hf_config, checked.architecture, space, widths, added),
        "training": f"{len(checked.data.train)} documents, {lengths_in_words(config, checked.config, checked.data)}",
        "calibration": f"{len(checked.data.calibration)} documents",
        "data": checked.data.words(),
        "evaluation": ", ".join(f"{task.name} ({len(task.examples)})" for task in checked.tasks),
        "ok": True,
    }
