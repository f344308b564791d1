"""Files and hub data sets as numbered records."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tuneprune.data.unusable import LONGEST_RECORD, LeftOut, UnusableRecord, columns, said
from tuneprune.errors import DataError

Numbered = list[tuple[int, dict[str, Any]]]

_SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}
_BOM = b"\xef\xbb\xbf"
_OTHER_FORMATS = {  # how files begin that are no UTF-8 text, whatever they are called
    b"\xff\xfe": "UTF-16 text. Save it as UTF-8",
    b"\xfe\xff": "UTF-16 text. Save it as UTF-8",
    b"\x1f\x8b": "compressed by gzip. Unpack it first",
    b"BZh": "compressed by bzip2. Unpack it first",
    b"\xfd7zXZ": "compressed by xz. Unpack it first",
    b"\x28\xb5\x2f\xfd": "compressed by Zstandard. Unpack it first",
    b"PK\x03\x04": "a zip archive or a spreadsheet. Unpack it, or save it as JSONL",
    b"PAR1": "Parquet. Give it the ending .parquet",
}
_TOO_LONG = f"longer than {LONGEST_RECORD >> 20} MiB"


def read_path(path: Path, split: str, left_out: LeftOut) -> Numbered:
    """The records of a file, or of a folder's file for `split` ({train,val,test}.jsonl, .parquet, .csv).

    Args:
        left_out: counts the records that cannot be used, or refuses them.

    Raises:
        DataError: nothing there, an unknown kind of file, a broken line (with its number), or no records.
    """
    try:
        if path.is_dir():
            path = _file_of_split(path, split)
        if not path.is_file():
            raise DataError(f"{path}: there is no such data file. Name a file or a folder that exists.")
        reader = _READERS.get(path.suffix.lower())
        if reader is None:
            raise DataError(
                f"{path}: unknown kind of data file. Possible: {', '.join(_READERS)}; convert the file to one of them."
            )
        records = reader(path, left_out)
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or said(error)}). Make it readable, or name another file."
        ) from None
    if not records and not left_out.total:
        raise DataError(f"{path}: the file holds no records. Name another file.")
    left_out.check(str(path), left_out.total, left_out.total + len(records))
    return records


def _file_of_split(folder: Path, split: str) -> Path:
    files = [folder / f"{name}{suffix}" for name in _SPLIT_NAMES[split] for suffix in _READERS]
    files = [file for file in files if file.is_file()]
    if len(files) > 1:
        found = ", ".join(file.name for file in files)
        raise DataError(f"{folder}: holds more than one file for the split `{split}` ({found}). Name one by its path.")
    if files:
        return files[0]
    found = columns(sorted(file.name for file in folder.iterdir() if file.suffix in _READERS))
    raise DataError(f"{folder}: holds no split `{split}` (found: {found}). Name another split or a file.")


def _read_jsonl(path: Path, left_out: LeftOut) -> Numbered:
    records: Numbered = []
    with path.open("rb") as file:
        _refuse_other_formats(path, file)
        for number, line in enumerate(_lines(file), start=1):
            try:
                line = _bounded(line)
                if line.strip():
                    records.append((number, _parsed(line)))
            except UnusableRecord as error:
                left_out.add(str(path), number, error)
    return records


def _refuse_other_formats(path: Path, file: IO[bytes]) -> None:
    """Refuse a whole file that is something else; leaves `file` at its first line."""
    head = file.read(4096)
    found = next((name for start, name in _OTHER_FORMATS.items() if head.startswith(start)), None)
    if found is not None:
        raise DataError(f"{path}: the file is {found}.")
    if head.removeprefix(_BOM).lstrip().startswith(b"["):
        raise DataError(f"{path}: the file is one JSON array. Write one JSON object a line instead.")
    file.seek(len(_BOM) if head.startswith(_BOM) else 0)


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of one that is too long only the start, which is too long already."""
    while line := file.readline(LONGEST_RECORD + 1):
        yield line
        while len(line) > LONGEST_RECORD and not line.endswith(b"\n"):
            line = file.readline(LONGEST_RECORD + 1)


def _bounded(line: bytes) -> bytes:
    if len(line) > LONGEST_RECORD:
        raise UnusableRecord(_TOO_LONG, f"the line is {_TOO_LONG}. Break it into several records.")
    return line


