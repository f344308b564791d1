"""Files as bytes, decompressed if their first bytes say that they are compressed."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from tuneprune.data.bad_records import error_text
from tuneprune.errors import DataError

COMPRESSED = (".gz", ".bz2", ".xz")
"""Suffixes that may follow that of a data file."""
_LARGEST_RATIO = 100
_ALWAYS_ALLOWED = 64 * 2**20
_BUFFER = 2**16
_OPENERS: Mapping[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}


@contextmanager
def open_decompressed(path: Path) -> Iterator["io.BufferedReader[Any]"]:
    """The bytes of a file, decompressed if they are compressed, whatever the file's name.

    The decompressed size is limited, so that a small file cannot fill the memory.

    Raises:
        DataError: compressed bytes that are damaged, truncated, or far larger than their file when decompressed.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(6)
    opener = next((opener for start, opener in _OPENERS.items() if head.startswith(start)), None)
    if opener is None:
        with path.open("rb") as file:
            yield file
        return
    most = max(_ALWAYS_ALLOWED, _LARGEST_RATIO * os.path.getsize(path))
    try:
        with opener(path) as source, io.BufferedReader(_Bounded(path, source, most), _BUFFER) as file:
            yield file
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        if error.errno:
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> DataError:
    reason = error_text(error).rstrip(".")
    return DataError(
        f"{path}: the file cannot be decompressed ({reason}): it is damaged or truncated. Make or copy it again."
    )


class _Bounded(io.RawIOBase):
    """The decompressed bytes, up to a limit."""

    def __init__(self, path: Path, source: IO[bytes], most: int) -> None:
        self.path, self.source, self.most, self.left = path, source, most, most

    def readable(self) -> bool:
        """Always true, as `io` asks for it."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401  (any buffer)
        """Fill the buffer."""
        found = self.source.read(len(buffer))
        self.left -= len(found)
        if self.left < 0:
            raise DataError(
                f"{self.path}: the file has more than {self.most >> 20} MiB when decompressed, over"
                f" {_LARGEST_RATIO} times its size. If that is right, decompress it yourself and name the result."
            )
        buffer[: len(found)] = found
        return len(found)
