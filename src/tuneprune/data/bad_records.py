"""Records that cannot be used: why, how many, and what becomes of them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any

from tuneprune.errors import DataError

LONGEST_RECORD = 16 * 2**20
"""Bytes of the longest line that is read, and characters of the longest text: more is no record but an accident."""
LARGEST_SHARE = 0.5
"""Of a source's records: where more cannot be used, the rest is not what was meant either."""
_NUMBERS_KEPT = 5
_COLUMNS_SHOWN = 8
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class UnusableRecord(DataError):
    """One record that cannot be used, while others of its file may be.

    Args:
        reason: in a few words that hold for all records alike; the counts are kept by it.
        message: what is wrong with this one, without its place.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BlankField(UnusableRecord):
    """A record whose field is there but blank: it is always left out, where a missing field is an error."""

    def __init__(self, message: str) -> None:
        super().__init__("blank", message)


@dataclass
class LeftOut:
    """The records of one source that are left out: for each reason how many, and the numbers of the first.

    Unless `drops` is set, every unusable record that is not merely blank is refused instead.
    """

    drops: bool = False
    hint: str = ""
    """What a refusal says last."""
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Records left out for any reason."""
        return sum(self.counts.values())

    def add(self, source: str, number: int, error: UnusableRecord) -> None:
        """Leave a record out.

        Raises:
            DataError: it is to be refused; names the source and the record.
        """
        if not (self.drops or isinstance(error, BlankField)):
            raise DataError(f"{source}:{number}: {error}{self.hint}") from None
        self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
        numbers = self.first.setdefault(error.reason, [])
        if len(numbers) < _NUMBERS_KEPT:
            numbers.append(number)

    def check_share(self, source: str, lost: int, total: int) -> None:
        """Refuse a source of which too little is left.

        Args:
            lost: records of `total` that were left out.

        Raises:
            DataError: says how many, and why.
        """
        if lost > LARGEST_SHARE * total:
            raise DataError(
                f"{source}: {lost} of {total} records cannot be used ({self.words()}), and with more than half of"
                " them gone the rest may not be what you meant. Fix the data, or name other fields or other data."
            )

    def words(self) -> str:
        """The counts and the first places, in words."""
        return "; ".join(
            f"{count} {reason}: record{'s' if len(self.first[reason]) > 1 else ''} "
            + ", ".join(map(str, self.first[reason]))
            + (", …" if count > len(self.first[reason]) else "")
            for reason, count in self.counts.items()
        )

    def summary(self) -> dict[str, dict[str, Any]]:
        """By reason: how many records, and the numbers of the first."""
        return {reason: {"records": count, "first": self.first[reason]} for reason, count in self.counts.items()}


def name_list(names: Iterable[object]) -> str:
    """Names of columns for a message: the first few, without anything that would break a line or a terminal."""
    names = [str(name) for name in names]
    listed = [name[:40] if name.isprintable() else repr(name[:40]) for name in names[:_COLUMNS_SHOWN]]
    more = len(names) - len(listed)
    return (", ".join(listed) or "none") + (f" and {more} more" if more else "")


def said(error: BaseException) -> str:
    """What an error of another library says, for a message: its first line."""
    line = str(error).strip().partition("\n")[0][:200]
    return (line if line.isprintable() else repr(line)[1:-1]) or type(error).__name__


def quote(value: object) -> str:
    """A value of a record for a message: cut, in one line, however deep it is."""
    return f"{_SHORT.repr(value):.80}"
