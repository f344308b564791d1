"""JSON files as numbered records: one object a line, one array, or one object that holds the list of records."""

import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from tuneprune.data.bad_records import LONGEST_RECORD, LeftOut, UnusableRecord, name_list
from tuneprune.data.compressed import open_decompressed
from tuneprune.errors import DataError, has_surrogates

Numbered = list[tuple[int, dict[str, Any]]]

SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
"""Names of the files of a split, and of the splits of data sets."""
TOO_LONG = f"longer than {LONGEST_RECORD >> 20} MiB"
BOM = b"\xef\xbb\xbf"
_OTHER_FORMATS = {  # first bytes of files that are not UTF-8 text, whatever their names say
    b"\xff\xfe": "UTF-16 text. Save it as UTF-8",
    b"\xfe\xff": "UTF-16 text. Save it as UTF-8",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard. Decompress it first, or compress it with gzip, bzip2 or xz",
    b"PK\x03\x04": "a zip archive or a spreadsheet. Unpack it, or save it as JSONL",
    b"PAR1": "Parquet. Rename it to end in .parquet",
    b"ARROW1": "an Arrow file. Rename it to end in .arrow",
}
_LISTS = ("data", "records", "rows", "examples", "items", "instances")
"""Keys under which one object for the whole file holds its records, in addition to the names of splits."""
_SPLIT_KEYS = tuple(name for names in SPLIT_NAMES.values() for name in names)
_SCALAR = rb'(?:"[^"\\]*"|[-+.\w]+)'
_CONTAINER = re.compile(
    rb'\s*\{\s*(?:"[^"\\]*"\s*:\s*' + _SCALAR + rb'\s*,\s*)*"(?:' + "|".join(_LISTS + _SPLIT_KEYS).encode() + rb')"'
    rb"\s*:\s*\[\s*[{\]]"
)
_PRETTY = re.compile(rb"\s*\{[ \t\r]*\n")
_SPACE = re.compile(r"[ \t\r\n]*")


