"""The further exports of a run as rows of text, for the card and the page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneprune.report.numbers import MISSING, bytes_text, scientific_text

HEADERS = ("export", "file", "size", "checked", "largest relative logit difference", "greedy tokens")
CHECKED = {"run": "run", "structure": "names and shapes, not run", "not run": "not run"}


@dataclass(frozen=True)
class ExportRow:
    """What a reader wants to know of one export; a number that was not found is a dash."""

    label: str
    file: str
    size: str
    checked: str
    difference: str
    greedy: str

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts in the order of `HEADERS`."""
        return self.label, self.file, self.size, self.checked, self.difference, self.greedy


def export_rows(exports: Mapping[str, Mapping[str, Any]]) -> list[ExportRow]:
    """One row for every export that `proof.json` holds, in its order."""
    return [_row(label, found) for label, found in exports.items()]


def _row(label: str, found: Mapping[str, Any]) -> ExportRow:
    files: Mapping[str, int] = found.get("files", {})
    largest = max(files, key=lambda name: files[name], default=MISSING)
    proof: Mapping[str, Any] = found.get("proof", {})
    exact: Mapping[str, Any] | None = proof.get("in_float32")  # the same conversion without its rounding
    return ExportRow(
        label=label,
        file=largest if len(files) < 2 else f"{largest} and {len(files) - 1} more",
        size=bytes_text(sum(files.values()) if files else None),
        checked=_checked(proof),
        difference=_both(_difference(proof), _difference(exact)),
        greedy=_both(_greedy(proof), _greedy(exact)),
    )


def _both(text: str, exact: str) -> str:
    """A finding, and beside it that before rounding where there is one."""
    return text if exact == MISSING else f"{text} (before rounding: {exact})"


def _difference(proof: Mapping[str, Any] | None) -> str:
    return scientific_text(((proof or {}).get("logits") or {}).get("max_rel_diff"))


def _greedy(proof: Mapping[str, Any] | None) -> str:
    equal = (proof or {}).get("greedy_equal")
    return MISSING if equal is None else "equal" if equal else "differ"


def _checked(proof: Mapping[str, Any]) -> str:
    """How far the export was checked, and with what or why no further."""
    status = str(proof.get("status", "not run"))
    told = proof.get("engine") if status == "run" else proof.get("why")
    return f"{CHECKED.get(status, status)} ({told})" if told else CHECKED.get(status, status)
