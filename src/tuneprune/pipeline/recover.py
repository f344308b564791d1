"""Tuning on of a model that is smaller already, in the shape that it has: an export of a run, or somebody else's."""

import json
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneprune import evaluate, export, families
from tuneprune.compress.shape import Shape
from tuneprune.config import RecoverConfig
from tuneprune.data import Data, load
from tuneprune.errors import wrap_errors
from tuneprune.methods.base import Search
from tuneprune.model.corrections import replace_stops, turn_cache_on
from tuneprune.model.loading import (
    cast_weights,
    load_any_config,
    load_model,
    load_tokenizer,
    refuse_bad_weights,
    stored_dtype,
)
from tuneprune.pipeline.checks import (
    check_answers,
    check_lengths,
    check_shares,
    check_targets,
    check_tokens,
    check_trackers,
    in_steps,
)
from tuneprune.pipeline.identity import identify
from tuneprune.pipeline.job import Scores, processes
from tuneprune.pipeline.output_folder import claim, fingerprinted
from tuneprune.pipeline.record import write_card
from tuneprune.pipeline.run import convert, round_weights
from tuneprune.report import Proof, load_scores
from tuneprune.report.recover import RecoverRecord, recover_card
from tuneprune.report.run.findings import score_warnings, training_findings
from tuneprune.structure.architecture import Architecture
from tuneprune.system.environment import environment
from tuneprune.system.processes import wait_for_all
from tuneprune.system.progress import Progress
from tuneprune.system.storage import write_text
from tuneprune.train import Tuner, TuneResult, inject_lora, merge_lora
from tuneprune.train.checkpoint import fingerprint


@dataclass
class Recovery:
    """A checked tuning: what its stages share."""

    config: RecoverConfig
    tokenizer: PreTrainedTokenizerBase
    data: Data
    tasks: list[evaluate.LoadedTask]
    architecture: Architecture
    dtype: torch.dtype
    model: PreTrainedModel
    out: Path
    progress: Progress
    accelerator: Accelerator
    fingerprint: str
    lock: ExitStack
    """Holds the output folder, on the process that writes there."""
    seconds: dict[str, float] = field(default_factory=dict)
    findings: dict[str, dict[str, Any]] = field(default_factory=dict)


