"""Reading a run file from YAML or JSON, with overrides."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from tuneprune.config.mistakes import explain, refuse_booleans
from tuneprune.config.schema import SHARED, RecoverConfig, RunConfig, like_tune
from tuneprune.errors import ConfigError
from tuneprune.model import location
from tuneprune.system import yaml_files

PLAIN = {"model": "base", "method": "name", "compensate": "name", "train": "", "calibration": ""}
"""The key of a section that a text alone sets; empty where the text is the only entry of a list."""


def load_run_file(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """The run file with `key.path=value` overrides.

    Raises:
        ConfigError: missing or malformed file, unknown key, value out of range.
    """
    return parse(_read(path, overrides), str(path))


def load_recover_file(model: str, path: Path, overrides: Sequence[str] = ()) -> RecoverConfig:
    """The tuning and evaluation settings of a run file, for a model that is already pruned.

    Tuning follows its `recover` section, with missing keys from `tune`; settings for pruning are ignored.

    Raises:
        ConfigError: missing or malformed file, unknown key, value out of range.
    """
    content = _read(path, overrides)
    options: list[Any] = [content.pop(name, None) or {} for name in ("tune", "recover")]
    kept = {key: value for key, value in content.items() if key not in RunConfig.model_fields.keys() - SHARED}
    kept |= {"model": model, "tune": like_tune(*options) if all(isinstance(o, dict) for o in options) else options}
    refuse_booleans(RecoverConfig, kept)
    try:
        return RecoverConfig.model_validate(kept)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, RecoverConfig)}") from error


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """The run file as plain data."""
    content = yaml_files.load_file(path)
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a run file is a mapping with the keys {', '.join(RunConfig.model_fields)}.")
    for override in overrides:
        _override(content, override)
    return content


def parse(content: dict[str, Any], origin: str) -> RunConfig:
    """A run config from plain data.

    Raises:
        ConfigError: names the key, what is possible, and what was given.
    """
    refuse_booleans(RunConfig, content)
    try:
        return RunConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, RunConfig)}") from error


def _override(content: dict[str, Any], override: str) -> None:
    """Apply one `key.path=value` in place; the value is read as YAML."""
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"--set {override}: write it as key.path=value, such as budget.keep=0.5.")
    value = yaml_files.load(text, f"--set {override:.80}")
    *parents, leaf = path.split(".")
    section: dict[str, Any] | list[Any] = content
    for depth, parent in enumerate(parents):
        section = _descend(section, parent, override, ".".join(parents[:depth]))
    if isinstance(section, list):
        section[_index(section, leaf, override, ".".join(parents))] = value
    else:
        section[leaf] = value


def _descend(section: dict[str, Any] | list[Any], key: str, override: str, place: str) -> dict[str, Any] | list[Any]:
    """The section or list under `key`, created if there is none."""
    if isinstance(section, list):
        index = _index(section, key, override, place)
        inner = section[index] = _as_section(section[index], "path")
    else:
        inner = section[key] = _as_section(section.get(key), PLAIN.get(key))
    if not isinstance(inner, dict | list):
        raise ConfigError(f"--set {override}: `{key}` is not a section.")
    return cast("dict[str, Any] | list[Any]", inner)


def _as_section(inner: object, plain: str | None) -> object:
    """A value as a section: a missing value becomes an empty one, and a text is expanded if it stands for a section.

    Args:
        plain: the key that a text alone sets; empty where it is the only entry of a list.
    """
    if inner is None:
        return {}
    if isinstance(inner, str) and plain == "base":
        return location.split_adapter(inner)
    if isinstance(inner, str) and plain is not None:
        return {plain: inner} if plain else [inner]
    return inner


def _index(entries: Sequence[object], key: str, override: str, place: str) -> int:
    """The number of an entry of a list."""
    if key.isascii() and key.isdecimal() and int(key) < len(entries):
        return int(key)
    raise ConfigError(
        f"--set {override}: `{place}` is a list of {len(entries)}; name an entry by its number from 0 to"
        f" {len(entries) - 1}, or set the whole list with --set {place}=[...]."
    )
