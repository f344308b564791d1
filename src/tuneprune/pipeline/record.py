"""What a run proves and records about itself."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneprune import evaluate, export
from tuneprune.budget import Budget, units_per_step
from tuneprune.errors import DataError, ProofFailed, wrap_errors
from tuneprune.pipeline.job import Job, Scores
from tuneprune.report import Proof, RunRecord, model_card, write_report
from tuneprune.report.run.findings import decision_warnings, score_warnings, training_findings
from tuneprune.structure.plan import Plan
from tuneprune.system.environment import environment

PROOF_FAILED = "PROOF_FAILED"
"""Name of the file that marks a model whose proof failed."""


def make_proof(job: Job, plan: Plan, found: dict[str, Any]) -> Proof:
    """The proof of an export: what was counted here beside what a fresh process found on disk."""
    parameters = parameter_counts(job, plan)
    found["bytes_on_disk"]["dense"] = parameters["dense_total"] * job.dtype.itemsize
    residue = plan.provenance.get("lora_residue")
    return Proof.from_data({"schema": 1, "parameters": parameters, "lora_residue": residue, **found}, "proof")


def parameter_counts(job: Job, plan: Plan) -> dict[str, Any]:
    """Parameters before and after under both denominators, and those of the largest unit a decision moves at once."""
    space = job.space
    budget = Budget.model_validate(plan.provenance.get("budget", job.budget))  # a method may be stricter
    widths = plan.widths(space)
    kept = space.count(widths) + plan.added(space)
    fixed = space.num_parameters - space.num_prunable
    whole = {group.name: group.size for group in space.groups}
    steps = {}
    for group in space.groups:
        units = units_per_step(group, budget.multiple_of)
        cost = space.num_parameters - space.count(whole | {group.name: group.size - units})
        place = (group.kind, group.name.split(".")[-1]) if budget.per_layer == "uniform" else group.name
        steps[place] = steps.get(place, 0) + cost
    return {
        "dense_total": space.num_parameters,
        "kept_total": kept,
        "share_total": kept / space.num_parameters,
        "dense_prunable": space.num_prunable,
        "kept_prunable": kept - fixed,
        "share_prunable": (kept - fixed) / space.num_prunable,
        "target": budget.keep,
        "of": budget.of,
        "largest_unit": max(steps.values()),
        "latency": latency_counts(job, plan, budget),
        "active_total": plan.provenance.get("active_parameters"),
        "budget_counts": plan.provenance.get("budget_counts", "total"),
    }


def latency_counts(job: Job, plan: Plan, budget: Budget) -> dict[str, Any] | None:
    """Times before and after by the table that the budget counts, if it counts one."""
    if job.table is None:
        return None
    assert job.space.latency is not None
    steps: dict[Any, int] = {}
    for group in job.space.groups:
        units, times = units_per_step(group, budget.multiple_of), job.space.latency.steps[group.name]
        place = (group.kind, group.name.split(".")[-1]) if budget.per_layer == "uniform" else group.name
        dearest = max(after - before for before, after in zip(times, times[units:], strict=False))
        steps[place] = steps.get(place, 0) + dearest
    return {
        "what": job.table.what,
        "dense_ms": job.space.latency.dense / 1e6,
        "kept_ms": job.space.latency.count(plan.widths(job.space)) / 1e6,
        "largest_unit_ms": max(steps.values()) / 1e6,
    }


def budget_record(job: Job) -> dict[str, Any]:
    """The budget as a share of the model, and as it was asked for."""
    asked = job.config.budget
    return job.budget.model_dump(mode="json") | {"at_most": asked.at_most, "widths": asked.widths}


def latency_record(job: Job, proof: Proof) -> dict[str, Any] | None:
    """What the table said of the smaller model's latency, beside what was measured of both models."""
    predicted = proof.parameters.latency
    if predicted is None or job.table is None:
        return None
    place = (job.table.phase, job.table.batch_size)
    settings = [] if proof.speed is None else proof.speed.settings
    ratios = [setting.ratio for setting in settings if (setting.phase, setting.batch_size) == place]
    inverse = {"median": "median", "low": "high", "high": "low"}  # tokens per second there, seconds here
    return {
        "what": predicted.what,
        "table_share": predicted.share,
        "measured_share": {name: 1 / getattr(ratios[0], other) for name, other in inverse.items()} if ratios else None,
    }