def recover(
    config: RecoverConfig, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> RecoverRecord:
    """Tune a smaller model with LoRA, in the shape that it has; score it before and after, write and prove it.

    Args:
        out: a new folder, or with `resume` that of the same tuning.

    Raises:
        TunePruneError: something the user can fix; before any long work wherever possible.
        Stopped: a signal ended it after its state was saved; call again with `resume`.
    """
    recovery = prepare(config, out, resume=resume, progress=progress or Progress())
    with recovery.lock:
        if (out / "record.json").exists():  # written last: all is done
            return finished(out)
        before = score(recovery, "before")
        result = tune(recovery, resume=resume)
        if recovery.accelerator.is_main_process:
            proof = write_model(recovery)
            cast_weights(recovery.model, torch.float32)
            write_record(recovery, result, proof, {"before": before, "after": score(recovery, "after")})
        wait_for_all(recovery.accelerator)
        for tracker in recovery.accelerator.trackers:
            tracker.finish()
        return finished(out)


def finished(out: Path) -> RecoverRecord:
    """The record of a complete tuning.

    Raises:
        ProofFailed: what was written is not what was tuned.
    """
    record = RecoverRecord.load(out / "record.json")
    failure = record.proof.failure(out, was_cut=False)
    if failure is not None:
        raise failure
    return record


def prepare(config: RecoverConfig, out: Path, *, resume: bool, progress: Progress) -> Recovery:
    """All checks, then the processes and the output folder, which `Recovery.lock` holds.

    Raises:
        TunePruneError: what is wrong with the run file, the model, the data or the folder.
    """
    progress.stage("prepare")
    hf_config = load_any_config(config.model)
    check_lengths(config, hf_config.max_position_embeddings)
    check_trackers(config.tune.trackers)
    export.check(config.export, lambda: Shape.of(hf_config))
    architecture, dtype = families.describe_config(hf_config), stored_dtype(hf_config)
    check_targets(config, architecture)
    tokenizer = load_tokenizer(config.model, hf_config)
    tasks = evaluate.load_tasks(config.evaluate, tokenizer, config.data.system_role)
    check_answers(tasks, min(config.evaluate.max_length, hf_config.max_position_embeddings))
    test = [example for task in tasks for example in task.examples]
    data = load(config.data, tokenizer, config.tune.max_length, test, sum(task.num_blank for task in tasks))
    check_tokens(tokenizer, data, tasks, hf_config.vocab_size)
    config = in_steps(config, data)
    accelerator = processes(config, out)
    check_shares(config, accelerator.num_processes)
    model = load_smaller(config.model, accelerator.device)
    with ExitStack() as held:
        if accelerator.is_main_process:
            identity = identify(data, tasks, config.model, None, accelerator)
            held.enter_context(claim(out, config, identity, resume=resume, note=progress.note))
        if config.tune.trackers:
            accelerator.init_trackers("tuneprune")
        wait_for_all(accelerator)
        progress.detail(data.words())
        known = fingerprint("recover", fingerprinted(out, config))
        checked = (config, tokenizer, data, tasks, architecture, dtype, model)
        return Recovery(*checked, out, progress, accelerator, known, held.pop_all())


def load_smaller(model: str, device: torch.device) -> PreTrainedModel:
    """A stock or ragged model, computing in float32 on a CPU and in the stored precision on a GPU.

    Ragged ones are built by tuneprune itself: no code of the folder runs.

    Raises:
        ConfigError: weights that cannot be read or hold bad numbers.
    """
    config = load_any_config(model)
    if not Shape.of(config).is_ragged:
        return load_model(model, None, device)
    dtype = torch.float32 if device.type == "cpu" else stored_dtype(config)
    with wrap_errors(f"model: cannot load {model}"):
        loaded: Any = export.load_exported(Path(model), dtype)
    refuse_bad_weights(loaded, model)
    replace_stops(model, loaded)
    turn_cache_on(model, loaded)
    return loaded.to(device)


def tune(recovery: Recovery, *, resume: bool) -> TuneResult:
    """Tune the model in place, LoRA merged and weights rounded to the precision they will be stored in."""
    config, accelerator, model = recovery.config, recovery.accelerator, recovery.model
    recovery.progress.stage("recover")
    inject_lora(model, recovery.architecture, config.tune.lora, config.seed)
    shared = {"seed": config.seed, "batch_size": config.tune.batch_size}
    place = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    tuner = Tuner(
        model,
        recovery.data.stream(recovery.data.train_part, **shared, **place),
        recovery.data.stream(recovery.data.calibration_part, **shared, **place),
        config.tune,
        recovery.out,
        accelerator=accelerator,
        seed=config.seed,
        observe=recovery.progress.step,
        note=recovery.progress.note,
    )
    search = Search()
    search.phase = "recover"
    result = tuner.run(search, fingerprint=recovery.fingerprint, resume=resume)
    recovery.findings["recover"] = tuner.findings()
    merge_lora(model, recovery.architecture)
    round_weights(model, recovery.dtype)
    return result


def score(recovery: Recovery, name: str) -> Scores:
    """The scores of the model as it stands; kept in `scores.json`, so that a resumed tuning knows those before."""
    store = recovery.out / "scores.json"
    known = load_scores(store)
    if name in known and name == "before":
        return known[name]
    recovery.progress.stage(f"evaluate {name}")
    started, options = time.perf_counter(), recovery.config.evaluate
    known[name] = evaluate.evaluate(
        recovery.model,
        recovery.tokenizer,
        recovery.tasks,
        batch_size=options.batch_size,
        max_length=options.max_length,
        progress=recovery.progress.item,
    )
    recovery.seconds["evaluate_s"] = recovery.seconds.get("evaluate_s", 0.0) + time.perf_counter() - started
    if recovery.accelerator.is_main_process:
        write_text(store, json.dumps(known, indent=1) + "\n")
    return known[name]


def write_model(recovery: Recovery) -> Proof:
    """Write the tuned model and the other exports, and prove that a fresh process finds the same in them."""
    recovery.progress.stage("export and prove")
    texts = [example.prompt + example.completion for task in recovery.tasks for example in task.examples[:4]]
    probe = export.take_probe(recovery.model, recovery.tokenizer, texts)
    loader = export.write(cast_weights(recovery.model, recovery.dtype), recovery.tokenizer, recovery.out / "model")
    found = export.prove(recovery.out / "model", probe, needs_remote_code=loader.needs_remote_code)
    total = sum(parameter.numel() for parameter in recovery.model.parameters())
    found["bytes_on_disk"]["dense"] = total * recovery.dtype.itemsize
    counts = {"dense_total": total, "kept_total": total, "dense_prunable": total, "kept_prunable": total}
    whole = {"share_total": 1.0, "share_prunable": 1.0, "target": 1.0, "of": "total"}  # nothing is cut here
    exports = convert(recovery.config.export, recovery.out, recovery.progress)
    content = {"schema": 1, "parameters": counts | whole, "exports": exports, **found}
    return Proof.from_data(content, "proof")


def write_record(recovery: Recovery, result: TuneResult, proof: Proof, scores: dict[str, Scores]) -> None:
    """`proof.json`, the card, and `record.json`, which says that all is done."""
    config, out = recovery.config, recovery.out
    shortened = recovery.data.summary()["train"]["shortened"]
    found = training_findings(recovery.findings)
    found["warnings"] += score_warnings(scores["after"], scores["before"], evaluate.chances(recovery.tasks))
    content: dict[str, Any] = {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": config.seed,
        "model": {
            "id": config.model,
            "family": recovery.architecture.family,
            "parameters": proof.parameters.kept_total,
            "path": config.model if Path(config.model).is_dir() else None,
        },
        "data": recovery.data.summary(),
        "scores": scores,
        "time": recovery.seconds | {"recover_s": result.seconds},
        "memory": {"peak_bytes": result.peak_bytes},
        "environment": environment(recovery.accelerator),
        "training": {
            "recover_steps": result.steps,
            "skipped_steps": result.skipped_steps,
            "truncated_records": shortened,
            **found,
        },
        "proof": proof.model_dump(by_alias=True),
    }
    record = RecoverRecord.from_data(content, "record")
    proof.save(out / "proof.json")
    write_card(out / "model", recover_card(record), proof.failure(out, was_cut=False))
    record.save(out / "record.json")
