"""The run's data and settings as rows of text, for the card and the page."""

from collections.abc import Mapping
from typing import Any

Pair = tuple[str, str]

HASH_LENGTH = 12


def flat(values: Mapping[str, Any], prefix: str = "") -> list[Pair]:
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


def data_rows(data: Mapping[str, Any], *, with_hashes: bool) -> list[Pair]:
    """What a run was tuned and calibrated on: one line a source, then the other numbers of each part.

    A source named by a path is shown by the file's name: a card travels further than its maker's folders.
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


def _source_text(source: Mapping[str, Any], *, with_hashes: bool) -> str:
    """One source in a line: its name, its counts, and its hash where wanted."""
    name = str(source.get("source", "?"))
    parts = [name.replace("\\", "/").rsplit("/", 1)[-1]]
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
