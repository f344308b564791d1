"""The output folder of a run: whose it is, what it depends on, and that nobody else writes to it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tuneprune.config import RecoverConfig, RunConfig
from tuneprune.errors import ConfigError
from tuneprune.pipeline.identity import FORMAT, Identity, announcements, refusals
from tuneprune.system import yaml_files
from tuneprune.system.locks import LOCK, FolderLock
from tuneprune.system.storage import delete_partial_files, disk_errors_explained, make_folder, write_text

SETTINGS, IDENTITY = "config.yaml", "identity.json"


def claim(
    out: Path, config: RunConfig | RecoverConfig, identity: Identity, *, resume: bool, note: Callable[[str], None]
) -> FolderLock:
    """Make `out` this run's folder, and this process's until the lock is released.

    Args:
        identity: what the run depends on beside its configuration.
        note: told what differs though the run may go on.

    Raises:
        ConfigError: another process works there, it belongs to another run, or to this one and `resume` was not given.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file. Name a folder.")
    with disk_errors_explained(out):
        if (out / SETTINGS).exists() and not (out / LOCK).exists():
            _compare(out, config, identity, resume=resume)  # refused without a trace: the lock's file would be one
        if out.exists() and not (out / SETTINGS).exists() and not all(_is_own(path) for path in out.iterdir()):
            raise ConfigError(f"--out {out} is not empty and holds no run. Name a new folder.")
        make_folder(out)
        lock = FolderLock(out)
        try:
            _take(out, config, identity, resume=resume, note=note)
        except BaseException:
            lock.release()
            raise
    return lock


def fingerprinted(out: Path, config: RunConfig | RecoverConfig) -> dict[str, Any]:
    """What checkpoints in a claimed folder are known by: the settings, and what else may not differ.

    Every process of a run reads it there, so that only one of them has to read the whole model.
    """
    identity = _stored(out)
    return {"settings": _settings(config)} | {key: value for key, value in identity.items() if key != "around"}


def _take(
    out: Path, config: RunConfig | RecoverConfig, identity: Identity, *, resume: bool, note: Callable[[str], None]
) -> None:
    """Go on in a folder that was begun with this run, or begin it."""
    if (out / SETTINGS).exists():
        for change in _compare(out, config, identity, resume=resume):
            note(f"resumed in another environment, so the last bits of numbers may differ: {change}")
    delete_partial_files(out)
    if not (out / SETTINGS).exists():
        write_text(out / IDENTITY, json.dumps(identity, indent=1) + "\n")
        write_text(out / SETTINGS, config.to_yaml())  # last: from now on this is a run's folder


def _compare(out: Path, config: RunConfig | RecoverConfig, identity: Identity, *, resume: bool) -> list[str]:
    """What of the environment is another than when the run in `out` began.

    Raises:
        ConfigError: it is another run, or this one and `resume` was not given.
    """
    if not resume:
        raise ConfigError(f"--out {out} already holds a run. Continue it with --resume, or name another folder.")
    old, new = {"settings": _settings_in(out / SETTINGS)}, {"settings": _settings(config)}
    differing = refusals(old, new)
    if not differing or (out / IDENTITY).exists():
        old |= _stored(out)
        differing = refusals(old, new | identity)
    if differing:
        raise ConfigError(
            f"--out {out} holds a run with {', and '.join(differing)}. Resume it with what it was begun with, or name"
            " another --out."
        )
    return announcements(old, identity)


def _is_own(path: Path) -> bool:
    """Whether this is what a claim leaves that was killed before its end."""
    return path.name in (LOCK, IDENTITY) or (path.name.startswith(".") and path.name.endswith(".partial"))


def _settings(config: RunConfig | RecoverConfig) -> dict[str, Any]:
    return yaml.safe_load(config.to_yaml())


def _settings_in(path: Path) -> yaml_files.RawYaml:
    try:
        return yaml_files.load_file(path)
    except ConfigError as error:
        raise ConfigError(f"{path} cannot be read, so nothing can be resumed here. Name another --out.") from error


def _stored(out: Path) -> Identity:
    """The identity that a folder was claimed under.

    Raises:
        ConfigError: it has none that can be read.
    """
    try:
        identity = json.loads((out / IDENTITY).read_text(encoding="utf8"))
        is_known = identity["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        is_known, identity = False, {}
    if not is_known:
        raise ConfigError(
            f"--out {out} has no {IDENTITY} that this version of tuneprune reads, so it cannot tell what the run there"
            " depends on. Finish it with the version that began it, or name another --out."
        )
    return identity
