"""Tune and prune one model, then compress, prove, evaluate and report it. Start reading here."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from tuneprune import export, families
from tuneprune.calibration.subject import Subject
from tuneprune.compress import Part, cut, rescaled_weights, rewrite
from tuneprune.compress.compensate import compensate_plan
from tuneprune.config import RunConfig
from tuneprune.errors import NonFinite
from tuneprune.methods.base import Search
from tuneprune.model.loading import cast_weights
from tuneprune.pipeline.costs import measure_costs
from tuneprune.pipeline.job import Job, RunJob, Scores, prepare
from tuneprune.pipeline.record import make_proof, make_record, write_results
from tuneprune.report import RunRecord, ScoreRecord
from tuneprune.structure.architecture import Architecture
from tuneprune.structure.masks import simulated
from tuneprune.structure.plan import Plan
from tuneprune.system.progress import Progress
from tuneprune.train import TuneConfig, Tuner, inject_lora, make_trainable, merge_lora


def run(
    config: RunConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    reference: ScoreRecord | None = None,
    store: Path | None = None,
) -> RunRecord:
    """One run from base model and data to a smaller, proven model; `docs/runs.md` lists what it writes to `out`.

    Args:
        out: a new folder, or with `resume` that of the same run.
        reference: scores of the dense model and of the dense model tuned alike, as far as they are known.
        store: a folder shared with runs of other budgets, for unit scores that depend on the dense model alone.

    Raises:
        TunePruneError: something the user can fix; before any long work wherever possible.
        Stopped: a signal ended the run after its state was saved; call again with `resume`.
    """
    job = prepare(config, out, resume=resume, progress=progress or Progress(), store=store)
    with job.lock:
        if (out / "record.json").exists():  # written last: the run is complete
            return finished(out)

        dense, tuned = reference_scores(job, reference)  # what the result is compared with
        model, plan, tuner = decide(job)  # still in its dense shape, LoRA merged
        probe, found = masked_probe(job, model, plan)  # its logits under the plan's masks
        small = cut(model, job.architecture, job.space, plan)
        found["cut"] = export.compare(small, probe)
        small, probe = tune_smaller(job, small, probe, tuner)

        if job.accelerator.is_main_process:
            found |= export_and_prove(job, small, probe)
            proof = make_proof(job, plan, found | measure_costs(job, plan, small))
            scores = (dense, tuned, job.score(cast_weights(small, torch.float32), "pruned"))
            write_results(job, make_record(job, plan, proof, scores), proof)
        job.close()
        return finished(out)


def finished(out: Path) -> RunRecord:
    """The record of a complete run.

    Raises:
        ProofFailed: what was written is not what the run computed.
    """
    record = RunRecord.load(out / "record.json")
    failure = record.proof.failure(out) if record.proof is not None else None
    if failure is not None:
        raise failure
    return record


def reference_scores(job: RunJob, known: ScoreRecord | None) -> tuple[Scores, Scores | None]:
    """Scores of the dense model, and of the dense model tuned alike, which relative performance refers to."""
    known = known or ScoreRecord()
    if known.dense and (known.dense_tuned or not job.config.reference):
        return known.dense, known.dense_tuned
    model = job.fresh_model()
    dense = known.dense or job.score(model, "dense")
    if not job.config.reference:
        return dense, None
    job.progress.stage("tune the dense reference")
    options = job.config.recover or job.config.tune  # the capacity that the smaller model has
    tune_merged(job, "reference", model, job.architecture, options, job.out / "reference")
    return dense, job.score(model, "dense_tuned")


def tune_merged(
    job: Job,
    stage: str,
    model: PreTrainedModel,
    architecture: Architecture,
    options: TuneConfig,
    folder: Path,
    after: Tuner | None = None,
) -> None:
    """Tune a model without pruning, merge LoRA, and round the weights to the precision of the files.

    Args:
        architecture: the model's own, whose linears may have other names than those of the base model.
        after: the tuning that this one continues.
    """
    precision = model.dtype
    make_trainable(model, architecture, options, job.config.seed, named_in=job.architecture)
    tuner = job.tuner(model, options, folder, after)
    search = Search("recover") if stage == "recover" else Search()
    job.results[stage] = tuner.run(search, fingerprint=job.fingerprint(stage), resume=job.resume)
    job.findings[stage] = tuner.findings()
    merge_lora(model, architecture)
    cast_weights(round_weights(model, job.checked.dtype), precision)


def decide(job: RunJob) -> tuple[PreTrainedModel, Plan, Tuner]:
    """The decision, and the model in its dense shape: LoRA merged, compensated, and rewritten as the plan says.

    A method that follows the weights decides while LoRA tunes, for as many of the steps as the tuner has taken; a
    one-shot method takes none.
    """
    config, model = job.config, job.fresh_model()
    tuner = job.tuner(model, config.tune, job.out)
    if not config.method.one_shot:
        inject_lora(model, job.architecture, config.tune.lora, config.seed)
    job.progress.stage(f"decide ({config.method.title})" if config.method.one_shot else "tune and prune")
    started = time.perf_counter()
    search = config.method.begin(subject_of(job, model, tuner), job.costs.budget)
    job.seconds["begin_s"] = time.perf_counter() - started
    if job.store is not None:
        job.seconds["reused_s"] = job.store.reused_seconds
    if not config.method.one_shot:
        job.results["tune"] = tuner.run(search, fingerprint=job.fingerprint("tune"), resume=job.resume)
    started = time.perf_counter()
    plan = search.plan()
    job.seconds["plan_s"] = time.perf_counter() - started
    merge_lora(model, job.architecture)
    if job.accelerator.is_main_process:
        plan.save(job.out / "plan")
    compensate(job, model, plan, tuner)
    job.findings["decide" if config.method.one_shot else "tune"] = tuner.findings()
    return rewrite(model, job.architecture, job.space, plan), plan, tuner


def subject_of(job: RunJob, model: PreTrainedModel, tuner: Tuner) -> Subject:
    """The model as a method sees it; only scores of one-shot methods are stored, as those decide on the dense model."""
    store = job.store if job.config.method.one_shot else None
    calibration = tuner.next_calibration if store is None else store.counted(tuner.next_calibration)
    steps, seed = job.config.tune.steps, job.config.seed
    return Subject(model, job.architecture, job.space, tuner.runtime, calibration, steps, seed, store)


def compensate(job: RunJob, model: PreTrainedModel, plan: Plan, tuner: Tuner) -> None:
    """Let kept columns of the merged model compensate for those that the plan removes, if the run file asks for it."""
    options = job.config.compensate
    if options.name == "none":
        return
    job.progress.stage("compensate")
    batches = [tuner.next_calibration() for _ in range(options.batches)]
    runtime = tuner.runtime
    shared = {"damping": options.damping, "accepts": runtime.accepts}
    compensate_plan(model, job.space, plan, batches, runtime.loss, runtime.average, **shared)


def round_weights(
    model: PreTrainedModel, dtype: torch.dtype, rescaled: Mapping[str, Part] | None = None
) -> PreTrainedModel:
    """Round the weights to values that `dtype` can hold; the model still computes in its own precision.

    Args:
        rescaled: by name the weights that the cut multiplies by a factor. The product is what is stored, so the
            product is rounded, and the weight is set to the value that results in it.

    Raises:
        NonFinite: a weight too large for `dtype`.
    """
    parts = rescaled or {}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            stored = parts[name].rounded(parameter, dtype) if name in parts else parameter.to(dtype)
            if not torch.equal(torch.isfinite(stored), torch.isfinite(parameter)):
                raise NonFinite(
                    f"`{name}` was tuned to {parameter.abs().max():.3g}, which {str(dtype).removeprefix('torch.')}, the"
                    " precision of the base model's files, cannot hold. Lower tune.learning_rate, or use a base model"
                    " stored in bfloat16 or float32."
                )
            parameter.copy_(stored)
    return model


def masked_probe(job: RunJob, model: PreTrainedModel, plan: Plan) -> tuple[export.Probe, dict[str, Any]]:
    """Logits of the merged and rewritten model under the plan's masks, which the files on disk have to reproduce.

    The model's weights are rounded to the precision of the files. If that changes them, the second value says by how
    much the logits change, as `rounding`.
    """
    dtype = job.checked.dtype
    with simulated(model, job.space, plan, dtype):
        if dtype.itemsize >= model.dtype.itemsize:
            return job.take_probe(round_weights(model, dtype)), {}
        exact = job.take_probe(model)
        round_weights(model, dtype, rescaled_weights(model, job.architecture, job.space, plan))
        rounding = export.compare(model, exact) | {"dtype": str(dtype).removeprefix("torch.")}
        return job.take_probe(model), {"rounding": rounding}


def tune_smaller(
    job: RunJob, small: PreTrainedModel, probe: export.Probe, before: Tuner
) -> tuple[PreTrainedModel, export.Probe]:
    """The smaller model after the steps that are left, and the logits that its files must reproduce."""
    options = job.config.recover or job.config.tune
    if before.result.steps >= options.steps:
        return small, probe
    job.progress.stage("tune the smaller model")
    architecture = families.describe_config(small.config)  # may have separate linears where the base model packs them
    tune_merged(job, "recover", small, architecture, options, job.out / "recover", after=before)
    return small, job.take_probe(small)


def export_and_prove(job: Job, model: PreTrainedModel, probe: export.Probe) -> dict[str, Any]:
    """Write the model to `out/model` and the other exports, and compare them in fresh processes with `probe`."""
    job.progress.stage("export and prove")
    folder, exports = job.out / "model", job.out / "exports"
    loader = export.write(cast_weights(model, job.checked.dtype), job.checked.tokenizer, folder)
    found = export.prove(folder, probe, needs_remote_code=loader.needs_remote_code)
    targets = export.targets_by_label(job.config.export)
    if not targets:
        return found | {"exports": {}}
    job.progress.stage("convert")
    reference = export.take_reference(folder)
    converted = {name: export.convert(folder, target, exports / name, reference) for name, target in targets.items()}
    return found | {"exports": converted}