def make_record(
    job: Job,
    plan: Plan,
    proof: Proof,
    scores: tuple[Scores, Scores | None, Scores],
) -> RunRecord:
    """The whole run in numbers."""
    config = job.config
    dense, tuned, pruned = scores
    widths = plan.widths(job.space)
    content = {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "method": {"name": config.method.title, **config.method.model_dump(mode="json")},
        "space": config.space,
        "budget": budget_record(job),
        "seed": config.seed,
        "model": {
            "id": config.model.base,
            "family": job.architecture.family,
            "parameters": job.space.num_parameters,
            "path": config.model.base if Path(config.model.base).is_dir() else None,
            "adapter": config.model.adapter,
        },
        "data": job.data.summary(),
        "parameters": proof.parameters.model_dump(),
        "scores": {"dense": dense, "dense_tuned": tuned, "pruned": pruned},
        "relative_performance": evaluate.relative_performance(pruned, tuned, job.tasks) if tuned else None,
        "time": job.seconds | {f"{stage}_s": result.seconds for stage, result in job.results.items()},
        "memory": {"peak_bytes": max((result.peak_bytes for result in job.results.values()), default=None)},
        "speed": proof.speed.model_dump() if proof.speed else None,
        "latency": latency_record(job, proof),
        "environment": environment(job.accelerator),
        "widths": {g.name: {"kind": g.kind, "kept": widths[g.name], "size": g.size} for g in job.space.groups},
        "training": training(job, plan, scores),
        "proof": proof.model_dump(by_alias=True),
    }
    return RunRecord.from_data(content, "record")


def training(job: Job, plan: Plan, scores: tuple[Scores, Scores | None, Scores]) -> dict[str, Any]:
    """What happened while tuning, and what watches found then and at the end."""
    dense, tuned, pruned = scores
    found, widths = training_findings(job.findings), plan.widths(job.space)
    residue: Any = plan.provenance.get("lora_residue")
    sizes = {group.name: (widths[group.name], group.size) for group in job.space.groups}
    found["warnings"] += decision_warnings(sizes, residue)
    found["warnings"] += score_warnings(pruned, tuned or dense, evaluate.chances(job.tasks))
    results = {stage: job.results[stage] for stage in ("tune", "recover") if stage in job.results}
    return {
        "steps": results["tune"].steps if "tune" in results else 0,
        "recover_steps": results["recover"].steps if "recover" in results else 0,
        "skipped_steps": sum(result.skipped_steps for result in results.values()),
        "truncated_records": job.data.summary()["train"]["shortened"],
        "lora_residue": residue,
        **found,
    }


def write_card(model: Path, card: str, failure: ProofFailed | None) -> None:
    """The model card, and beside it the mark of a model that is not to be used."""
    mark = {} if failure is None else {PROOF_FAILED: f"{failure}\n"}
    export.add_to_export(model, {"README.md": card} | mark)


def write_results(job: Job, record: RunRecord, proof: Proof) -> None:
    """`proof.json`, `record.json`, the model card and the report."""
    out = job.out
    job.progress.stage("report")
    proof.save(out / "proof.json")
    write_card(out / "model", model_card(record, proof), proof.failure(out))
    metrics = [*read_metrics(out / "metrics.jsonl"), *read_metrics(out / "recover" / "metrics.jsonl")]
    reference = read_metrics(out / "reference" / "metrics.jsonl")
    write_report(record, proof, metrics, job.config.to_yaml(), out, reference=reference)
    record.save(out / "record.json")  # last: its presence says that the run is complete


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logged steps of one tuning, empty where there was none.

    Raises:
        DataError: a file, or a line of it, that is no such log.
    """
    if not path.exists():
        return []
    with wrap_errors(f"{path} cannot be read", DataError):
        lines = path.read_text(encoding="utf8").splitlines()
    steps = []
    for number, line in enumerate(lines, start=1):
        with wrap_errors(f"{path}:{number} is no logged step", DataError):
            step = json.loads(line)
            if not isinstance(step, dict) or not isinstance(step["step"], int):
                raise DataError(f"{path}:{number} is no logged step. Take the line out to go without it.")
            steps.append(step)
    return steps
