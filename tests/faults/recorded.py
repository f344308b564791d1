"""The results of campaigns as lines of JSON, from which `benchmarks/faults.py` makes the record."""

import json
import os
from collections import Counter
from dataclasses import asdict, is_dataclass

RECORD = "TUNEPRUNE_FAULTS"


def record(campaign, what, seed, rows, *, good, counted="cases"):
    """Write down `rows`, each with an `outcome`; returns those whose outcome is not a `good` one.

    Args:
        campaign: its name; several lines of one name make one row of the table in docs/faults.md.
        what: what was done, in a few words for that table.
        counted: the plural name of a row.
    """
    rows = [asdict(row) if is_dataclass(row) else dict(row) for row in rows]
    line = {
        "campaign": campaign,
        "what": what,
        "seed": seed,
        "counted": counted,
        "good": dict(Counter(row["outcome"] for row in rows if row["outcome"] in good)),
        "bad": dict(Counter(row["outcome"] for row in rows if row["outcome"] not in good)),
        "rows": rows,
    }
    if RECORD in os.environ:
        with open(os.environ[RECORD], "a", encoding="utf8") as stream:
            stream.write(json.dumps(line) + "\n")
    return [row for row in rows if row["outcome"] not in good]
