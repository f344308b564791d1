"""What a run depends on: it is resumed under the same, or not at all, or with a word about what differs."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers.utils.hub import cached_file

from tuneprune.data import Data
from tuneprune.evaluate import LoadedTask
from tuneprune.system import model_folder
from tuneprune.system.environment import environment

FORMAT = 1
SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
"""Files of a model that are read: weights, configs, tokenizer."""
KINDS = {
    "settings": "another configuration",
    "data": "other data",
    "test": "other test items",
    "model": "another model",
    "adapter": "another adapter",
    "code": "another version of tuneprune",
    "place": "another number of processes or kind of device",
}
"""What may not differ, in words."""
Identity = dict[str, Any]


def identify(
    data: Data, tasks: Sequence[LoadedTask], model: str, adapter: str | None, accelerator: Accelerator | None
) -> Identity:
    """Everything that a run's result depends on beside its settings, readable, and what may change its last bits.

    Args:
        model: folder or hub id; every weight file is read in full, as sampling would miss a change of a few layers.
        accelerator: None for what has no device of its own: a comparison, whose runs are compared one by one.
    """
    place, around = {"processes": 1}, {}
    if accelerator is not None:
        place = {"processes": accelerator.num_processes, "device": accelerator.device.type}
        passing = ("processes", "tuneprune", "commit")
        around = {name: value for name, value in environment(accelerator).items() if name not in passing}
    return {
        "format": FORMAT,
        "data": _by_source(data.summary()),
        "test": {task.name: _items(task) for task in tasks},
        "model": contents(model, "config.json"),
        "adapter": {} if adapter is None else contents(adapter, model_folder.ADAPTER_CONFIG),
        "code": {"tuneprune": version("tuneprune"), "sources": sources()},
        "place": place,
        "around": around,
    }


def refusals(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for every kind of thing that differs and may not, with its first difference."""
    found = []
    for kind, what in KINDS.items():
        changes = list(_changes(old.get(kind, {}), new.get(kind, {})))
        if changes:
            more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
            found.append(f"{what} ({changes[0]}{more})")
    return found


def announcements(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for everything that may differ, as it changes the last bits of numbers at most."""
    return list(_changes(old.get("around", {}), new.get("around", {})))


def contents(model: str, marker: str) -> dict[str, str]:
    """The sha256 of every file of a model or adapter that is read, by name.

    Args:
        marker: a file that it has for sure.
    """
    folder = Path(model) if Path(model).is_dir() else Path(cached_file(model, marker) or "").parent
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    with ThreadPoolExecutor(4) as pool:
        return dict(zip([path.name for path in files], pool.map(_sha256, files), strict=True))


@cache
def sources() -> str:
    """The hash of the package's own files as this process found them: an edited checkout is another version."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(package)}\0{_sha256(path)}\0".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _by_source(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary of data with its sources by name instead of in a list, so that a difference names one."""
    named = dict(summary)
    for part in ("train", "calibration"):
        sources = named[part]["sources"]
        by_name = {f"{index}: {source['source']}": source for index, source in enumerate(sources, start=1)}
        named[part] = named[part] | {"sources": by_name}
    return named


def _items(task: LoadedTask) -> dict[str, Any]:
    items = [(item.prompt, item.completion, item.choices, item.body, item.body_keeps) for item in task.examples]
    return {"items": len(items), "sha256": hashlib.sha256(json.dumps(items).encode()).hexdigest()}


def _changes(old: object, new: object, place: str = "") -> Iterator[str]:
    """What differs between two nested mappings, as `key.path: old value, now new value`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{place}.{key}" if place else str(key)
            yield from _changes(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{place or 'the whole'}: was {_shown(old)}, is {_shown(new)}"


def _shown(value: object) -> str:
    """A value as a sentence can hold it."""
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}…" if is_hash else text if len(text) <= 60 else f"{text[:59]}…"
