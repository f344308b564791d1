"""Further places an export can go to: one folder each, found by the `target.py` in it."""

import importlib
import pkgutil
from functools import cache
from typing import Any

from pydantic import ValidationError

from tuneprune.errors import ConfigError, UnsupportedExport, suggest
from tuneprune.export.targets.base import Target
from tuneprune.system import yaml_files

HUGGING_FACE = "hf"
"""The folder that every run writes, and every target is made of."""


@cache
def registry() -> dict[str, type[Target]]:
    """Every target by name."""
    for folder in pkgutil.iter_modules(__path__):
        if folder.ispkg:
            importlib.import_module(f"{__name__}.{folder.name}.target")
    here = [target for target in Target.__subclasses__() if target.__module__.startswith(f"{__name__}.")]
    return {target.name: target for target in sorted(here, key=lambda target: target.name)}


def build(text: str) -> Target:
    """The target that `text` names: `name` or `name:option=value:...`.

    Raises:
        UnsupportedExport: an unknown target.
        ConfigError: an option the target has not, or a value out of range.
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
