"""`report.html`: the whole run on one self-contained page, readable without a network or a script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tuneprune.report.charts import line_chart
from tuneprune.report.numbers import bytes_text, count_text, percent_text, scientific_text, seconds_text
from tuneprune.report.run.card import loading_code
from tuneprune.report.run.costs import memory_rows, memory_sentence, speed_sentence, twins_sentence
from tuneprune.report.run.curves import curves
from tuneprune.report.run.exports import HEADERS, export_rows
from tuneprune.report.run.proof import Proof
from tuneprune.report.run.record import RunRecord
from tuneprune.report.run.result_rows import base_label, compare
from tuneprune.report.run.result_table import html_table, seeds_sentence
from tuneprune.report.run.settings import data_rows, flat
from tuneprune.report.run.widths import widths_picture
from tuneprune.report.templates import render, source
from tuneprune.system.storage import write_text

PAGE_NAME = "report.html"


@dataclass(frozen=True)
class Fact:
    """A number of the page's head."""

    name: str
    number: str
    detail: str
    tone: str = ""


@dataclass(frozen=True)
class SizeRow:
    """Dense and pruned size in one unit."""

    name: str
    dense: str
    pruned: str
    share: float | None


def write_report(
    record: RunRecord,
    proof: Proof | None,
    metrics: Sequence[Mapping[str, Any]],
    config_yaml: str,
    out: Path,
    others: Sequence[RunRecord] = (),
    reference: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """The path of the written page.

    Args:
        proof: as in `proof.json`; the record's own when None.
        metrics: the objects of `metrics.jsonl`, in order.
        config_yaml: the resolved configuration, shown as it is.
        out: the run's folder, or the .html file to write.
        others: records of other methods to compare with; the run's own may be among them.
        reference: metrics of the dense + LoRA tuning, drawn as a second loss curve.
    """
    path = out if out.suffix == ".html" else out / PAGE_NAME
    return write_text(path, str(render_page(record, proof, metrics, config_yaml, others, reference)))


def render_page(
    record: RunRecord,
    proof: Proof | None,
    metrics: Sequence[Mapping[str, Any]],
    config_yaml: str,
    others: Sequence[RunRecord] = (),
    reference: Sequence[Mapping[str, Any]] = (),
) -> Markup:
    """The page as HTML; arguments as in `write_report`."""
    proof = proof or record.proof
    records = [record, *(other for other in others if other != record)]
    charts = [(chart, line_chart(chart)) for chart in curves(record, metrics, reference)]
    return render(
        "page.html.j2",
        record=record,
        proof=proof,
        style=source("style.css"),
        name=record.model.short_name,
        method=base_label(record),
        verdict=verdict(record, proof),
        facts=_facts(record, proof),
        results=html_table(records, mark_first=True),
        seeds=seeds_sentence(compare(records)),
        has_scores=any(comparison.columns for comparison in compare(records)),
        widths=widths_picture(record.widths),
        sizes=_sizes(record, proof),
        memory_sentence=memory_sentence(proof.memory) if proof else "",
        charts=charts,
        speed_sentence=speed_sentence(record.speed) if record.speed else "",
        twins_sentence=twins_sentence(record.speed) if record.speed else "",
        export_headers=HEADERS,
        exports=export_rows(proof.exports) if proof else [],
        loading=loading_code(proof, "path/to/run/model"),
        data=data_rows(record.data, with_hashes=True),
        training=_training(record),
        warnings=[*record.training.bad_sentences, *(warned.sentence for warned in record.training.warnings)],
        environment=flat(record.environment.model_dump()),
        hyper_parameters=flat(record.method.hyper_parameters),
        config=config_yaml.strip(),
    )


def verdict(record: RunRecord, proof: Proof | None) -> str:
    """The run in two or three sentences: what stayed, what it costs, whether the cut is proven."""
    sentences = [f"Keeps {percent_text(record.parameters.share_total)} of all parameters"]
    relative = record.relative_performance
    if relative is not None and relative.mean is not None:
        sentences[0] += f" and {percent_text(relative.mean)} of what the tuned dense model can do"
    if proof is None:
        sentences.append("The cut has not been proven: there is no proof.json")
    elif proof.is_ok:
        difference = scientific_text(proof.logits.max_rel_diff)
        sentences.append(f"The saved model computes what the masked one did, to a relative difference of {difference}")
    else:
        failed = ", ".join(check.name.lower() for check in proof.checks() if check.passed is False)
        sentences.append(f"The proof FAILED: {failed}")
    return ". ".join(sentences) + "."


def _facts(record: RunRecord, proof: Proof | None) -> list[Fact]:
    parameters, relative = record.parameters, record.relative_performance
    facts = [
        Fact(
            "Parameters kept",
            percent_text(parameters.share_total),
            f"{count_text(parameters.kept_total)} of {count_text(parameters.dense_total)}; "
            f"{percent_text(parameters.share_prunable)} of the prunable ones",
        ),
        Fact(
            "Relative performance",
            percent_text(relative.mean if relative else None),
            "of dense + LoRA, mean over tasks" if relative else "no dense + LoRA reference in this run",
        ),
    ]
    if proof is None:
        return [*facts, Fact("On disk", "–", "not measured"), Fact("Proof", "none", "no proof.json", "bad")]
    sizes = proof.bytes_on_disk
    failed = [check for check in proof.checks() if check.passed is False]
    passed = sum(check.passed is True for check in proof.checks())
    detail = f"{len(failed)} of {passed + len(failed)} checks" if failed else f"all {passed} checks"
    return [
        *facts,
        Fact("On disk", bytes_text(sizes.pruned), f"{bytes_text(sizes.dense)} when dense"),
        Fact("Proof", "failed" if failed else "passed", detail, "bad" if failed else "good"),
    ]


def _sizes(record: RunRecord, proof: Proof | None) -> list[SizeRow]:
    parameters = record.parameters
    rows = [
        SizeRow(
            "Parameters, total",
            f"{parameters.dense_total:,}",
            f"{parameters.kept_total:,}",
            parameters.share_total,
        ),
        SizeRow(
            "Parameters, prunable",
            f"{parameters.dense_prunable:,}",
            f"{parameters.kept_prunable:,}",
            parameters.share_prunable,
        ),
    ]
    if proof is not None:
        sizes = proof.bytes_on_disk
        share = sizes.pruned / sizes.dense if sizes.dense else None
        rows.append(SizeRow("Weight files", bytes_text(sizes.dense), bytes_text(sizes.pruned), share))
        rows += [SizeRow(name, bytes_text(a), bytes_text(b), b / a) for name, a, b in memory_rows(proof.memory)]
    return rows


def _training(record: RunRecord) -> list[tuple[str, str]]:
    """Time, memory and incidents of the run, as pairs."""
    training = record.training
    stages = [(f"time, {name.removesuffix('_s')}", seconds_text(value)) for name, value in record.time.items()]
    peak = record.memory.peak_bytes
    rows = [
        ("steps before the cut", str(training.steps)),
        ("steps after the cut", str(training.recover_steps)),
        ("steps skipped (not finite)", str(training.skipped_steps)),
        ("training items shortened", str(training.truncated_records)),
        *stages,
        ("peak memory", bytes_text(peak)),
    ]
    return rows + flat(dict(training.model_extra or {})) + flat(dict(record.memory.model_extra or {}))
