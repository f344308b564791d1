"""Methods: one file or folder each, found by its presence here (third parties: entry point `tuneprune.methods`)."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from pydantic import ValidationError

from tuneprune.errors import ConfigError, suggest
from tuneprune.methods.base import Method


@cache
def registry() -> dict[str, type[Method]]:
    """Every method by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    for entry in entry_points(group="tuneprune.methods"):
        entry.load()
    return {method.name: method for method in sorted(Method.__subclasses__(), key=lambda method: method.name)}


@cache
def presets() -> dict[str, type[Method]]:
    """The method behind every named preset."""
    return {preset: method for method in registry().values() for preset in method.presets}


def build(options: Mapping[str, Any]) -> Method:
    """The method or preset that a run file names, with its hyper-parameters.

    Raises:
        ConfigError: unknown method or hyper-parameter, or a value out of range.
    """
    known = {**registry(), **presets()}
    name = options.get("name")
    if not isinstance(name, str) or name not in known:
        raise ConfigError(
            f"Unknown method `{name!s:.80}`; known methods are {', '.join(known)}.{suggest(str(name), known)}"
        )
    settings = {key: value for key, value in options.items() if key != "name"}
    method = known[name]
    for key in settings:
        if key not in method.model_fields:
            fields = ", ".join(method.model_fields)
            possible = (
                f"it has {fields}. Leave it out, or use one of these." if fields else "it has none. Leave it out."
            )
            raise ConfigError(
                f"method.{key}: `{name}` has no such option; {possible}{suggest(key, method.model_fields)}"
            )
    try:
        return method.preset(name, settings) if name in method.presets else method(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in ("method", *first["loc"]))
        raise ConfigError(
            f"{place}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r:.80}."
        ) from error
