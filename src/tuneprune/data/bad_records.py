"""Records that cannot be used: why, how many, and whether they are refused or left out."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from reprlib import Repr
from typing import Any

from tuneprune.errors import DataError, first_line, printable

LONGEST_RECORD = 16 * 2**20
"""Bytes of the longest line and characters of the longest text that are read; anything longer is a mistake."""
LARGEST_SHARE = 0.5
"""The largest share of a source's records that may be unusable; above it the rest is probably not what was meant."""
_NUMBERS_KEPT = 5
_COLUMNS_SHOWN = 8
_SHORT = Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 60, 60


class UnusableRecord(DataError):
    """A record that cannot be used; others of its file may be fine.

    Args:
        reason: a few words that fit every such record, by which they are counted.
        message: what is wrong with this one, without its place.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BlankField(UnusableRecord):
    """A record with a field that is there but blank: it is always left out, while a missing field is an error."""

    def __init__(self, message: str) -> None:
        super().__init__("blank", message)


class WrongType(UnusableRecord):
    """A record with a field of the wrong type.

    Args:
        what: the field, such as "the field `text`".
        wanted: what it has to be.
    """

    def __init__(self, what: str, wanted: str, value: object, advice: str = "Fix it.") -> None:
        super().__init__("of the wrong type", f"{what} has to be {wanted}, got {quote(value)}. {advice}")


@dataclass
class LeftOut:
    """The records of one source that are left out: for each reason how many, and the numbers of the first ones.

    Unless `drops` is set, every unusable record that is not merely blank is refused instead.
    """

    drops: bool = False
    hint: str = ""
    """The end of the message of a refusal."""
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, list[int]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Records left out for any reason."""
        return sum(self.counts.values())

    @contextmanager
    def catching(self, source: object, number: int) -> Iterator[None]:
        """Leaves out the record that is read in the body, if it cannot be used.

        Raises:
            DataError: the record is refused; names the source and the record.
        """
        try:
            yield
        except UnusableRecord as error:
            if not (self.drops or isinstance(error, BlankField)):
                raise DataError(f"{source}:{number}: {error}{self.hint}") from None
            self.counts[error.reason] = self.counts.get(error.reason, 0) + 1
            numbers = self.first.setdefault(error.reason, [])
            if len(numbers) < _NUMBERS_KEPT:
                numbers.append(number)

    def check_share(self, source: str, lost: int, total: int) -> None:
        """Refuse a source with too few usable records.

        Args:
            lost: records of `total` that were left out.

        Raises:
            DataError: says how many, and why.
        """
        if lost > LARGEST_SHARE * total:
            raise DataError(
                f"{source}: {lost} of {total} records cannot be used ({self.words()}). With less than half of them"
                " left, the rest may not be what you meant. Fix the data, or name other fields or other data."
            )

    def words(self) -> str:
        """The counts and the first record numbers, in words."""
        return "; ".join(
            f"{count} {reason}: record{'s' if len(self.first[reason]) > 1 else ''} "
            + ", ".join(map(str, self.first[reason]))
            + (", …" if count > len(self.first[reason]) else "")
            for reason, count in self.counts.items()
        )

    def summary(self) -> dict[str, dict[str, Any]]:
        """By reason: how many records, and the numbers of the first ones."""
        return {reason: {"records": count, "first": self.first[reason]} for reason, count in self.counts.items()}


def name_list(names: Iterable[object]) -> str:
    """Names of columns or files for a message: the first few, without characters that would break the line."""
    names = [str(name) for name in names]
    listed = [name[:40] if name.isprintable() else repr(name[:40]) for name in names[:_COLUMNS_SHOWN]]
    more = len(names) - len(listed)
    return (", ".join(listed) or "none") + (f" and {more} more" if more else "")


def error_text(error: Exception) -> str:
    """The first line of another library's error, for a message."""
    return printable(first_line(error))


def quote(value: object) -> str:
    """A value of a record for a message: shortened, on one line, however deeply it nests."""
    return f"{_SHORT.repr(value):.80}"
