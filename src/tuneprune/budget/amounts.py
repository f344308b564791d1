"""Sizes and times as people write them: 3.5B, 300MB, 12ms."""

import math
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BeforeValidator

PARAMETERS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}
DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
BINARY = {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
BYTES = {"": 1, "b": 1, **DECIMAL, **BINARY}
NANOSECONDS = {"us": 10**3, "ms": 10**6, "s": 10**9}


def parse_amount(text: str, units: Mapping[str, int]) -> int | None:
    """A number with a unit, as a whole number of the smallest unit; None if the text is something else."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", text.lower())
    if found is None or found[2] not in units:
        return None
    return round(float(found[1]) * units[found[2]])


def rounded_up(count: int, units: Mapping[str, int]) -> str:
    """A number with four digits and a unit, rounded up, in a form that `parse_amount` reads."""
    names = {
        10**3: {"k": "k", "kb": "kB", "us": "us"},
        10**6: {"m": "M", "mb": "MB", "ms": "ms"},
        10**9: {"b": "B", "gb": "GB"},
    }
    for size, written in sorted(names.items(), reverse=True):
        unit = next((name for name in written if units.get(name) == size), None)
        if unit is not None and count >= size:
            step = 10 ** max(0, len(str(count)) - 4)
            return f"{math.ceil(count / step) * step / size:g}{written[unit]}"
    return str(count)


def bytes_written(count: int) -> str:
    """Decimal bytes with four digits, such as 12.34 MB."""
    for name, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.4g} {name}"
    return f"{count} B"


def milliseconds_written(nanoseconds: int) -> str:
    """A time with four digits, such as 12.34 ms."""
    return f"{nanoseconds / 1e6:.4g} ms"


def read_share(value: object) -> object:
    """A share written in percent (60%, 60 %) as a number; any other value unchanged."""
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*%\s*", value) if isinstance(value, str) else None
    return value if found is None else round(float(found[1]) / 100, 12)


Share = Annotated[float, BeforeValidator(read_share)]
"""A number from 0 to 1, which may also be written in percent."""
