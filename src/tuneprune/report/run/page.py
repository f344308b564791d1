"""`report.html`: the whole run on one self-contained page, readable without a network or a script."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tuneprune.report.charts import line_chart
from tuneprune.report.numbers import bytes_text, count_text, percent_text, scientific_text, seconds_text
from tuneprune.report.run.card import loading_code
from tuneprune.report.run.costs import memory_sentence, speed_sentence, twins_sentence
from tuneprune.report.run.curves import curves
from tuneprune.report.run.details import Pair, data_rows, export_table, flat, size_table
from tuneprune.report.run.proof import Proof, failed
from tuneprune.report.run.record import RunRecord
from tuneprune.report.run.result_rows import base_label, compare
from tuneprune.report.run.result_table import html_table
from tuneprune.report.run.widths import widths_picture
from tuneprune.report.templates import render, source
from tuneprune.system.storage import write_text

Metrics = Sequence[Mapping[str, Any]]


def write_report(
    record: RunRecord, proof: Proof | None, metrics: Metrics, config_yaml: str, out: Path, reference: Metrics = ()
) -> Path:
    """The path of the page, written into the run's folder `out`; the other arguments as in `render_page`."""
    return write_text(out / "report.html", str(render_page(record, proof, metrics, config_yaml, reference)))


def render_page(
    record: RunRecord, proof: Proof | None, metrics: Metrics, config_yaml: str, reference: Metrics = ()
) -> Markup:
    """The page as HTML.

    Args:
        proof: as in `proof.json`; the record's own when None.
        metrics: the objects of `metrics.jsonl`, in order.
        config_yaml: the resolved configuration, shown as it is.
        reference: metrics of the dense + LoRA tuning, drawn as a second loss curve.
    """
    proof = proof or record.proof
    return render(
        "page.html.j2",
        record=record,
        proof=proof,
        style=source("style.css"),
        name=record.model.short_name,
        method=base_label(record),
        verdict=verdict(record, proof),
        facts=_facts(record, proof),
        results=html_table(record) if compare([record])[0].columns else "",
        widths=widths_picture(record.widths),
        sizes=size_table(record, proof, is_exact=True),
        memory_sentence=memory_sentence(proof.memory) if proof else "",
        charts=[(chart, line_chart(chart)) for chart in curves(record, metrics, reference)],
        speed_sentence=speed_sentence(record.speed) if record.speed else "",
        twins_sentence=twins_sentence(record.speed) if record.speed else "",
        exports=export_table(proof.exports if proof else {}),
        loading=loading_code(proof, "path/to/run/model"),
        data=data_rows(record.data, with_hashes=True),
        training=_training(record),
        warnings=[*record.training.bad_sentences, *(warned.sentence for warned in record.training.warnings)],
        environment=flat(record.environment.model_dump()),
        hyper_parameters=flat(record.method.hyper_parameters),
        config=config_yaml.strip(),
    )


def verdict(record: RunRecord, proof: Proof | None) -> str:
    """The run in a few sentences: what was kept, what it scores, how it was tuned, whether the proof passed."""
    sentences = [f"Keeps {percent_text(record.parameters.share_total)} of all parameters"]
    relative = record.relative_performance
    if relative is not None and relative.mean is not None:
        sentences[0] += f" and {percent_text(relative.mean)} of the performance of the tuned dense model"
    sentences += _steps(record)
    if proof is None:
        sentences.append("The cut has not been checked: there is no proof.json")
    elif proof.is_ok:
        found = [proof.logits] if proof.cut is None else [proof.cut, proof.logits]
        difference = scientific_text(max(one.max_rel_diff for one in found))
        pairs = "saved model computes the same as the masked one"
        if proof.cut is not None:
            pairs = "cut model computes the same as the masked one, and the saved model the same as the final one"
        sentences.append(f"The {pairs}, to a relative difference of {difference}")
    else:
        sentences.append(f"The proof FAILED: {', '.join(check.name.lower() for check in failed(proof.checks()))}")
    return ". ".join(sentences) + "."


def _steps(record: RunRecord) -> list[str]:
    """A sentence on the steps before and after the cut; none if no step was taken."""
    before, after = record.training.steps, record.training.recover_steps
    if before and after:
        return [f"The method decided in {before} steps, and {after} steps on the smaller model followed"]
    if after:
        return [f"The method decided before any tuning, and {after} steps on the smaller model followed"]
    return [f"All {before} steps were taken before the cut"] if before else []


def _facts(record: RunRecord, proof: Proof | None) -> list[tuple[str, str, str, str]]:
    """The numbers at the top of the page: name, number, detail and tone."""
    counts, relative = record.parameters, record.relative_performance
    kept = f"{count_text(counts.kept_total)} of {count_text(counts.dense_total)}"
    prunable = f"{percent_text(counts.share_prunable)} of the prunable ones"
    reference = "of dense + LoRA, mean over tasks" if relative else "no dense + LoRA reference in this run"
    facts = [
        ("Parameters kept", percent_text(counts.share_total), f"{kept}; {prunable}", ""),
        ("Relative performance", percent_text(relative.mean if relative else None), reference, ""),
    ]
    if proof is None:
        return [*facts, ("On disk", "–", "not measured", ""), ("Proof", "none", "no proof.json", "bad")]
    sizes, checks = proof.bytes_on_disk, proof.checks()
    bad, count = len(failed(checks)), sum(check.passed is not None for check in checks)
    detail = f"{bad} of {count} checks" if bad else f"all {count} checks"
    return [
        *facts,
        ("On disk", bytes_text(sizes.pruned), f"{bytes_text(sizes.dense)} when dense", ""),
        ("Proof", "failed" if bad else "passed", detail, "bad" if bad else "good"),
    ]


def _training(record: RunRecord) -> list[Pair]:
    """Time, memory and incidents of the run."""
    training = record.training
    return [
        ("steps before the cut", str(training.steps)),
        ("steps after the cut", str(training.recover_steps)),
        ("steps skipped (not finite)", str(training.skipped_steps)),
        ("training items shortened", str(training.truncated_records)),
        *((f"time, {name.removesuffix('_s')}", seconds_text(value)) for name, value in record.time.items()),
        ("peak memory", bytes_text(record.memory.peak_bytes)),
        *flat(training.model_extra or {}),
        *flat(record.memory.model_extra or {}),
    ]
