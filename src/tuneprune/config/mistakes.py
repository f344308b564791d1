"""The first mistake in a run file as one sentence."""

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from tuneprune.config import other_tools
from tuneprune.errors import ConfigError, TunePruneError, printable, suggest

SECTION = ("model_type", "model_attributes_type", "dict_type")
Location = Sequence[str | int]


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """The first mistake of a validation as one sentence; for unknown keys with what to write instead."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = _in_schema(schema, first["loc"])
    place = ".".join(printable(part) for part in location)
    if first["type"] == "extra_forbidden":
        return _unknown(schema, first["loc"], first["input"])
    if first["type"] == "missing":
        return f"`{place}` is missing. Add it to the run file."
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, TunePruneError):
        return str(cause)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"`{place}`: {message}." if place else f"{message}."
    return f"`{place}`{_wrong(schema, location, message, first)}"


def _wrong(schema: type[BaseModel], location: Location, message: str, found: ErrorDetails) -> str:
    """What is wrong with the value at a place, to follow its name."""
    value, kind = found["input"], found["type"]
    if value is None:
        home = " A `~` alone is an empty value in YAML; write the home folder as `~/`." if location == ["model"] else ""
        is_needed = len(location) == 1 and schema.model_fields[str(location[0])].is_required()
        return f" is empty. Give it a value{'' if is_needed else ', or leave the key out'}.{home}"
    given = f"got {value!r:.80}"
    if kind in SECTION:
        keys = ", ".join(fields_at(schema, location)) or "name"
        return f" is a section with the keys {keys}; {given}.{_hint(value)}"
    if kind == "list_type":
        return f" is a list: put `- ` before each of its entries; {given}."
    return f": {message}, {given}.{_percent(found)}{_hint(value)}"


def _percent(found: ErrorDetails) -> str:
    """How to write a share that was written as a percentage without `%`."""
    value = found["input"]
    is_percent = found.get("ctx", {}).get("le") == 1 and isinstance(value, int | float) and 2 <= value <= 100
    return f" Write a share as {value / 100:g} or {value:g}%." if is_percent else ""


def refuse_booleans(schema: type[BaseModel], content: Mapping[str, object], above: str = "") -> None:
    """Refuse yes, no, on and off where a number is expected, because Python would accept them as 1 and 0.

    Raises:
        ConfigError: names the key.
    """
    for name, value in content.items():
        field = schema.model_fields.get(name)
        kinds = str(field.annotation) if field else ""
        if isinstance(value, bool) and re.search(r"\b(int|float)\b", kinds) and "bool" not in kinds:
            raise ConfigError(f"`{above}{name}` has to be a number, got {value}. Write the number.{_hint(value)}")
        section = _section(field) if field else None
        if section and isinstance(value, dict):
            refuse_booleans(section, cast("dict[str, object]", value), f"{above}{name}.")


def _hint(value: object) -> str:
    """Why YAML may have read a value that was not meant."""
    if isinstance(value, bool):
        return " YAML reads yes, no, on and off as true and false; put a text in quotes."
    if isinstance(value, date):
        return " YAML reads this as a date; put a text in quotes."
    text = value.strip() if isinstance(value, str) else ""
    if text in ("None", "nil", "undefined"):
        return " Leave the key out for no value."
    if re.fullmatch(r"[-+]?\d+([,' ]\d+)+(\.\d+)?", text):
        return " Write a number without separators and with a point, such as 1000 or 0.001."
    if re.search(r"\$\w|\$\{", text):
        return " Environment variables are not expanded here; write the value."
    return ""


def _unknown(schema: type[BaseModel], location: Location, value: object) -> str:
    """An unknown key, and what to write instead."""
    place = ".".join(printable(part) for part in location)
    advice = None if location[0] == "model" else advice_on(schema, str(location[-1]), value)
    if advice:
        return f"unknown key `{place}`: {advice}."
    known = fields_at(schema, location[:-1])
    listed = f"; possible keys are {', '.join(known)}" if known else ""
    return f"unknown key `{place}`{listed}.{suggest(str(location[-1]), known)}"


def advice_on(schema: type[BaseModel], key: str, value: object) -> str | None:
    """What to write instead of a key that does not belong there; None if it is known nowhere."""
    advice = other_tools.advice(key, value)
    if advice is None and key != "name":
        advice = " or ".join(f"write `{place}`" for place in _places(schema) if place.split(".")[-1] == key) or None
    return advice


def fields_at(schema: type[BaseModel], path: Location) -> list[str]:
    """Field names of the nested section at `path`; empty if there is none."""
    section: type[BaseModel] | None = schema
    for part in path:
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            section = _section(field) if field else None
    return list(section.model_fields) if section else []


def _places(schema: type[BaseModel], above: str = "") -> Iterator[str]:
    """The dotted keys of all sections, except those of `recover`, which are those of `tune`, and of lists."""
    for name, field in schema.model_fields.items():
        yield f"{above}{name}"
        section = _section(field)
        if section and name != "recover" and not str(field.annotation).startswith("list"):
            yield from _places(section, f"{above}{name}.")


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """The model by which a field, or an entry of a list, is validated."""
    pending: list[Any] = [field.annotation]
    while pending:
        annotation = pending.pop()
        if isinstance(annotation, type) and not hasattr(annotation, "__args__") and issubclass(annotation, BaseModel):
            return annotation
        pending += getattr(annotation, "__args__", ())
    return None


def _in_schema(schema: type[BaseModel], location: Location) -> list[str | int]:
    """A location without the parts that pydantic adds for the members of a union."""
    section: type[BaseModel] | None = schema
    kept: list[str | int] = []
    for part in location:
        if isinstance(part, str):
            field = section.model_fields.get(part) if section else None
            if field is None:
                break
            section = _section(field)
        kept.append(part)
    return kept
