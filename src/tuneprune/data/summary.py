"""The data of a run in one line: how much there is, what was left out, and what was done to the rest."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from tuneprune.data.examples import Example, Note

NOTES: Mapping[Note, str] = {
    "system_folded": "with the system text in the user's turn, because the chat template has no role for it",
    "developer_as_system": "with the developer's turn as a system turn",
    "later_turns": "without the turns after the last answer",
    "fixed_date": "with 1 January 2025 as the current date in the chat template",
}
"""Changes that may have been made to a record, in words."""
DONE = {
    "shortened": "shortened to max_length",
    "split": "split into windows",
    "control_tokens": "with control tokens in their text",
    **NOTES,
}
"""Changes and peculiarities of examples that are used, in words, by their name in the run record."""


def in_words(summary: Mapping[str, Any]) -> str:
    """A `Data.summary()` in one line, for the start of a run."""
    train, calibration, test = summary["train"], summary["calibration"], summary["test"]
    sources = [source for part in (train, calibration) for source in part["sources"]]
    left_out: Counter[str] = Counter()
    for source in sources:
        left_out.update({reason: found["records"] for reason, found in source["left_out"].items()})
        left_out["also test items"] += source["dropped"]
    left_out["unknown to the tokenizer"] += train["unknown"] + calibration["unknown"]
    left_out["blank test items"] += test["blank"]
    done = {words: train[name] + calibration[name] for name, words in DONE.items()}
    repeated = {"repeated": sum(source["duplicates"] for source in sources)}
    if summary["duplicates"] == "drop":
        left_out.update(repeated)
    else:
        done |= repeated
    sizes = (train["examples"], calibration["examples"], test["examples"])
    parts = ["{} training and {} calibration examples, {} test items".format(*sizes)]
    parts += [f"left out: {listed}"] if (listed := _listed(left_out)) else []
    parts += [listed] if (listed := _listed(done)) else []
    return "; ".join(parts)


def in_notes(examples: Iterable[Example]) -> str:
    """The changes made to the records of one source, with counts; empty if there were none."""
    counts = Counter(note for example in examples for note in example.notes)
    return _listed({words: counts[note] for note, words in NOTES.items()})


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
