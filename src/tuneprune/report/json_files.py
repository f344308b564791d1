"""Typed JSON files: written atomically, and refused with one clear sentence when they are not valid."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tuneprune.errors import DataError, wrap_errors
from tuneprune.system.storage import write_text

SCHEMA = 1


class Section(BaseModel):
    """A part of a stored document with a closed set of fields."""

    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings", protected_namespaces=())


class OpenSection(Section, extra="allow"):
    """A part that names the fields that reports read, and keeps whatever else a stage measured."""


class Stored(Section, populate_by_name=True):
    """A document with a schema number, kept as one JSON file."""

    what: ClassVar[str] = "document"

    schema_version: Literal[1] = Field(default=SCHEMA, alias="schema")

    def to_json(self) -> str:
        """The document as indented JSON with the documented names; not-a-number becomes the string "NaN"."""
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
        with wrap_errors(f"{path}: this {cls.what} cannot be read", DataError, "Restore the file, or run again."):
            data = json.loads(path.read_text(encoding="utf-8"))
        return cls.from_data(data, str(path))

    @classmethod
    def from_data(cls, data: Any, origin: str) -> Self:  # noqa: ANN401  (anything that JSON can hold)
        """The document in `data`, which came from `origin` (used in messages).

        Raises:
            DataError: not an object, another schema version, or a field that does not fit.
        """
        if not isinstance(data, dict):
            raise DataError(
                f"{origin}: a {cls.what} is one JSON object, but this file holds a {type(data).__name__}."
                " Restore the file, or run again."
            )
        if data.get("schema") != SCHEMA:
            raise DataError(
                f"{origin}: this {cls.what} has schema {data.get('schema')!r}, this version of tuneprune reads"
                f" {SCHEMA}. Read it with the version that wrote it, or run again."
            )
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise DataError(f"{origin}: not a valid {cls.what}: `{field}`: {first['msg']}.") from error
