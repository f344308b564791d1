"""Fine-tune a pruned model without changing its shape: an export of a run, or any model of a known family."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneprune import export
from tuneprune.compress.shape import Shape
from tuneprune.config import RecoverConfig
from tuneprune.errors import wrap_errors
from tuneprune.model.corrections import replace_stops, turn_cache_on
from tuneprune.model.loading import cast_weights, load_any_config, load_model, refuse_bad_weights, stored_dtype
from tuneprune.pipeline.job import Job, Scores, begin
from tuneprune.pipeline.record import common_record, write_card
from tuneprune.pipeline.run import export_and_prove, tune_merged
from tuneprune.pipeline.validation import check_recovery
from tuneprune.report import Proof
from tuneprune.report.recover import RecoverRecord, recover_card
from tuneprune.system.progress import Progress


def recover(
    config: RecoverConfig, out: Path, *, resume: bool = False, progress: Progress | None = None
) -> RecoverRecord:
    """Tune a pruned model with LoRA without changing its shape; score it before and after, write and prove it.

    Args:
        out: a new folder, or with `resume` that of the same tuning.

    Raises:
        TunePruneError: something the user can fix; before any long work wherever possible.
        Stopped: a signal ended it after its state was saved; call again with `resume`.
    """
    progress = progress or Progress()
    progress.stage("prepare")
    load, named = partial(load_smaller, config.model), (config.model, None)
    job = begin(check_recovery(config), load, out, named=named, resume=resume, progress=progress)
    with job.lock:
        if (out / "record.json").exists():  # written last: all is done
            return finished(out)
        model = job.fresh_model()
        before = job.score(model, "before")
        progress.stage("recover")
        tune_merged(job, "recover", model, job.architecture, job.config.tune, out)
        if job.accelerator.is_main_process:
            proof = make_proof(job, model, export_and_prove(job, model, job.take_probe(model)))
            cast_weights(model, torch.float32)
            write_record(job, proof, {"before": before, "after": job.score(model, "after")})
        job.close()
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


def make_proof(job: Job[RecoverConfig], model: PreTrainedModel, found: dict[str, Any]) -> Proof:
    """The proof of a model of which nothing was cut."""
    total = sum(parameter.numel() for parameter in model.parameters())
    found["bytes_on_disk"]["dense"] = total * job.checked.dtype.itemsize
    counts = {"dense_total": total, "kept_total": total, "dense_prunable": total, "kept_prunable": total}
    whole = {"share_total": 1.0, "share_prunable": 1.0, "target": 1.0, "of": "total"}
    return Proof.from_data({"schema": 1, "parameters": counts | whole, **found}, "proof")


def write_record(job: Job[RecoverConfig], proof: Proof, scores: dict[str, Scores]) -> None:
    """`proof.json`, the card, and `record.json`, whose presence means that the tuning is complete."""
    out = job.out
    common = common_record(job, job.config.model, proof, scores["before"], scores["after"])
    record = RecoverRecord.from_data(common | {"scores": scores}, "record")
    proof.save(out / "proof.json")
    write_card(out / "model", recover_card(record), proof.failure(out, was_cut=False))
    record.save(out / "record.json")
