"""Compare methods on the same model, data, steps and sizes, next to the dense model and the dense model tuned alike."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError
from tuneprune.pipeline import comparison_runs
from tuneprune.pipeline.comparison_runs import ComparisonRun, Entry
from tuneprune.pipeline.job import make_accelerator
from tuneprune.pipeline.output_folder import identify, open_folder
from tuneprune.pipeline.workers import Pool
from tuneprune.report import ComparisonRecord, write_comparison
from tuneprune.system.processes import check_launcher, wait_for_all, world_size
from tuneprune.system.progress import Progress


@dataclass(frozen=True)
class Outcome:
    """The record of a comparison, None where no run is complete, and one sentence for every run that failed."""

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
    """One run for each method, budget and seed, in `out/<method>-keep<share>-seed<n>`; `docs/compare.md` has the rules.

    A run that fails does not affect the others. Resuming may name other methods, budgets and seeds: complete runs
    stay, and the tables show all of them.

    Args:
        methods: `name` or `name:option=value:...`; the first is what the others are compared with.
        keeps: shares of all parameters to keep; by default the run file's.
        seeds: by default the run file's.
        against: the method that the others are compared with, if not the first.
        jobs: runs at a time, each in a process of one thread.

    Raises:
        ConfigError: anything wrong with any run, before the first one starts.
        Stopped: a signal ended it after the states of all runs were saved; call again with `resume`.
    """
    progress = progress or Progress()
    chosen = comparison_runs.entries(methods, config)
    keeps, seeds = tuple(keeps) or (config.budget.keep,), tuple(seeds) or (config.seed,)
    against = check_options(config, chosen, keeps, seeds, against, jobs)
    for one in chosen:
        if one.space != config.space:
            progress.stage(f"{one.label} prunes space `{one.space}`, not the run file's `{config.space}`")
    runs = comparison_runs.plan_runs(config, chosen, keeps, seeds)
    checked = comparison_runs.check_runs(runs, config, out)
    check_launcher()
    accelerator = make_accelerator(config, out) if world_size() > 1 else None
    is_writer = accelerator is None or accelerator.is_main_process
    with ExitStack() as held:
        if is_writer:
            identity = identify(checked.data, checked.tasks, config.model.base, config.model.adapter, accelerator)
            held.enter_context(open_folder(out, config, identity, resume=resume, note=progress.note))
            comparison_runs.add_to_manifest(runs, out)
        if accelerator is None:
            progress.detail(checked.data.words())
            failed = Pool(runs, out, jobs, progress).work()
        else:
            perform_together(runs, accelerator, out, progress)
            failed = {}
        records = comparison_runs.finished(out)
        if not records:
            return Outcome(None, failed)
        comparison = ComparisonRecord.of(records, comparison_runs.references(out), against, failed)
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
    """The label of the method that the others are compared with.

    Raises:
        ConfigError: values that allow no comparison, or no fair one.
    """
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: name different whole numbers from 0 up.")
    if len(set(keeps)) < len(keeps) or not all(0 < keep <= 1 for keep in keeps):
        listed = ",".join(f"{keep:g}" for keep in keeps)
        raise ConfigError(f"--keep {listed}: name different shares above 0 and up to 1.")
    if jobs < 1 or (jobs > 1 and world_size() > 1):
        raise ConfigError(f"--jobs {jobs}: use 1 or more, and 1 where several processes were launched.")
    if config.budget.of != "total":
        raise ConfigError(
            "compare gives every method the same share of all parameters, but the run file has"
            f" budget.of={config.budget.of}: prunable parameters differ from space to space, and bytes and time are not"
            " shares of parameters. Use budget.of=total."
        )
    for name, setting in (("at_most", f"={config.budget.at_most}"), ("widths", "")):
        if getattr(config.budget, name) is not None:
            raise ConfigError(
                f"compare gives every method shares of all parameters, but the run file has budget.{name}{setting}. Use"
                " budget.keep, or --keep."
            )
    labels = [one.label for one in chosen]
    if against is not None and against not in labels:
        raise ConfigError(f"--against {against}: name one of --methods: {', '.join(labels)}.")
    return against or labels[0]


def perform_together(runs: Sequence[ComparisonRun], accelerator: Accelerator, out: Path, progress: Progress) -> None:
    """Let all launched processes work on one run after the other; the first failure ends the comparison."""
    wait_for_all(accelerator)
    remaining = [planned for planned in runs if not planned.is_complete(out)]
    wait_for_all(accelerator)  # no process may complete a run before all have looked for it
    for planned in remaining:
        progress.stage(f"== {planned.name}")
        comparison_runs.perform(planned, out, progress)
