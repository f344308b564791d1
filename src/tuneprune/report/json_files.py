"""Typed JSON files: written atomically, refused with one clear sentence when they are not valid."""

import json
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from tuneprune.errors import DataError
from tuneprune.system.storage import write_text

SCHEMA = 1


class Section(BaseModel):
    """A part of a stored document with a closed set of fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", protected_namespaces=())


class OpenSection(BaseModel):
    """A part that names what reports read and carries along whatever else a stage measured."""

    model_config = ConfigDict(extra="allow", frozen=True, ser_json_inf_nan="strings", protected_namespaces=())


class Stored(Section):
    """A document with a schema number, kept as one JSON file."""

    model_config = ConfigDict(populate_by_name=True)

    what: ClassVar[str] = "document"

    def to_json(self) -> str:
        """The document as indented JSON, names as in the contract; not-a-number becomes the string "NaN"."""
        return self.model_dump_json(by_alias=True, indent=2) + "\n"

    def save(self, path: Path) -> Path:
        """`path`, written in one step: a reader sees the old file or the new one, never half of it."""
        return write_text(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> Self:
        """The document stored at `path`.

        Raises:
            DataError: no such file, not JSON, another schema version, or a field that does not fit.
        """
        return cls.from_data(_read_json(path, cls.what), str(path))

    @classmethod
    def from_data(cls, data: dict[str, Any], origin: str) -> Self:
        """The document held by `data`, which came from `origin` (used in messages).

        Raises:
            DataError: another schema version, or a field that does not fit.
        """
        found = data.get("schema")
        if found != SCHEMA:
            raise DataError(
                f"{origin}: this {cls.what} has schema {found!r}, this version of tuneprune reads {SCHEMA}. "
                "Read it with the version that wrote it, or run again."
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            message = f"{origin}: not a valid {cls.what}: `{field}`: {first['msg']}."
            raise DataError(message) from error


def _read_json(path: Path, what: str) -> dict[str, Any]:
    """The JSON object in `path`."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot read this {what}: {error.strerror}. Name an existing file.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: this {what} is not valid JSON ({error}). Restore the file or run again.") from error
    if not isinstance(data, dict):
        raise DataError(
            f"{path}: a {what} is one JSON object, this file holds a {type(data).__name__}. Restore it, or run again."
        )
    return data
