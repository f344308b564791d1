"""Several methods on the same model, data, steps and sizes, beside the dense model and the dense model tuned alike."""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError
from tuneprune.pipeline.comparison_runs import (
    Cell,
    Entry,
    cells_of,
    check_cells,
    entries,
    finished,
    perform,
    references,
    remember,
)
from tuneprune.pipeline.identity import identify
from tuneprune.pipeline.job import processes
from tuneprune.pipeline.output_folder import claim
from tuneprune.pipeline.workers import Crew
from tuneprune.report import ComparisonRecord, write_comparison
from tuneprune.system.processes import wait_for_all
from tuneprune.system.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """What a comparison found: None where no cell is complete, and one sentence for every cell that failed."""

    comparison: ComparisonRecord | None
    failed: dict[str, str]


def compare(
    config: RunConfig,
    methods: Sequence[str],
    out: Path,
    *,
    keeps: Sequence[float] = (),
    seeds: Sequence[int] = (),
    against: str | None = None,
    jobs: int = 1,
    resume: bool = False,
    progress: Progress | None = None,
) -> Outcome:
    """One run a method, budget and seed, each in `out/<method>-keep<share>-seed<n>`; `docs/compare.md` has the rules.

    A cell that fails leaves the others alone. Resuming may name other methods, budgets and seeds: what is complete
    stays, and the tables show all of it.

    Args:
        methods: `name` or `name:option=value:...`; the first is what the others are compared with.
        keeps: shares of all parameters to keep; by default the run file's.
        seeds: by default the run file's.
        against: the method that differences are taken to, if not the first.
        jobs: cells at a time, each in a process of one thread.

    Raises:
        ConfigError: anything wrong with any cell, before the first one starts.
        Stopped: a signal ended it after the states of all cells were saved; call again with `resume`.
    """
    progress = progress or Progress()
    chosen = entries(methods, config)
    keeps, seeds = tuple(keeps) or (config.budget.keep,), tuple(seeds) or (config.seed,)
    against = check_options(config, chosen, keeps, seeds, against, jobs)
    announce(chosen, config, progress)
    cells = cells_of(config, chosen, keeps, seeds)
    checked = check_cells(cells, config, out)
    accelerator = processes(config, out) if processes_launched() > 1 else None
    is_writer = accelerator is None or accelerator.is_main_process
    with ExitStack() as held:
        if is_writer:
            identity = identify(checked.data, checked.tasks, config.model.base, config.model.adapter, accelerator)
            held.enter_context(claim(out, config, identity, resume=resume, note=progress.note))
            remember(cells, out)
        if accelerator is None:
            progress.detail(checked.data.words())
            failed = Crew(cells, out, jobs, progress).work()
        else:
            failed = _together(cells, accelerator, out, progress=progress)
        records = finished(out)
        if not records:
            return Outcome(None, failed)
        comparison = ComparisonRecord.of(records, references(out), against, failed)
        if is_writer:
            write_comparison(comparison, config.to_yaml(), out)
    return Outcome(comparison, failed)


def check_options(
    config: RunConfig,
    chosen: Sequence[Entry],
    keeps: Sequence[float],
    seeds: Sequence[int],
    against: str | None,
    jobs: int,
) -> str:
    """The label that differences are taken to.

    Raises:
        ConfigError: values that make no comparison, or no fair one.
    """
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: name different whole numbers from 0 up.")
    if len(set(keeps)) < len(keeps) or not all(0 < keep <= 1 for keep in keeps):
        listed = ",".join(f"{keep:g}" for keep in keeps)
        raise ConfigError(f"--keep {listed}: name different shares above 0, and 1 at most.")
    if jobs < 1 or (jobs > 1 and processes_launched() > 1):
        raise ConfigError(f"--jobs {jobs}: use 1 or more, and 1 where several processes were launched.")
    if config.budget.of != "total":
        raise ConfigError(
            "compare gives every method the same share of all parameters, but the run file has"
            f" budget.of={config.budget.of}: prunable parameters differ from space to space, and bytes and time are no"
            " share of parameters. Use budget.of=total."
        )
    if config.budget.at_most is not None:
        raise ConfigError(
            f"compare gives every method shares of all parameters, but the run file has"
            f" budget.at_most={config.budget.at_most}. Use budget.keep, or --keep."
        )
    if config.budget.widths is not None:
        raise ConfigError(
            "compare gives every method shares of all parameters, but the run file has budget.widths. Use budget.keep,"
            " or --keep."
        )
    if config.recover is not None:
        raise ConfigError(
            "compare gives every method the same optimiser steps, which `recover` would add to some methods only."
            " Leave recover out, and raise tune.steps instead."
        )
    labels = [one.label for one in chosen]
    if against is not None and against not in labels:
        raise ConfigError(f"--against {against}: name one of --methods: {', '.join(labels)}.")
    return against or labels[0]


def announce(chosen: Sequence[Entry], config: RunConfig, progress: Progress) -> None:
    """Say which methods prune another space than the run file's."""
    for one in chosen:
        if one.space != config.space:
            progress.stage(f"{one.label} prunes space `{one.space}`, not the run file's `{config.space}`")


def processes_launched() -> int:
    """How many processes `accelerate launch` or torchrun started for this comparison."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def _together(cells: Sequence[Cell], accelerator: Accelerator, out: Path, *, progress: Progress) -> dict[str, str]:
    """All launched processes work on one cell after the other; the first failure ends the comparison."""
    wait_for_all(accelerator)
    todo = [cell for cell in cells if not cell.is_complete(out)]
    wait_for_all(accelerator)  # nobody may finish a cell that another still has to look for
    for cell in todo:
        progress.stage(f"== {cell.name}")
        perform(cell, out, progress)
    return {}
