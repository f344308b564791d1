"""Export targets in addition to the Hugging Face folder: one folder each, found by the `target.py` in it."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from tuneprune.errors import ConfigError, UnsupportedExport, suggest
from tuneprune.export.targets.base import Target
from tuneprune.system import yaml_files

HUGGING_FACE = "hf"
"""The folder that every run writes and all targets are made from."""


@cache
def registry() -> dict[str, type[Target]]:
    """Every target by name."""
    found: dict[str, type[Target]] = {}
    for folder in pkgutil.iter_modules(__path__):
        if folder.ispkg:
            members = vars(importlib.import_module(f"{__name__}.{folder.name}.target")).values()
            kinds = [kind for kind in members if isinstance(kind, type) and issubclass(kind, Target)]
            found |= {kind.name: kind for kind in kinds if "name" in vars(kind)}
    return dict(sorted(found.items()))


def build(text: str) -> Target:
    """Build a target from `name` or `name:option=value:...`.

    Raises:
        UnsupportedExport: an unknown target.
        ConfigError: an option that the target does not have, or a value out of range.
    """
    name, *settings = text.strip().split(":")
    known = registry()
    if name not in known:
        names = (HUGGING_FACE, *known)
        raise UnsupportedExport(f"Unknown export `{name}`; known exports are {', '.join(names)}.{suggest(name, names)}")
    options: dict[str, Any] = {}
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"export {text}: write options as name:option=value, not `{setting}`.")
        options[key] = yaml_files.load(value, f"export {text}: {key}")
    try:
        return known[name](**options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            fields = ", ".join(known[name].model_fields) or "none"
            raise ConfigError(f"export {text}: `{name}` has no option `{place}`; it has {fields}.") from error
        raise ConfigError(f"export {text}: {place}: {first['msg']}, got {first['input']!r}.") from error
