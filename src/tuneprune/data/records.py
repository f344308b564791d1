"""Files and hub data sets as numbered records."""

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tuneprune.errors import DataError

Numbered = list[tuple[int, dict[str, Any]]]

_SPLIT_NAMES = {"train": ("train",), "val": ("val", "validation", "valid", "dev"), "test": ("test",)}


def read_path(path: Path, split: str) -> Numbered:
    """The records of a file, or of a folder's file for `split` ({train,val,test}.jsonl, .parquet, .csv).

    Raises:
        DataError: nothing there, an unknown kind of file, a broken line (with its number), or no records.
    """
    if path.is_dir():
        path = _file_of_split(path, split)
    if not path.is_file():
        raise DataError(f"{path}: there is no such data file.")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(f"{path}: unknown kind of data file. Possible: {', '.join(_READERS)}.")
    try:
        records = reader(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    if not records:
        raise DataError(f"{path}: the file holds no records.")
    return records


def _file_of_split(folder: Path, split: str) -> Path:
    for name in _SPLIT_NAMES[split]:
        for suffix in _READERS:
            if (folder / f"{name}{suffix}").is_file():
                return folder / f"{name}{suffix}"
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _READERS)
    found = ", ".join(names) or "no data files"
    raise DataError(f"{folder}: holds no split `{split}` (found: {found}). Name another split or a file.")


def _read_jsonl(path: Path) -> Numbered:
    records = []
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            raise DataError(f"{path}:{number}: the line is not UTF-8 text. Save the file as UTF-8.") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: the line is not valid JSON ({error.msg}). Mend it.") from None
        except RecursionError:
            raise DataError(f"{path}:{number}: the line nests too deeply. Mend it.") from None
        if not isinstance(record, dict):
            raise DataError(f"{path}:{number}: the line has to be a JSON object, one record a line.")
        records.append((number, record))
    return records


def _read_csv(path: Path) -> Numbered:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            records = [(reader.line_num, row) for row in reader]
    except UnicodeDecodeError:
        raise DataError(f"{path}: the file is not UTF-8 text. Save it as UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"{path}: the file is not valid CSV ({error}).") from None
    for number, row in records:
        if None in row or None in row.values():
            raise DataError(f"{path}:{number}: the line has another number of columns than the header.")
    return records


def _read_parquet(path: Path) -> Numbered:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except pa.ArrowException as error:
        raise DataError(f"{path}: the file is not valid Parquet ({str(error).splitlines()[0]}).") from None
    return list(enumerate(rows, start=1))


_READERS: Mapping[str, Callable[[Path], Numbered]] = {
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

    repository, _, subset = name.partition(":")
    try:
        known = datasets.get_dataset_split_names(repository, subset or None)
        found = next((candidate for candidate in _SPLIT_NAMES[split] if candidate in known), None)
        if found is None:
            raise DataError(f"{name}: holds no split `{split}` (found: {', '.join(known)}).")
        rows = datasets.load_dataset(repository, subset or None, split=found)
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: the hub data set cannot be loaded ({reason:.200}).") from None
    labels = {
        column: feature.names for column, feature in rows.features.items() if isinstance(feature, datasets.ClassLabel)
    }
    records = list(enumerate((_named(row, labels) for row in rows), start=1))
    if not records:
        raise DataError(f"{name}: the split `{split}` holds no records.")
    return records


def _named(row: Mapping[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """The row with every class label by its name; unlabelled (-1) stays a number."""
    return {
        column: labels[column][value] if column in labels and value is not None and value >= 0 else value
        for column, value in row.items()
    }
