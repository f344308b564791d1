"""The data of a run in one line: how much there is, what was left out, and what was done to the rest."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

DONE = {
    "shortened": "shortened to max_length",
    "split": "split into windows",
    "control_tokens": "with control tokens in their text",
}
"""What may have been done to examples that are used, or be odd about them: the name in a record, and in words."""


def in_words(summary: Mapping[str, Any]) -> str:
    """One line on a `Data.summary()`, for the start of a run."""
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


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items() if count)