def _parsed(line: bytes) -> dict[str, Any]:
    reason, problem = "not JSON", "is not valid JSON"
    try:
        record = json.loads(line.decode("utf-8"), object_pairs_hook=_unique)
    except UnusableRecord:
        raise
    except UnicodeDecodeError:
        raise UnusableRecord("not UTF-8", "the line is not UTF-8 text. Save the file as UTF-8.") from None
    except json.JSONDecodeError as error:
        detail = "it holds zero bytes" if b"\0" in line else error.msg
        raise UnusableRecord(reason, f"the line {problem} ({detail}). Mend it.") from None
    except ValueError:
        raise UnusableRecord(reason, f"the line {problem} (a number has too many digits). Mend it.") from None
    except RecursionError:
        raise UnusableRecord(reason, f"the line {problem} (it nests too deeply). Mend it.") from None
    if not isinstance(record, dict):
        raise UnusableRecord("not an object", "the line has to be a JSON object. Write one object a line.")
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys all differ: of two values under one key, nobody knows which was meant."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = columns(_repeated(key for key, _ in pairs))
        raise UnusableRecord("a key twice", f"the line holds the key `{twice}` twice. Remove one.")
    return found


def _repeated(names: Iterable[str]) -> list[str]:
    """The first name that was there before, if any."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return [name]
        seen.add(name)
    return []


def _read_csv(path: Path, left_out: LeftOut) -> Numbered:
    with path.open("rb") as file:
        _refuse_other_formats(path, file)
    standard = csv.field_size_limit(LONGEST_RECORD)
    number = 0
    try:
        # Bytes that are no UTF-8 become surrogates, so that they are found in the record that holds them.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(_text_lines(file.readline), strict=True)
            header = _header(path, next(reader, []))
            records: Numbered = []
            number = reader.line_num + 1
            for cells in reader:
                try:
                    if cells:
                        records.append((number, _row(header, cells)))
                except UnusableRecord as error:
                    left_out.add(str(path), number, error)
                number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: the file is not valid CSV from here on ({error}). Mend it.") from None
    finally:
        csv.field_size_limit(standard)
    return records


def _text_lines(readline: Callable[[int], str]) -> Iterator[str]:
    """The lines of a text; one that is too long ends it, because nothing tells where the next record begins."""
    while line := readline(LONGEST_RECORD + 1):
        if len(line) > LONGEST_RECORD:
            raise csv.Error(f"a line is {_TOO_LONG}")
        yield line


def _header(path: Path, names: list[str]) -> list[str]:
    if not _is_utf8(names):
        raise DataError(f"{path}:1: the header is not UTF-8 text. Save the file as UTF-8.")
    if twice := _repeated(names):
        raise DataError(f"{path}:1: the header names the column `{columns(twice)}` twice. Rename one.")
    return names


def _is_utf8(cells: list[str]) -> bool:
    try:
        "".join(cells).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _row(header: list[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(header):
        raise UnusableRecord(
            "other columns than the header",
            f"the line has another number of columns than the header ({len(cells)} instead of {len(header)})."
            " Mend it, or quote texts that hold commas.",
        )
    if not _is_utf8(cells):
        raise UnusableRecord("not UTF-8", "the line is not UTF-8 text. Save the file as UTF-8.")
    return dict(zip(header, cells, strict=True))


def _read_parquet(path: Path, left_out: LeftOut) -> Numbered:  # noqa: ARG001  (signature of the readers)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            rows = [row for batch in file.iter_batches(batch_size=1024) for row in batch.to_pylist()]
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: the file is not valid Parquet ({said(error)}). Write it again.") from None
    return list(enumerate(rows, start=1))


_READERS: Mapping[str, Callable[[Path, LeftOut], Numbered]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
    ".csv": _read_csv,
}


def read_hub(name: str, split: str) -> Numbered:
    """The records of a hub data set `owner/name` or `owner/name:subset`; class labels as their names.

    Raises:
        DataError: not reachable, unknown, or without such a split.
    """
    import datasets  # slow to import, and only this needs it
    from datasets.exceptions import DatasetsError

    repository, _, subset = name.partition(":")
    try:
        known = datasets.get_dataset_split_names(repository, subset or None)
        found = next((candidate for candidate in _SPLIT_NAMES[split] if candidate in known), None)
        if found is None:
            raise DataError(f"{name}: holds no split `{split}` (found: {columns(known)}). Name another with `split`.")
        rows = datasets.load_dataset(repository, subset or None, split=found)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"{name}: the hub data set cannot be loaded ({said(error)}). Check its name and the network, or download"
            " it and name the file with `path`."
        ) from None
    labels = {
        column: feature.names for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    records = list(enumerate((_named(row, labels) for row in rows), start=1))
    if not records:
        raise DataError(f"{name}: the split `{split}` holds no records. Name another with `split`.")
    return records


def _named(row: Mapping[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """The row with every class label by its name; unlabelled (-1) stays a number."""
    return {
        column: labels[column][value] if column in labels and value is not None and value >= 0 else value
        for column, value in row.items()
    }
