"""The proof, the record and the report of a run."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tuneprune import evaluate, export
from tuneprune.budget import Budget, units_per_step
from tuneprune.errors import DataError, ProofFailed, wrap_errors
from tuneprune.pipeline.job import Job, RunJob, Scores
from tuneprune.report import Proof, RunRecord, model_card, write_report
from tuneprune.report.run.findings import decision_warnings, score_warnings, training_findings
from tuneprune.scores import relative_performance
from tuneprune.structure.edits import Rotate
from tuneprune.structure.plan import Plan, added_by_rotating
from tuneprune.structure.space import Group, PruningSpace
from tuneprune.system.environment import environment

PROOF_FAILED = "PROOF_FAILED"
"""Name of the file that marks a model whose proof failed."""


def make_proof(job: RunJob, plan: Plan, found: dict[str, Any]) -> Proof:
    """The proof of an export: the counts of this process, and what a fresh process found on disk."""
    parameters = parameter_counts(job, plan)
    found["bytes_on_disk"]["dense"] = parameters["dense_total"] * job.checked.dtype.itemsize
    residue = plan.provenance.get("lora_residue")
    return Proof.from_data({"schema": 1, "parameters": parameters, "lora_residue": residue, **found}, "proof")


def parameter_counts(job: RunJob, plan: Plan) -> dict[str, Any]:
    """Parameters before and after, of all and of the prunable ones, and those of the largest unit of a decision."""
    space = job.space
    budget = Budget.model_validate(plan.provenance.get("budget", job.costs.budget))  # a method may be stricter
    widths = plan.widths(space)
    kept = space.count(widths) + plan.added(space)
    fixed = space.num_parameters - space.num_prunable
    whole = {group.name: group.size for group in space.groups}
    rotations = len(plan.of_kind(Rotate))

    def cost(group: Group, units: int) -> int:
        counted = space.num_parameters - space.count(whole | {group.name: group.size - units})
        if rotations == 0 or group.kind != "hidden":
            return counted
        width = widths[group.name]  # what rotating adds depends on it too
        return counted + added_by_rotating(space, rotations, width + units) - added_by_rotating(space, rotations, width)

    return {
        "dense_total": space.num_parameters,
        "kept_total": kept,
        "share_total": kept / space.num_parameters,
        "dense_prunable": space.num_prunable,
        "kept_prunable": kept - fixed,
        "share_prunable": (kept - fixed) / space.num_prunable,
        "target": budget.keep,
        "of": budget.of,
        "largest_unit": largest_step(space, budget, cost),
        "latency": latency_counts(job, plan, budget),
        "active_total": plan.provenance.get("active_parameters"),
        "budget_counts": plan.provenance.get("budget_counts", "total"),
    }


def largest_step(space: PruningSpace, budget: Budget, cost: Callable[[Group, int], int]) -> int:
    """The largest cost of the units that a decision moves at once: in one group, or alike in all layers."""
    steps: dict[Any, int] = {}
    for group in space.groups:
        place = (group.kind, group.name.split(".")[-1]) if budget.per_layer == "uniform" else group.name
        steps[place] = steps.get(place, 0) + cost(group, units_per_step(group, budget.multiple_of))
    return max(steps.values())


def latency_counts(job: RunJob, plan: Plan, budget: Budget) -> dict[str, Any] | None:
    """Times before and after by the table, or None if the budget counts no time."""
    table = job.costs.table
    if table is None:
        return None
    space, latency = job.space, job.space.latency
    assert latency is not None

    def slowest(group: Group, units: int) -> int:
        times = latency.steps[group.name]
        return max(after - before for before, after in zip(times, times[units:], strict=False))

    return {
        "what": table.what,
        "dense_ms": latency.dense / 1e6,
        "kept_ms": latency.count(plan.widths(space)) / 1e6,
        "largest_unit_ms": largest_step(space, budget, slowest) / 1e6,
    }


def latency_record(job: RunJob, proof: Proof) -> dict[str, Any] | None:
    """The smaller model's share of the latency: predicted by the table, and measured on both models."""
    predicted, table = proof.parameters.latency, job.costs.table
    if predicted is None or table is None:
        return None
    place = (table.phase, table.batch_size)
    settings = [] if proof.speed is None else proof.speed.settings
    ratios = [setting.ratio for setting in settings if (setting.phase, setting.batch_size) == place]
    inverse = {"median": "median", "low": "high", "high": "low"}  # from tokens per second to seconds
    return {
        "what": predicted.what,
        "table_share": predicted.share,
        "measured_share": {name: 1 / getattr(ratios[0], other) for name, other in inverse.items()} if ratios else None,
    }