def read_json(path: Path, split: str, left_out: LeftOut) -> Numbered:
    """The records of a JSON file, numbered by their lines, or from 1 if they are not one a line.

    Args:
        split: which list to read if one object holds several.
        left_out: counts the records that cannot be used, or refuses them.

    Raises:
        DataError: a broken record (with its number), or a file in another format.
    """
    with open_decompressed(path) as file:
        head = head_of_text(path, file)
        is_array = head.lstrip().startswith(b"[")
        is_container = _CONTAINER.match(head) is not None and _is_one_object(path)
        if not (is_array or is_container or _PRETTY.match(head)):
            return _read_lines(path, file, left_out)
        window = _Window(path, io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape"))
        if is_array:
            return _read_array(window, left_out)
        return _read_lists(window, split, left_out) if is_container else _read_objects(window, left_out)


def _is_one_object(path: Path) -> bool:
    """Whether the whole file is one object, and not an object a line."""
    with open_decompressed(path) as file:
        try:
            json.loads(file.readline(LONGEST_RECORD + 1).removeprefix(BOM))
        except (ValueError, RecursionError):
            return True
        return not any(line.strip() for line in _lines(file))


def head_of_text(path: Path, file: "io.BufferedReader[Any]") -> bytes:
    """The first bytes of a file without a byte order mark; they are not consumed.

    Raises:
        DataError: the file is in another format than UTF-8 text.
    """
    head = file.peek(4096)
    found = next((name for start, name in _OTHER_FORMATS.items() if head.startswith(start)), None)
    if found is not None:
        raise DataError(f"{path}: the file is {found}.")
    return head.removeprefix(BOM)


def _read_lines(path: Path, file: "io.BufferedReader[Any]", left_out: LeftOut) -> Numbered:
    if file.peek(len(BOM)).startswith(BOM):
        file.read(len(BOM))
    records: Numbered = []
    for number, line in enumerate(_lines(file), start=1):
        with left_out.catching(path, number):
            if len(line) > LONGEST_RECORD:
                raise UnusableRecord(TOO_LONG, f"the line is {TOO_LONG}. Split it into several records.")
            if line.strip():
                records.append((number, _parse_line(line)))
    return records


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of a line that is too long only the start, which is already too long."""
    while line := file.readline(LONGEST_RECORD + 1):
        yield line
        while len(line) > LONGEST_RECORD and not line.endswith(b"\n"):
            line = file.readline(LONGEST_RECORD + 1)


def _parse_line(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_unique)
    except UnusableRecord:
        raise
    except UnicodeDecodeError:
        raise UnusableRecord("not UTF-8", "the line is not UTF-8 text. Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        detail = "it contains zero bytes" if b"\0" in line else _problem(error)
        raise UnusableRecord("not JSON", f"the line is not valid JSON ({detail}). Fix it.") from None
    if not isinstance(record, dict):
        raise UnusableRecord("not an object", "the line has to be a JSON object. Write one object a line.")
    return record


def _problem(error: Exception) -> str:
    """What is wrong with a JSON text, by the error of its decoder."""
    if isinstance(error, RecursionError):
        return "it nests too deeply"
    return error.msg if isinstance(error, json.JSONDecodeError) else "a number has too many digits"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ: of two values under one key, it is not clear which one was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = name_list([key for key, _ in pairs if key in seen or seen.add(key)][:1])
        raise UnusableRecord("a key twice", f"the record has the key `{twice}` twice. Remove one.")
    return found


class _Window:
    """The text of a long JSON value, of which only the part around the current position is in memory."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self.path, self.file = path, file
        self.text, self.at, self.is_ended = "", 0, False
        self.number = 0
        """The number of the element that is being read, from 1."""

    def next_character(self) -> str:
        """The next character after white space, without consuming it; empty at the end of the file."""
        while True:
            space = _SPACE.match(self.text, self.at)
            self.at = space.end() if space else self.at
            if self.at < len(self.text) or self.is_ended:
                return self.text[self.at : self.at + 1]
            self._fill()

    def takes(self, character: str) -> bool:
        """Whether this character comes next, which is then consumed."""
        found = self.next_character() == character
        self.at += found
        return found

    def value(self) -> Any:  # noqa: ANN401  (any JSON)
        """The next value.

        Raises:
            UnusableRecord: it cannot be used; reading continues after it.
            DataError: it is broken, so that its end cannot be found.
        """
        self._fill()
        start = self.at
        try:
            value, self.at = json.JSONDecoder(object_pairs_hook=_unique).raw_decode(self.text, start)
        except UnusableRecord:
            self.at = json.JSONDecoder().raw_decode(self.text, start)[1]
            raise
        except (ValueError, RecursionError) as error:
            raise self.broken(_problem(error)) from None
        if self.at - start > LONGEST_RECORD:
            raise UnusableRecord(TOO_LONG, f"the record is {TOO_LONG}. Split it into several records.")
        if has_surrogates(self.text[start : self.at]):
            raise UnusableRecord("not UTF-8", "the record is not UTF-8 text. Save the file as UTF-8.")
        return value

    def record(self) -> dict[str, Any]:
        """The next value, which has to be an object."""
        value = self.value()
        if not isinstance(value, dict):
            raise UnusableRecord("not an object", "the record has to be a JSON object. Write objects only.")
        return value

    def broken(self, detail: str) -> DataError:
        """The error where it is not clear how the file continues."""
        maybe = "" if self.is_ended else f", or a record is {TOO_LONG}"
        return DataError(
            f"{self.path}:{max(1, self.number)}: the file is not valid JSON from this record on ({detail}{maybe})."
            " Fix it, or create it again."
        )

    def _fill(self) -> None:
        """Read until the longest possible record fits."""
        while not self.is_ended and len(self.text) - self.at <= LONGEST_RECORD:
            more = self.file.read(LONGEST_RECORD + 1)
            self.is_ended = not more
            self.text, self.at = self.text[self.at :] + more, 0


def _read_array(window: _Window, left_out: LeftOut) -> Numbered:
    records = _elements(window, left_out)
    if window.next_character():
        raise window.broken("something follows the array")
    return records


def _elements(window: _Window, left_out: LeftOut) -> Numbered:
    """The records of the next array."""
    records: Numbered = []
    window.number = 0
    window.takes("[")
    if window.takes("]"):
        return records
    while True:
        window.number += 1
        if not window.next_character():
            raise window.broken("the file ends inside it")
        with left_out.catching(window.path, window.number):
            records.append((window.number, window.record()))
        if window.takes("]"):
            return records
        if not window.takes(","):
            raise window.broken("a comma is missing after it" if window.next_character() else "the file ends after it")


def _read_objects(window: _Window, left_out: LeftOut) -> Numbered:
    """Objects one after another, each over several lines."""
    records: Numbered = []
    while window.next_character():
        window.number += 1
        with left_out.catching(window.path, window.number):
            records.append((window.number, window.record()))
    return records


def _read_lists(window: _Window, split: str, left_out: LeftOut) -> Numbered:
    """The records in a list of the object that is the whole file."""
    found: dict[str, Numbered] = {}
    wanted = SPLIT_NAMES[split] + _LISTS
    window.takes("{")
    while not window.takes("}"):
        key = window.value()
        if not isinstance(key, str) or key in found or not window.takes(":"):
            raise window.broken("a key is missing or appears twice")
        if window.next_character() == "[" and key in _LISTS + _SPLIT_KEYS:
            found[key] = _elements(window, left_out if key in wanted else LeftOut(drops=True))
        else:
            with suppress(UnusableRecord):  # its value is not used
                window.value()
        if not window.takes(",") and window.next_character() != "}":
            raise window.broken("a comma is missing after it")
    if window.next_character():
        raise window.broken("something follows the object")
    meant = [key for key in found if key in wanted]
    if len(meant) != 1 or (meant[0] in _LISTS and len(found) > 1):
        raise DataError(
            f"{window.path}: the file holds lists under {name_list(found)}, and it is not clear which one is `{split}`."
            " Write that list to a file of its own."
        )
    return found[meant[0]]
