"""Files and folders as numbered records: which files a path refers to, and which reader each needs."""

import glob
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tuneprune.data.bad_records import LeftOut, error_text, name_list
from tuneprune.data.compressed import COMPRESSED
from tuneprune.data.json_files import SPLIT_NAMES, Numbered, read_json
from tuneprune.data.tables import is_one_saved, is_saved, read_arrow, read_csv, read_parquet, read_saved
from tuneprune.errors import DataError

_TEXT_READERS: Mapping[str, Callable[[Path, str, LeftOut], Numbered]] = {
    ".jsonl": read_json,
    ".json": read_json,
    ".ndjson": read_json,
    ".jsonlines": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
}
_READERS = {
    **_TEXT_READERS,
    **{ending + packed: reader for packed in COMPRESSED for ending, reader in _TEXT_READERS.items()},
    ".parquet": read_parquet,
    ".arrow": read_arrow,
}
_ADVICE = {  # unsupported suffixes, and what to do instead
    ".txt": 'plain text does not say where a document ends; write JSONL with one {"text": ...} a document',
    ".zip": "unpack it, and name the unpacked file or folder",
    ".tar": "unpack it, and name the unpacked file or folder",
    ".xlsx": "save the sheet as CSV",
}
_ADVICE |= {".md": _ADVICE[".txt"], ".tgz": _ADVICE[".tar"], ".tar.gz": _ADVICE[".tar"], ".xls": _ADVICE[".xlsx"]}
_ADVICE |= {ending + packed: _ADVICE[".txt"] for ending in (".txt", ".md") for packed in COMPRESSED}
_ADVICE |= {packed: f"rename it to show what is inside, such as data.jsonl{packed}" for packed in COMPRESSED}
_ADVICE |= {".zst": f"decompress it first, or compress it to {', '.join(COMPRESSED)}"}
_ADVICE |= {".parquet" + packed: "decompress it, because Parquet is already compressed" for packed in COMPRESSED}
_SHARD = re.compile(r"[-_.](\d+)(?:-of-(\d+))?(?:-[0-9a-f]{16})?")
_NUMBERED = re.compile(".*?" + _SHARD.pattern)


def read_path(path: Path, split: str, left_out: LeftOut) -> Numbered:
    """The records of a file, of all files of a pattern, or of the split of a folder.

    The numbers of records continue from file to file.

    Args:
        left_out: counts the records that cannot be used, or refuses them.

    Raises:
        DataError: nothing there, an unknown kind of file, a broken line (with its number), or no records.
    """
    records: Numbered = []
    try:
        if is_saved(path):
            records = read_saved(path, split)
        else:
            for file in _files(path, split):
                start = records[-1][0] if records else 0
                found = _reader(file)(file, split, left_out)
                records += [(start + number, record) for number, record in found] if start else found
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror or error_text(error)}). Make it readable, or name another file."
        ) from None
    if not records and not left_out.total:
        raise DataError(f"{path}: the file has no records. Name another file.")
    left_out.check_share(str(path), left_out.total, left_out.total + len(records))
    return records


def is_one(path: Path) -> bool:
    """Whether a path is one set of records, without splits."""
    return path.is_file() or is_one_saved(path) or (glob.has_magic(str(path)) and not path.is_dir())


def _ending(file: Path) -> str:
    """The suffix that tells the kind of file, such as `.jsonl` or `.jsonl.gz`, in lower case."""
    last = file.suffix.lower()
    return Path(file.stem).suffix.lower() + last if last in COMPRESSED else last


def _reader(file: Path) -> Callable[[Path, str, LeftOut], Numbered]:
    ending = _ending(file)
    if ending in _READERS:
        return _READERS[ending]
    possible = f"{', '.join(e for e in _READERS if e.count('.') == 1)}, and text with {', '.join(COMPRESSED)} after it"
    advice = _ADVICE.get(ending) or _ADVICE.get(file.suffix.lower())
    raise DataError(
        f"{file}: unknown kind of data file. Possible: {possible}; {advice or 'convert it to one of them'}."
    )


def _files(path: Path, split: str) -> Sequence[Path]:
    """The files that a path refers to, in order."""
    if path.is_dir():
        return _files_of_split(path, split)
    if path.is_file():
        return [path]
    place = "" if path.is_absolute() else f" in {Path.cwd()}"
    if not glob.has_magic(str(path)):
        raise DataError(f"{path}: there is no such data file{place}. Name a file or folder that exists.")
    files = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]
    files = [file for file in files if file.is_file()]
    if not files:
        raise DataError(f"{path}: no file matches this pattern{place}. Name files that exist.")
    return files


def _files_of_split(folder: Path, split: str) -> Sequence[Path]:
    """The file of a split or its shards, in the folder, in its `data`, or in a folder named like the split."""
    found: dict[tuple[Path, str, str], list[Path]] = {}
    for place in (folder, folder / "data"):
        for file in sorted(place.iterdir()) if place.is_dir() else ():
            group = _group(file, split)
            if group:
                found.setdefault((place, *group), []).append(file)
    for name in SPLIT_NAMES[split]:
        for file in sorted((folder / name).iterdir()) if (folder / name).is_dir() else ():
            if _ending(file) in _READERS and file.name[0] not in "._":
                found.setdefault((folder / name, name, _ending(file)), []).append(file)
    if len(found) > 1:
        names = ", ".join(str(files[0].relative_to(folder)) for files in found.values())
        raise DataError(
            f"{folder}: has more than one file for the split `{split}` ({names}). Name one by its path, or several"
            " with a pattern."
        )
    if found:
        return _complete(next(iter(found.values())))
    there = name_list(sorted(file.name for file in folder.iterdir() if _ending(file) in _READERS))
    raise DataError(f"{folder}: has no split `{split}` (found: {there}). Name another split or a file.")


def _group(file: Path, split: str) -> tuple[str, str] | None:
    """What the shards of one file have in common: the name before the number, and the suffix; None for other files."""
    ending = _ending(file)
    if ending not in _READERS or not file.is_file():
        return None
    stem = file.name[: -len(ending)]
    for name in SPLIT_NAMES[split]:
        if stem == name:
            return name, ending
        if stem.startswith(name) and _SHARD.fullmatch(stem, len(name)):
            return f"{name}-", ending
    return None


def _complete(shards: Sequence[Path]) -> Sequence[Path]:
    """The shards in the order of their numbers."""
    parts = [_NUMBERED.fullmatch(file.name[: -len(_ending(file))]) for file in shards]
    found = [(int(part[1]), int(part[2] or 0)) for part in parts if part]
    if len(found) < len(shards):
        return shards
    counts = {count for _, count in found}
    if counts != {0} and (len(set(found)) != len(shards) or counts != {len(shards)}):
        raise DataError(
            f"{shards[0].parent}: the names of its shards do not match, or some are missing (found:"
            f" {name_list(file.name for file in shards)}). Add the missing ones, or name the shards with a pattern."
        )
    return [file for _, file in sorted(zip(found, shards, strict=True))]
