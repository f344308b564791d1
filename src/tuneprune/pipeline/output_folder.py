"""The output folder of a run: which run it belongs to, what that run depends on, and a lock against other processes.

A run is resumed under the same settings, data, model and code or not at all; another environment is only noted.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from transformers.utils.hub import cached_file

from tuneprune.config import RecoverConfig, RunConfig
from tuneprune.data import Data
from tuneprune.errors import ConfigError
from tuneprune.evaluate import LoadedTask
from tuneprune.system import model_folder, yaml_files
from tuneprune.system.environment import environment
from tuneprune.system.locks import LOCK, FolderLock
from tuneprune.system.storage import delete_partial_files, disk_errors_explained, make_folder, write_text

SETTINGS, IDENTITY = "config.yaml", "identity.json"
FORMAT = 1
SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja", ".tiktoken")
"""Files of a model that affect a run: weights, configs, tokenizer."""
KINDS = {
    "settings": "another configuration",
    "data": "other data",
    "test": "other test items",
    "model": "another model",
    "adapter": "another adapter",
    "code": "another version of tuneprune",
    "place": "another number of processes or kind of device",
}
"""What must not change, and how a change is reported."""
Identity = dict[str, Any]


def open_folder(
    out: Path, config: RunConfig | RecoverConfig, identity: Identity, *, resume: bool, note: Callable[[str], None]
) -> FolderLock:
    """Create the folder of this run, or reopen it to resume; no other process can use it until the lock is released.

    Args:
        identity: what the run depends on besides its configuration.
        note: called with every difference that does not prevent resuming.

    Raises:
        ConfigError: another process uses it, it belongs to another run, or to this one and `resume` was not given.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Name a folder.")
    with disk_errors_explained(out):
        is_begun = (out / SETTINGS).exists()
        if is_begun and not (out / LOCK).exists():
            _compare(out, config, identity, resume=resume)  # refused before the lock file would change the folder
        if not is_begun and out.exists() and not all(_is_leftover(path) for path in out.iterdir()):
            raise ConfigError(f"--out {out} is not empty and holds no run. Name a new folder.")
        make_folder(out)
        lock = FolderLock(out)
        try:
            is_begun = (out / SETTINGS).exists()  # another process may have begun it before this one had the lock
            for change in _compare(out, config, identity, resume=resume) if is_begun else ():
                note(f"resumed in another environment, so the last bits of numbers may differ: {change}")
            delete_partial_files(out)
            if not is_begun:
                write_text(out / IDENTITY, json.dumps(identity, indent=1) + "\n")
                write_text(out / SETTINGS, config.to_yaml())  # last: from now on this is a run's folder
        except BaseException:
            lock.release()
            raise
    return lock


def stored_identity(out: Path, config: RunConfig | RecoverConfig) -> dict[str, Any]:
    """What identifies the checkpoints in a run's folder: the settings, and what else must not change.

    Every process of a run reads it there, so that only one of them has to hash the whole model.
    """
    identity = _stored(out)
    return {"settings": _settings(config)} | {key: value for key, value in identity.items() if key != "around"}


def _compare(out: Path, config: RunConfig | RecoverConfig, identity: Identity, *, resume: bool) -> list[str]:
    """What has changed in the environment since the run in `out` began.

    Raises:
        ConfigError: it is another run, or this one and `resume` was not given.
    """
    if not resume:
        raise ConfigError(f"--out {out} already holds a run. Continue it with --resume, or name another folder.")
    try:
        settings = yaml_files.load_file(out / SETTINGS)
    except ConfigError as error:
        raise ConfigError(
            f"{out / SETTINGS} cannot be read, so nothing can be resumed here. Name another --out."
        ) from error
    old, new = {"settings": settings}, {"settings": _settings(config)}
    differing = refused_changes(old, new)
    if not differing or (out / IDENTITY).exists():
        old |= _stored(out)
        differing = refused_changes(old, new | identity)
    if differing:
        raise ConfigError(
            f"--out {out} holds a run with {', and '.join(differing)}. Resume it with what it was begun with, or name"
            " another --out."
        )
    return environment_changes(old, identity)


def _is_leftover(path: Path) -> bool:
    """Whether `open_folder` leaves this file when it is killed halfway."""
    return path.name in (LOCK, IDENTITY) or (path.name.startswith(".") and path.name.endswith(".partial"))


def _settings(config: RunConfig | RecoverConfig) -> dict[str, Any]:
    return yaml.safe_load(config.to_yaml())


def _stored(out: Path) -> Identity:
    """The identity of the run in a folder.

    Raises:
        ConfigError: a missing or unreadable file, or one of another format.
    """
    try:
        identity = json.loads((out / IDENTITY).read_text(encoding="utf8"))
        is_known = identity["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_known, identity = False, {}
    if not is_known:
        raise ConfigError(
            f"--out {out} has no {IDENTITY} that this version of tuneprune reads, so it is unknown what the run"
            " there depends on. Finish it with the version that began it, or name another --out."
        )
    return identity


def identify(
    data: Data, tasks: Sequence[LoadedTask], model: str, adapter: str | None, accelerator: Accelerator | None
) -> Identity:
    """What a run's result depends on besides its settings, in readable form, and what may change its last bits.

    Args:
        model: folder or hub id; every weight file is read in full, as sampling would miss a change of a few layers.
        accelerator: None for a comparison, whose runs have an identity each.
    """
    place, around = {"processes": 1}, {}
    if accelerator is not None:
        place = {"processes": accelerator.num_processes, "device": accelerator.device.type}
        elsewhere = ("processes", "tuneprune", "commit")
        around = {name: value for name, value in environment(accelerator).items() if name not in elsewhere}
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


def refused_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for every kind of change that prevents resuming, with its first difference."""
    found = []
    for kind, what in KINDS.items():
        changes = list(_changes(old.get(kind, {}), new.get(kind, {})))
        if changes:
            more = f", and {len(changes) - 1} more" if len(changes) > 1 else ""
            found.append(f"{what} ({changes[0]}{more})")
    return found


def environment_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One phrase for every change that is allowed, as it affects the last bits of numbers at most."""
    return list(_changes(old.get("around", {}), new.get("around", {})))


def contents(model: str, marker: str) -> dict[str, str]:
    """The sha256 of every file of a model or adapter that is read, by name.

    Args:
        marker: a file that it certainly has.
    """
    if Path(model).is_file():  # a GGUF file
        return {Path(model).name: _sha256(Path(model))}
    folder = Path(model) if Path(model).is_dir() else Path(cached_file(model, marker) or "").parent
    files = sorted(path for path in folder.iterdir() if path.suffix in SUFFIXES and path.is_file())
    with ThreadPoolExecutor(4) as pool:
        return dict(zip([path.name for path in files], pool.map(_sha256, files), strict=True))


@cache
def sources() -> str:
    """The hash of the package's own files, so that an edited checkout counts as another version."""
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
    """A summary of data with its sources by name instead of in a list, so that a difference names its source."""
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
    """The differences between two nested mappings, as `key.path: was old value, is new value`."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in [*old, *(key for key in new if key not in old)]:
            inner = f"{place}.{key}" if place else str(key)
            yield from _changes(old.get(key), new.get(key), inner)
    elif old != new:
        yield f"{place or 'the whole'}: was {_shown(old)}, is {_shown(new)}"


def _shown(value: object) -> str:
    """A value, shortened to fit into a sentence."""
    text = "absent" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:12]}…" if is_hash else text if len(text) <= 60 else f"{text[:59]}…"