def make_record(job: RunJob, plan: Plan, proof: Proof, scores: tuple[Scores, Scores | None, Scores]) -> RunRecord:
    """The record of a run, with the scores of the dense, the tuned dense and the pruned model."""
    config, space = job.config, job.space
    dense, tuned, pruned = scores
    asked, widths = config.budget, plan.widths(space)
    sizes = {group.name: (widths[group.name], group.size) for group in space.groups}
    residue: Any = plan.provenance.get("lora_residue")
    found = decision_warnings(sizes, None if "recover" in job.results else residue)  # later steps learn it again
    common = common_record(job, config.model.base, proof, tuned or dense, pruned, found)
    common["model"]["adapter"] = config.model.adapter
    common["training"]["lora_residue"] = residue
    content = common | {
        "method": {"name": config.method.title, **config.method.model_dump(mode="json")},
        "space": config.space,
        "budget": job.costs.budget.model_dump(mode="json") | {"at_most": asked.at_most, "widths": asked.widths},
        "parameters": proof.parameters.model_dump(),
        "scores": {"dense": dense, "dense_tuned": tuned, "pruned": pruned},
        "relative_performance": relative_performance(pruned, tuned) if tuned else None,
        "speed": proof.speed.model_dump() if proof.speed else None,
        "latency": latency_record(job, proof),
        "widths": {g.name: {"kind": g.kind, "kept": widths[g.name], "size": g.size} for g in space.groups},
    }
    return RunRecord.from_data(content, "record")


def common_record(
    job: Job, base: str, proof: Proof, before: Scores, after: Scores, warnings: Sequence[Any] = ()
) -> dict[str, Any]:
    """The entries that the records of runs and recoveries share.

    Args:
        base: the model that was started from, as the user named it.
        before: the scores that those of the result, `after`, are compared with.
        warnings: of the decision.
    """
    data, results = job.checked.data.summary(), job.results
    found = training_findings(job.findings)
    found["warnings"] += [*warnings, *score_warnings(after, before, evaluate.chances(job.checked.tasks))]
    tunings = {stage: results[stage] for stage in ("tune", "recover") if stage in results}
    return {
        "schema": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": job.config.seed,
        "model": {
            "id": base,
            "family": job.architecture.family,
            "parameters": proof.parameters.dense_total,
            "path": base if Path(base).exists() else None,
        },
        "data": data,
        "environment": environment(job.accelerator),
        "training": {
            "steps": tunings["tune"].taken if "tune" in tunings else 0,
            "recover_steps": tunings["recover"].taken if "recover" in tunings else 0,
            "skipped_steps": sum(result.skipped_steps for result in tunings.values()),
            "truncated_records": data["train"]["shortened"],
            **found,
        },
        "proof": proof.model_dump(by_alias=True),
        **job.resources(),
    }


def write_card(model: Path, card: str, failure: ProofFailed | None) -> None:
    """The model card, and next to it a file that marks a model whose proof failed."""
    mark = {} if failure is None else {PROOF_FAILED: f"{failure}\n"}
    export.add_to_export(model, {"README.md": card} | mark)


def write_results(job: RunJob, record: RunRecord, proof: Proof) -> None:
    """`proof.json`, `record.json`, the model card and the report."""
    out = job.out
    job.progress.stage("report")
    proof.save(out / "proof.json")
    write_card(out / "model", model_card(record, proof), proof.failure(out))
    metrics, reference = run_metrics(out)
    write_report(record, proof, metrics, job.config.to_yaml(), out, reference=reference)
    record.save(out / "record.json")  # last: its presence says that the run is complete


def run_metrics(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The logged steps of a run, and those of its dense reference.

    Raises:
        DataError: a damaged log.
    """
    tune, recover, reference = (
        read_metrics(folder / "metrics.jsonl") for folder in (out, out / "recover", out / "reference")
    )
    return tune + recover, reference


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The logged steps of one tuning; an empty list if there was none.

    Raises:
        DataError: a file, or a line of it, that cannot be read as such a log.
    """
    if not path.exists():
        return []
    with wrap_errors(f"{path} cannot be read", DataError):
        lines = path.read_text(encoding="utf8").splitlines()
    steps = []
    for number, line in enumerate(lines, start=1):
        with wrap_errors(f"{path}:{number} is not a logged step", DataError):
            step = json.loads(line)
            if not isinstance(step, dict) or not isinstance(step["step"], int):
                raise DataError(f"{path}:{number} is not a logged step. Delete the line to continue without it.")
            steps.append(step)
    return steps
