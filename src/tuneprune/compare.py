"""Several methods on the same model, data, steps and size, beside the dense model and the dense model tuned alike."""

from collections.abc import Sequence
from pathlib import Path

from tuneprune import methods
from tuneprune.config import RunConfig
from tuneprune.errors import ConfigError
from tuneprune.job import check, claim, processes
from tuneprune.progress import Progress
from tuneprune.recording import read_metrics
from tuneprune.report import RunRecord, markdown_table, write_atomically, write_report
from tuneprune.run import run


def compare(
    config: RunConfig,
    names: Sequence[str],
    out: Path,
    *,
    seeds: Sequence[int] = (),
    resume: bool = False,
    progress: Progress | None = None,
) -> list[RunRecord]:
    """One run a method and seed, each in `out/<method>` (`out/<method>-seed<n>` where there are several seeds).

    The dense references are tuned and evaluated once, with the first seed.

    Writes `report.html`, which shows the first method's run beside the others, and `table.md`.

    Raises:
        ConfigError: an unknown method, one named twice, or one that does not support the space.
    """
    progress = progress or Progress()
    if len(set(names)) < len(names):
        raise ConfigError(f"--methods {','.join(names)}: name every method once.")
    seeds = seeds or (config.seed,)
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise ConfigError(f"--seeds {','.join(map(str, seeds))}: name different whole numbers from 0 up.")
    config = config.model_copy(update={"seed": seeds[0]})
    configs = {
        name if len(seeds) == 1 else f"{name}-seed{seed}": with_method(config, name).model_copy(update={"seed": seed})
        for name in names
        for seed in seeds
    }
    check(config)
    accelerator = processes(config, out)
    if accelerator.is_main_process:
        claim(out, config, resume=resume)
    accelerator.wait_for_everyone()
    records: list[RunRecord] = []
    for name, single in configs.items():
        folder = out / name
        progress.stage(f"== {name}")
        if (folder / "record.json").exists():
            records.append(RunRecord.load(folder / "record.json"))
            continue
        known = records[0] if records else None
        resumed = (folder / "config.yaml").exists()
        records.append(run(single, folder, resume=resumed, progress=progress, reference=known))
    if accelerator.is_main_process:
        first = out / next(iter(configs))
        metrics, reference = (read_metrics(first / part) for part in ("metrics.jsonl", "reference/metrics.jsonl"))
        write_report(records[0], None, metrics, config.to_yaml(), out, others=records, reference=reference)
        write_atomically(out / "table.md", markdown_table(records))
    return records


def with_method(config: RunConfig, name: str) -> RunConfig:
    """The same run by another method; the run file's hyper-parameters stay with the method they were written for.

    Raises:
        ConfigError: an unknown method, or one that does not support the space.
    """
    if name == config.method.title:
        return config
    method = methods.build({"name": name})
    if config.space not in method.spaces:
        raise ConfigError(
            f"method `{name}` does not support space `{config.space}`; it supports {', '.join(method.spaces)}."
        )
    return config.model_copy(update={"method": method})
