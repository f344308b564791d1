"""The model card: README.md of an exported folder, with the front matter that the Hugging Face hub reads."""

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import yaml
from huggingface_hub.utils import HFValidationError, validate_repo_id

from tuneprune.errors import printable
from tuneprune.report.numbers import alignment_text, counted_text, percent_text, score_text
from tuneprune.report.run.costs import memory_sentence, speed_sentence, twins_sentence
from tuneprune.report.run.details import data_rows, export_table, size_table
from tuneprune.report.run.proof import Check, Proof, failed
from tuneprune.report.run.record import ModelRecord, RunRecord
from tuneprune.report.run.result_rows import compare
from tuneprune.report.text_table import TextTable, code_span, escape_markdown

MAX_PROMPT = 80
MARKS = {True: "passed", False: "**FAILED**", None: "measured"}


def model_card(record: RunRecord, proof: Proof | None, *, base_licence: str | None = None) -> str:
    """The card of the pruned model as Markdown with YAML front matter.

    Args:
        proof: says whether loading needs remote code; without it, the card leaves that open.
        base_licence: licence id of the base model as the hub spells it; None if it is not known.
    """
    tags = ["tuneprune", "structured-pruning", "lora", record.method.name, record.model.family]
    parts = [
        front_matter(record.model, tags, base_licence),
        failure_warning(proof.checks()) if proof is not None else "",
        _introduction(record),
        loading_section(proof),  # first: loaded in another way, transformers may report sizes that do not match
        _size(record, proof),
        _scores(record),
        _speed(record),
        _exports(proof),
        proof_section(proof.checks()) if proof is not None else "",
        _data(record),
        _licence(record, base_licence),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def failure_warning(checks: Sequence[Check]) -> str:
    """The warning at the top of the card if a check failed, otherwise empty."""
    names = ", ".join(check.name.lower() for check in failed(checks))
    return f"> **The proof of this model FAILED** ({names}). Do not use it." if names else ""


def loading_code(proof: Proof | None, folder: str = "path/to/this/folder") -> str:
    """Python that loads `folder` and generates, with `trust_remote_code` only if it is needed."""
    sample = proof.generation.prompt if proof is not None and proof.generation is not None else ""
    prompt = sample if 0 < len(sample) <= MAX_PROMPT else "Once upon a time"
    text = json.dumps(prompt, ensure_ascii=not prompt.isprintable())
    return (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        f"folder = {json.dumps(folder)}\n"
        "tokenizer = AutoTokenizer.from_pretrained(folder)\n"
        f"model = {_loading_call(proof, 'folder')}\n"
        f'inputs = tokenizer({text}, return_tensors="pt").input_ids\n'
        "print(tokenizer.decode(model.generate(inputs, max_new_tokens=40)[0]))"
    )


def loading_line(proof: Proof | None, folder: str) -> str:
    """The call that loads the model, for a terminal."""
    return _loading_call(proof, json.dumps(folder, ensure_ascii=False))


def _loading_call(proof: Proof | None, folder: str) -> str:
    trust = ", trust_remote_code=True" if proof is not None and proof.loader.needs_remote_code else ""
    return f"AutoModelForCausalLM.from_pretrained({folder}{trust})"


def loading_section(proof: Proof | None) -> str:
    """How to load the folder, as Markdown."""
    if proof is None:
        note = "If `config.json` has an `auto_map`, add `trust_remote_code=True`."
    elif proof.loader.needs_remote_code:
        note = (
            "The stock class cannot represent these widths, so the folder contains its own model code (one file) and "
            "needs `trust_remote_code=True`. It is a causal language model only: classes with another head, such as "
            "`AutoModelForSequenceClassification`, do not load it."
        )
    else:
        note = f"A stock {code_span(proof.loader.name)}: it needs transformers and no remote code."
    return f"## How to load\n\n```python\n{loading_code(proof)}\n```\n\n{note}"


def front_matter(model: ModelRecord, tags: Sequence[str], licence: str | None = None) -> str:
    """The YAML header that the hub reads; it links to a base model of the hub, and never to a local folder."""
    header: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    if model.path is None:
        with suppress(HFValidationError):
            validate_repo_id(model.id)
            header["base_model"] = model.id
    if licence:
        header["license"] = printable(licence)
    header["tags"] = list(dict.fromkeys(map(printable, tags)))
    return "---\n" + yaml.safe_dump(header, sort_keys=False, allow_unicode=True) + "---"


def _introduction(record: RunRecord) -> str:
    name = escape_markdown(record.model.short_name)
    budget = record.budget
    limits = []
    if budget.multiple_of != 1:
        limits.append(alignment_text(budget.multiple_of))
    if budget.per_layer == "uniform":
        limits.append("the same widths in all layers")
    constraint = f" ({', '.join(limits)})" if limits else ""
    adapted = f" with the LoRA adapter {code_span(record.model.adapter_name)}" if record.model.adapter else ""
    family, model = escape_markdown(record.model.family), code_span(record.model.short_name)
    decision = f"the method {code_span(record.method.name)} in the space {code_span(record.space)}"
    return (
        f"# {name}, tuned and pruned to {percent_text(record.parameters.share_total)} of its parameters\n\n"
        f"A smaller {family} model made from {model}{adapted} by tuneprune: tuning on domain data and "
        f"structured pruning with {decision}, with a budget of "
        f"{percent_text(budget.keep)} of {counted_text(budget.of)}{constraint}. The removed units are not in "
        "the weight files, so no masks have to be applied."
    )


def _size(record: RunRecord, proof: Proof | None) -> str:
    lines = ["## Size", "", *size_table(record, proof, is_exact=False).markdown()]
    if proof is not None and proof.memory:
        lines += ["", memory_sentence(proof.memory)]
    if record.latency is not None:
        lines += ["", record.latency.sentence]
    return "\n".join(lines)


def _scores(record: RunRecord) -> str:
    """Every metric of every task, one column for each model; empty if nothing was evaluated."""
    comparison = compare([record])[0]
    models = [row for row in comparison.rows if row.scores]
    if not models:
        return ""
    rows = []
    for column in comparison.metrics():
        cells = [row.scores.get((column.task, column.metric)) for row in models]
        texts = [score_text(column.metric, cell.mean if cell else None) for cell in cells]
        rows.append((column.task, f"{column.metric} {column.arrow}", *texts))
    headers = ("task", "metric", *(row.label for row in models))
    lines = ["## Scores", "", *TextTable(headers, tuple(rows), left=2).markdown()]
    relative = record.relative_performance
    if relative is not None and relative.mean is not None:
        rule = "score over the dense + LoRA score, inverse for perplexity, mean over tasks; one seed"
        lines += ["", f"Relative performance: **{percent_text(relative.mean)}** ({rule})."]
    return "\n".join(lines)


def proof_section(checks: Sequence[Check]) -> str:
    """The checks of a proof, one on each line."""
    lines = [f"- {check.name}: {MARKS[check.passed]} — {escape_markdown(check.detail)}" for check in checks]
    return "\n".join(["## Proof", "", "Measured on this folder after it was written; see `proof.json`.", "", *lines])


def _speed(record: RunRecord) -> str:
    """Speed of the dense and the pruned model, and of stock models of its size; empty if it was not measured."""
    speed = record.speed
    if speed is None or not speed.settings:
        return ""
    twins = [f"{twin.text} / dense" for twin in speed.twins.values()]
    rows = []
    for setting in speed.settings:
        rates = [f"{rate.median:,.0f}" for rate in (setting.dense, setting.pruned)]
        ratios = [ratio.text for ratio in (setting.ratio, *(twin.ratio for twin in setting.twins.values()))]
        rows.append((setting.phase, str(setting.batch_size), *rates, *ratios))
    headers = ("phase", "batch", "dense, tokens/s", "pruned, tokens/s", "pruned / dense", *twins)
    how = (
        f"Median and extremes over {speed.repeats} interleaved repeats, {speed.prompt_tokens} prompt and"
        f" {speed.new_tokens} new tokens, {speed.dtype} on {speed.device}, {speed.threads} threads."
    )
    sentences = " ".join(filter(None, (how, twins_sentence(speed), speed_sentence(speed))))
    return "\n".join(["## Speed", "", *TextTable(headers, tuple(rows)).markdown(), "", sentences])


def _exports(proof: Proof | None) -> str:
    table = export_table(proof.exports if proof is not None else {})
    return "\n".join(["## Exports", "", *table.markdown()]) if table.rows else ""


def _data(record: RunRecord) -> str:
    rows = data_rows(record.data, with_hashes=False)
    return "\n".join(["## Data", "", *TextTable(("", ""), tuple(rows), left=2).markdown()]) if rows else ""


def _licence(record: RunRecord, base_licence: str | None) -> str:
    known = f" ({code_span(base_licence)})" if base_licence else ""
    name = code_span(record.model.short_name)
    return (
        "## Licence and limits\n\n"
        f"This model is derived from {name}: the licence of that model{known} applies to it, and the terms of "
        "the data it was tuned on may apply too. It was pruned for the domain of that data; expect it to be worse "
        "at everything else than the scores here show."
    )
