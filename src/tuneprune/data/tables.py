"""CSV, TSV, Parquet and Arrow files, and folders written by `save_to_disk`, as numbered records."""

import csv
import io
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuneprune.data.bad_records import LONGEST_RECORD, LeftOut, UnusableRecord, error_text, name_list
from tuneprune.data.compressed import open_decompressed
from tuneprune.data.json_files import SPLIT_NAMES, TOO_LONG, Numbered, head_of_text
from tuneprune.errors import DataError, has_surrogates

if TYPE_CHECKING:
    import pyarrow as pa

_LOGGER = logging.getLogger(__name__)
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
_FEATURES = b"huggingface"
"""Key of a schema's metadata under which the datasets library describes the columns."""


def read_csv(path: Path, split: str, left_out: LeftOut) -> Numbered:  # noqa: ARG001  (signature of the readers)
    """The rows of a CSV or TSV file with a header, numbered by their lines.

    Args:
        left_out: counts the rows that cannot be used, or refuses them.

    Raises:
        DataError: a broken file or row, with its number.
    """
    standard = csv.field_size_limit(LONGEST_RECORD)
    number = 0
    try:
        with open_decompressed(path) as file:
            separator = _separator(path, head_of_text(path, file))
            # Bytes that are not UTF-8 become surrogates, which are then found in their record.
            text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
            reader = csv.reader(_text_lines(text.readline), strict=True, delimiter=separator)
            header = _header(path, next(reader, []))
            records: Numbered = []
            number = reader.line_num + 1
            for cells in reader:
                with left_out.catching(path, number):
                    if cells:
                        records.append((number, _row(header, cells, separator)))
                number = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{number}: the file is not valid CSV from here on ({error}). Fix it.") from None
    finally:
        csv.field_size_limit(standard)
    return records


def _separator(path: Path, head: bytes) -> str:
    """The column separator: a comma, unless the file's name or a header without commas says otherwise."""
    if ".tsv" in path.suffixes:
        return "\t"
    first = head.partition(b"\n")[0].decode("utf-8", "replace")
    others = [separator for separator in (";", "\t") if separator in first]
    if "," in first or len(others) != 1:
        return ","
    _LOGGER.warning("%s: the columns are separated by %s, not commas", path, _SEPARATORS[others[0]])
    return others[0]


def _text_lines(readline: Callable[[int], str]) -> Iterator[str]:
    """The lines of a text. A line that is too long is an error, because the next record cannot be found."""
    while line := readline(LONGEST_RECORD + 1):
        if len(line) > LONGEST_RECORD:
            raise csv.Error(f"a line is {TOO_LONG}")
        yield line


def _header(path: Path, names: list[str]) -> list[str]:
    if has_surrogates("".join(names)):
        raise DataError(f"{path}:1: the header is not UTF-8 text. Save the file as UTF-8.")
    twice = [name for index, name in enumerate(names) if name in names[:index]]
    if twice:
        raise DataError(f"{path}:1: the header has the column `{name_list(twice[:1])}` twice. Rename one.")
    return names


def _row(header: list[str], cells: list[str], separator: str) -> dict[str, str]:
    if len(cells) != len(header):
        raise UnusableRecord(
            "other columns than the header",
            f"the line has another number of columns than the header ({len(cells)} instead of {len(header)})."
            f" Fix it, or quote texts that hold {_SEPARATORS[separator]}.",
        )
    if has_surrogates("".join(cells)):
        raise UnusableRecord("not UTF-8", "the line is not UTF-8 text. Save the file as UTF-8.")
    return dict(zip(header, cells, strict=True))


def read_parquet(path: Path, split: str, left_out: LeftOut) -> Numbered:  # noqa: ARG001  (signature of the readers)
    """The rows of a Parquet file; class labels as their names.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            return _numbered(file.iter_batches(batch_size=1024), file.schema_arrow)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: the file is not valid Parquet ({error_text(error)}). Write it again.") from None


def read_arrow(path: Path, split: str, left_out: LeftOut) -> Numbered:  # noqa: ARG001  (signature of the readers)
    """The rows of an Arrow file in the file or the stream format; class labels as their names.

    Raises:
        DataError: the file is damaged.
    """
    import pyarrow as pa

    try:
        with pa.OSFile(str(path)) as file:
            is_file_format = file.read(6) == b"ARROW1"
            file.seek(0)
            table = (pa.ipc.open_file if is_file_format else pa.ipc.open_stream)(file).read_all()
        return _numbered(table.to_batches(1024), table.schema)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DataError(f"{path}: the file is not valid Arrow ({error_text(error)}). Write it again.") from None


def _numbered(batches: "Iterable[pa.RecordBatch]", schema: "pa.Schema") -> Numbered:
    labels = {}
    if _FEATURES in (schema.metadata or {}):
        import datasets  # slow to import, and only needed for files that it wrote

        labels = label_names(datasets.Features.from_arrow_schema(schema))
    records: Numbered = []
    for batch in batches:
        batch.validate(full=True)  # a damaged file may point outside its memory
        records += enumerate((name_labels(row, labels) for row in batch.to_pylist()), start=len(records) + 1)
    return records


def label_names(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """The names of the class labels of every column that has any."""
    import datasets

    return {column: feature.names for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)}


def name_labels(row: Mapping[str, Any], labels: Mapping[str, list[str]]) -> dict[str, Any]:
    """The row with class labels replaced by their names; unlabelled (-1) stays a number."""
    return {
        column: labels[column][value] if column in labels and value is not None and value >= 0 else value
        for column, value in row.items()
    }


def is_saved(folder: Path) -> bool:
    """Whether the folder was written by `save_to_disk` of the datasets library."""
    return (folder / "dataset_dict.json").is_file() or is_one_saved(folder)


def is_one_saved(folder: Path) -> bool:
    """Whether it is a saved data set without splits."""
    return (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()


def read_saved(folder: Path, split: str) -> Numbered:
    """The rows of a folder written by `save_to_disk`: of the split, or all of them if it has no splits.

    Raises:
        DataError: damaged, or without such a split.
    """
    import datasets
    import pyarrow as pa

    try:
        found = datasets.load_from_disk(str(folder))
        if isinstance(found, datasets.DatasetDict):
            name = next((name for name in SPLIT_NAMES[split] if name in found), None)
            if name is None:
                raise DataError(f"{folder}: has no split `{split}` (found: {name_list(found)}). Name another split.")
            found = found[name]
        # As Arrow tables, so that images and audio in unused columns are not decoded.
        tables: Any = found.with_format("arrow").iter(batch_size=1024)
        return _numbered((batch for table in tables for batch in table.to_batches()), found.data.schema)
    except DataError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise DataError(
            f"{folder}: the folder written by save_to_disk cannot be read ({error_text(error)}). Save the data set"
            " again."
        ) from None
