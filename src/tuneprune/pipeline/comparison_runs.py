"""The cells of a comparison: every method at every budget with every seed, and the dense references they need."""

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
from tuneprune.model.loading import load_config
from tuneprune.pipeline.job import Checked, check, check_shape, prepare
from tuneprune.pipeline.record import PROOF_FAILED
from tuneprune.pipeline.run import reference_scores, run
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
class Cell:
    """One run of a comparison, in the folder `name`; a cell without a label is a dense reference.

    `needs` names the references whose scores it is given, the one of its own seed last.
    """

    name: str
    config: RunConfig
    label: str | None = None
    needs: tuple[str, ...] = ()

    def result(self, out: Path) -> Path:
        """The file that the cell writes last."""
        return out / self.name / ("record.json" if self.label else "reference.json")

    def is_complete(self, out: Path) -> bool:
        """Whether the cell has a result that counts; a model whose proof failed does not."""
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
        ConfigError: one that cannot be, or one that is named twice.
    """
    found = [entry(text, config) for text in texts]
    if len({_slug(one.label) for one in found}) < len(found):
        raise ConfigError(f"--methods {','.join(texts)}: name every method once.")
    return found


def cells_of(config: RunConfig, chosen: Sequence[Entry], keeps: Sequence[float], seeds: Sequence[int]) -> list[Cell]:
    """Every method at every budget with every seed, one budget after the other, references first.

    Budgets come last to be repeated, so that scores of one method and seed are there when its next budget asks.
    """
    references = reference_cells(config, seeds)
    by_seed = {cell.config.seed: cell for cell in references}
    found = list(references)
    for keep in keeps:
        for seed in seeds:
            reference = by_seed.get(seed, references[0])
            for one in chosen:
                budget = config.budget.model_copy(update={"keep": keep})
                changes = {"method": one.method, "space": one.space, "budget": budget, "seed": seed}
                name = f"{_slug(one.label)}-keep{keep:g}-seed{seed}"
                needs = tuple(dict.fromkeys((references[0].name, reference.name)))
                found.append(Cell(name, config.model_copy(update=changes), one.label, needs))
    return found


def reference_cells(config: RunConfig, seeds: Sequence[int]) -> list[Cell]:
    """The dense model tuned alike, once a seed; without `reference`, one cell that scores the dense model only.

    The dense model itself is scored by the first.
    """
    found: list[Cell] = []
    for seed in seeds if config.reference else seeds[:1]:
        needs = (found[0].name,) if found else ()
        found.append(Cell(f"reference-seed{seed}", config.model_copy(update={"seed": seed}), None, needs))
    return found


def check_cells(cells: Iterable[Cell], config: RunConfig, out: Path) -> Checked:
    """Every check that needs no training, for all cells together.

    Raises:
        TunePruneError: the first problem, with the method and the budget it is about.
    """
    checked = check(config)
    hf_config = load_config(config.model.base, config.model.adapter)
    seen: set[tuple[str, float]] = set()
    for cell in cells:
        shape = (cell.config.space, cell.config.budget.keep)
        if cell.label is not None and shape not in seen:
            seen.add(shape)
            try:
                check_shape(cell.config, hf_config)
            except TunePruneError as error:
                raise ConfigError(f"{cell.label} at keep {shape[1]:g}: {error}") from error
        resolved = out / cell.name / "config.yaml"
        if resolved.exists() and resolved.read_text(encoding="utf8", errors="replace") != cell.config.to_yaml():
            raise ConfigError(
                f"{out / cell.name} holds a run with another configuration, perhaps of another version."
                " Delete that folder, or name another --out."
            )
    return checked


def perform(cell: Cell, out: Path, progress: Progress) -> None:
    """Run one cell, or what is left of it; its references must be complete.

    Raises:
        TunePruneError: something the user can fix.
        Stopped: a signal ended it after its state was saved.
    """
    folder = out / cell.name
    resume = (folder / "config.yaml").exists()
    known = ScoreRecord()
    for name in cell.needs:
        found = ReferenceRecord.load(out / name / "reference.json").scores
        known = ScoreRecord(dense=known.dense or found.dense, dense_tuned=found.dense_tuned)
    if cell.label is not None:
        run(cell.config, folder, resume=resume, progress=progress, reference=known, store=out / "scores")
        return
    job = prepare(cell.config, folder, resume=resume, progress=progress)
    with job.lock:
        dense, tuned = reference_scores(job, ScoreRecord(dense=known.dense))
        if job.accelerator.is_main_process:
            content = {
                "schema": 1,
                "seed": cell.config.seed,
                "scores": {"dense": dense, "dense_tuned": tuned},
                "time": job.seconds | {f"{stage}_s": result.seconds for stage, result in job.results.items()},
                "memory": {"peak_bytes": max((result.peak_bytes for result in job.results.values()), default=None)},
            }
            ReferenceRecord.from_data(content, "reference").save(cell.result(out))
        job.close()


def remember(cells: Iterable[Cell], out: Path) -> None:
    """Note in `cells.json` which cells the comparison has, beside those of earlier calls."""
    known = _manifest(out)
    for cell in cells:
        if cell.label is not None:
            known.setdefault(cell.name, cell.label)
    write_text(out / MANIFEST, json.dumps({"schema": 1, "cells": known}, indent=1) + "\n")


def finished(out: Path) -> dict[str, RunRecord]:
    """The records of all complete cells by name, those of earlier calls included, labelled as they were named.

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
    """The labels of all cells by the names of their folders.

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
        raise DataError(f"{path} names {foreign or '..'!r}, which is no cell of a comparison. Restore the file.")
    return known


def _slug(label: str) -> str:
    """`label` as the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._=-]+", "-", label)
