"""Parts that the model card and the page share: sizes, exports, data and nested settings as rows of text."""

from collections.abc import Mapping
from typing import Any

from tuneprune.report.numbers import MISSING, bytes_text, count_text, percent_text, scientific_text
from tuneprune.report.run.costs import memory_rows
from tuneprune.report.run.proof import Proof
from tuneprune.report.run.record import RunRecord, last_part
from tuneprune.report.text_table import TextTable

Pair = tuple[str, str]
Found = Mapping[str, Any]

HASH_LENGTH = 12
EXPORT_HEADERS = ("export", "file", "size", "checked", "largest relative logit difference", "greedy tokens")
CHECKED = {"run": "run", "structure": "names and shapes, not run", "not run": "not run"}


def size_table(record: RunRecord, proof: Proof | None, *, is_exact: bool) -> TextTable:
    """Parameters, weight files and memory of the dense and the pruned model.

    Args:
        is_exact: all digits of parameter counts, and shares with two decimals.
    """
    counts, size = record.parameters, "{:,}".format if is_exact else count_text
    shares: dict[str, tuple[str, str, float | None]] = {
        "Parameters, total": (size(counts.dense_total), size(counts.kept_total), counts.share_total),
        "Parameters, prunable": (size(counts.dense_prunable), size(counts.kept_prunable), counts.share_prunable),
    }
    if proof is not None:
        files = proof.bytes_on_disk
        for name, dense, pruned in [("Weight files", files.dense, files.pruned), *memory_rows(proof.memory)]:
            shares[name] = (bytes_text(dense), bytes_text(pruned), pruned / dense if dense else None)
    digits = 2 if is_exact else 1
    rows = tuple((name, dense, pruned, percent_text(share, digits)) for name, (dense, pruned, share) in shares.items())
    return TextTable(("", "dense", "pruned", "kept"), rows)


def export_table(exports: Mapping[str, Found]) -> TextTable:
    """One row for every export in `proof.json`, in its order, with a dash for a missing number."""
    rows = tuple(_export_row(label, found) for label, found in exports.items())
    return TextTable(EXPORT_HEADERS, rows, left=len(EXPORT_HEADERS))


def _export_row(label: str, found: Found) -> tuple[str, ...]:
    files: Mapping[str, int] = found.get("files", {})
    largest = max(files, key=lambda name: files[name], default=MISSING)
    proof: Found = found.get("proof", {})
    exact: Found = proof.get("in_float32") or {}  # the same conversion without its rounding
    return (
        label,
        largest if len(files) < 2 else f"{largest} and {len(files) - 1} more",
        bytes_text(sum(files.values()) if files else None),
        _checked(proof),
        _both(_difference(proof), _difference(exact)),
        _both(_greedy(proof), _greedy(exact)),
    )


def _both(text: str, exact: str) -> str:
    return text if exact == MISSING else f"{text} (before rounding: {exact})"


def _difference(proof: Found) -> str:
    return scientific_text((proof.get("logits") or {}).get("max_rel_diff"))


def _greedy(proof: Found) -> str:
    equal = proof.get("greedy_equal")
    return MISSING if equal is None else "equal" if equal else "differ"


def _checked(proof: Found) -> str:
    """How the export was checked: by which engine, or why it was not run."""
    status = str(proof.get("status", "not run"))
    told = proof.get("engine") if status == "run" else proof.get("why")
    return f"{CHECKED.get(status, status)} ({told})" if told else CHECKED.get(status, status)


def flat(values: Found, prefix: str = "") -> list[Pair]:
    """Nested `values` as dotted names and texts, in order; plain lists in one line, None left out."""
    rows: list[Pair] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            rows += flat(value, f"{name}.")
        elif isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
            rows += flat({str(index): item for index, item in enumerate(value)}, f"{name}.")
        elif isinstance(value, list | tuple):
            rows.append((name, ", ".join(map(str, value))))
        elif value is not None:
            rows.append((name, str(value)))
    return rows


def data_rows(data: Found, *, with_hashes: bool) -> list[Pair]:
    """The data of tuning and calibration: one row for each source, then the other numbers of each part.

    Only the file name of a path is shown, because cards are published.
    """
    rows: list[Pair] = []
    for name, value in data.items():
        if not isinstance(value, Mapping):
            rows += flat({name: value})
            continue
        sources = value.get("sources", ())
        rows += [(f"{name} source", _source_text(source, with_hashes=with_hashes)) for source in sources]
        rest = flat({key: item for key, item in value.items() if key != "sources"})
        rows += [(f"{name} {key.replace('_', ' ').replace('.', ', ')}", text) for key, text in rest]
    return rows


def _source_text(source: Found, *, with_hashes: bool) -> str:
    """One source in a line: its name, its counts and, on demand, its hash."""
    parts = [last_part(str(source.get("source", "?")))]
    for key, value in source.items():
        if key == "sha256":
            parts += [f"sha256 {str(value)[:HASH_LENGTH]}…"] if with_hashes else []
        elif key == "weight":
            parts += [f"weight {value:g}"] if value != 1 else []
        elif isinstance(value, Mapping):
            parts += [f"{found['records']} {reason} left out" for reason, found in value.items()]
        elif key != "source" and value:
            parts.append(f"{value} {key}")
    return ", ".join(parts)
