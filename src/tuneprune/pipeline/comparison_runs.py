"""The runs of a comparison: every method at every budget with every seed, and the dense references they need."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneprune import methods
from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError, DataError, TunePruneError, suggest, wrap_errors
from tuneprune.methods.base import Method
from tuneprune.pipeline.job import prepare
from tuneprune.pipeline.record import PROOF_FAILED
from tuneprune.pipeline.run import reference_scores, run
from tuneprune.pipeline.validation import Checked, check, check_shape
from tuneprune.report import ReferenceRecord, RunRecord, ScoreRecord
from tuneprune.structure.spaces import SPACES
from tuneprune.system import yaml_files
from tuneprune.system.progress import Progress
from tuneprune.system.storage import write_text

MANIFEST = "cells.json"


@dataclass(frozen=True)
class Entry:
    """One method of a comparison with its options, and the space it prunes."""

    label: str
    method: Method
    space: str


@dataclass(frozen=True)
class ComparisonRun:
    """One run of a comparison, in the folder `name`; one without a label is a dense reference.

    `needs` names the references whose scores it is given, the one of its own seed last.
    """

    name: str
    config: RunConfig
    label: str | None = None
    needs: tuple[str, ...] = ()

    def result(self, out: Path) -> Path:
        """The file that the run writes last."""
        return out / self.name / ("record.json" if self.label else "reference.json")

    def is_complete(self, out: Path) -> bool:
        """Whether the run has a valid result: a model whose proof failed is not one."""
        return self.result(out).exists() and not (out / self.name / "model" / PROOF_FAILED).exists()


def entry(text: str, config: RunConfig) -> Entry:
    """The method that `text` names: `name` or `name:option=value:...`; `space=` chooses its space.

    The run file's own options apply to its own method. A method that does not support the run file's space gets the
    first one that it does support.

    Raises:
        ConfigError: an unknown method, option or space, a value out of range, or a budget that is not met on disk.
    """
    label = text.strip()
    name, *settings = label.split(":")
    options: dict[str, Any] = {"name": name}
    if name == config.method.title:
        options |= config.method.model_dump()
    for setting in settings:
        key, separator, value = setting.partition("=")
        if not separator or not key:
            raise ConfigError(f"--methods {label}: write options as name:option=value, not `{setting}`.")
        options[key] = yaml_files.load(value, f"--methods {label}: {key}")
    space = options.pop("space", None)
    try:
        method = methods.build(options)
    except ConfigError as error:
        raise ConfigError(f"--methods {label}: {error}") from error
    if not method.is_sized_on_disk:
        raise ConfigError(
            f"--methods {label}: its budget is met by what one token uses, so it would be compared at a larger size"
            " than the others. Set budget_counts=total, or run it alone."
        )
    if space is None:
        space = config.space if config.space in method.spaces else method.spaces[0]
    if space not in method.spaces:
        known = ", ".join(method.spaces)
        hint = suggest(str(space), SPACES) if space not in SPACES else ""
        raise ConfigError(f"--methods {label}: `{name}` does not support space `{space}`; it supports {known}.{hint}")
    return Entry(label, method, space)


def entries(texts: Sequence[str], config: RunConfig) -> list[Entry]:
    """All methods of a comparison.

    Raises:
        ConfigError: one that is not valid, or one that is named twice.
    """
    found = [entry(text, config) for text in texts]
    if len({_slug(one.label) for one in found}) < len(found):
        raise ConfigError(f"--methods {','.join(texts)}: name every method once.")
    return found


def plan_runs(
    config: RunConfig, chosen: Sequence[Entry], keeps: Sequence[float], seeds: Sequence[int]
) -> list[ComparisonRun]:
    """Every method at every budget with every seed, one budget after the other, references first.

    Budgets are the outermost loop, so that the scores of one method and seed exist when its next budget asks for them.
    A reference is the dense model tuned alike, once a seed; the first one also scores the dense model itself, and is
    the only one if the run file has no `reference`.
    """
    found: list[ComparisonRun] = []
    needs: dict[int, tuple[str, ...]] = {}
    for seed in seeds if config.reference else seeds[:1]:
        name, earlier = f"reference-seed{seed}", tuple(reference.name for reference in found[:1])
        found.append(ComparisonRun(name, config.model_copy(update={"seed": seed}), None, earlier))
        needs[seed] = (*earlier, name)
    for keep in keeps:
        for seed in seeds:
            for one in chosen:
                budget = config.budget.model_copy(update={"keep": keep})
                changes = {"method": one.method, "space": one.space, "budget": budget, "seed": seed}
                name = f"{_slug(one.label)}-keep{keep:g}-seed{seed}"
                references = needs.get(seed, needs[seeds[0]])
                found.append(ComparisonRun(name, config.model_copy(update=changes), one.label, references))
    return found


def check_runs(runs: Iterable[ComparisonRun], config: RunConfig, out: Path) -> Checked[RunConfig]:
    """Every check that needs no training, for all runs together.

    Raises:
        TunePruneError: the first problem, with the method and the budget it is about.
    """
    checked = check(config)
    seen: set[tuple[str, float]] = set()
    for planned in runs:
        keep = planned.config.budget.keep
        if planned.label is not None and (planned.label, keep) not in seen:
            seen.add((planned.label, keep))
            try:
                check_shape(planned.config, checked.hf_config)
                planned.config.method.check_steps(checked.config.tune.steps)
            except TunePruneError as error:
                raise ConfigError(f"{planned.label} at keep {keep:g}: {error}") from error
        resolved = out / planned.name / "config.yaml"
        if resolved.exists() and resolved.read_text(encoding="utf8", errors="replace") != planned.config.to_yaml():
            raise ConfigError(
                f"{out / planned.name} holds a run with another configuration, perhaps of another version."
                " Delete that folder, or name another --out."
            )
    return checked


def perform(planned: ComparisonRun, out: Path, progress: Progress) -> None:
    """Start or resume one run of a comparison; its references must be complete.

    Raises:
        TunePruneError: something the user can fix.
        Stopped: a signal ended it after its state was saved.
    """
    folder = out / planned.name
    resume = (folder / "config.yaml").exists()
    known = ScoreRecord()
    for name in planned.needs:
        found = ReferenceRecord.load(out / name / "reference.json").scores
        known = ScoreRecord(dense=known.dense or found.dense, dense_tuned=found.dense_tuned)
    if planned.label is not None:
        run(planned.config, folder, resume=resume, progress=progress, reference=known, store=out / "scores")
        return
    job = prepare(planned.config, folder, resume=resume, progress=progress)
    with job.lock:
        dense, tuned = reference_scores(job, ScoreRecord(dense=known.dense))
        if job.accelerator.is_main_process:
            content = {"schema": 1, "seed": job.config.seed, "scores": {"dense": dense, "dense_tuned": tuned}}
            record = ReferenceRecord.from_data(content | job.resources(), "reference")
            record.save(planned.result(out))
        job.close()


def add_to_manifest(runs: Iterable[ComparisonRun], out: Path) -> None:
    """Note in `cells.json` which runs the comparison has, in addition to those of earlier calls."""
    known = _manifest(out)
    for planned in runs:
        if planned.label is not None:
            known.setdefault(planned.name, planned.label)
    write_text(out / MANIFEST, json.dumps({"schema": 1, "cells": known}, indent=1) + "\n")


def finished(out: Path) -> dict[str, RunRecord]:
    """The records of all complete runs by name, those of earlier calls included, labelled as they were named.

    A model whose proof failed is not compared.
    """
    records = {}
    for name, label in _manifest(out).items():
        path = out / name / "record.json"
        if path.exists() and not (out / name / "model" / PROOF_FAILED).exists():
            records[name] = RunRecord.load(path).model_copy(update={"label": label})
    return records


def references(out: Path) -> list[ReferenceRecord]:
    """The records of all complete references."""
    return [ReferenceRecord.load(path) for path in sorted(out.glob("reference-seed*/reference.json"))]


def _manifest(out: Path) -> dict[str, str]:
    """The labels of all runs by the names of their folders.

    Raises:
        DataError: a damaged file, or names of folders elsewhere.
    """
    path = out / MANIFEST
    if not path.exists():
        return {}
    with wrap_errors(f"{path} cannot be read", DataError):
        known: dict[str, str] = json.loads(path.read_text(encoding="utf8"))["cells"]
        foreign = next(
            (name for name, label in known.items() if _slug(name) != name or not isinstance(label, str)), None
        )
    if foreign is not None or {".", ".."} & known.keys():
        raise DataError(f"{path} names {foreign or '..'!r}, which is not a run of a comparison. Restore the file.")
    return known


def _slug(label: str) -> str:
    """`label` as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", label)
