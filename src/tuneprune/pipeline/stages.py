"""Single stages of a run, on files."""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from tuneprune import evaluate, export, families
from tuneprune.budget import Budget
from tuneprune.budget.latency_table import LatencyTable
from tuneprune.compress import compress, stream
from tuneprune.compress.shape import Shape
from tuneprune.config import Compensation, RunConfig, explain
from tuneprune.errors import ConfigError, DataError, wrap_errors
from tuneprune.evaluate import EvaluateConfig
from tuneprune.methods import registry
from tuneprune.model import loading
from tuneprune.model.corrections import follow_files
from tuneprune.model.gguf_files import plain_folder
from tuneprune.model.location import expand_name
from tuneprune.pipeline.budget_costs import measure_times
from tuneprune.pipeline.checks import check_test_tokens
from tuneprune.pipeline.job import Scores, prepare
from tuneprune.pipeline.output_folder import SETTINGS
from tuneprune.pipeline.record import run_metrics
from tuneprune.pipeline.run import decide
from tuneprune.report import RunRecord, write_report
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan
from tuneprune.system import model_folder, yaml_files
from tuneprune.system.progress import Progress
from tuneprune.system.storage import write_text


def evaluate_model(
    model: str, suites: list[str], limit: int | None, *, trust_remote_code: bool, batch_size: int | None = None
) -> Scores:
    """Scores of any model folder or hub id on suites, also of the pruned model of a run.

    Raises:
        TunePruneError: an unknown suite, missing data, or a model that does not load.
    """
    given = {"suite": suites, "limit": limit} | ({} if batch_size is None else {"batch_size": batch_size})
    try:
        config = EvaluateConfig.model_validate(given)
    except ValidationError as error:
        raise ConfigError(explain(error, EvaluateConfig)) from error
    model = plain_folder(expand_name(model))
    hf_config = loading.read_config(model, any_family=True, trust_remote_code=trust_remote_code)
    tokenizer = loading.load_tokenizer(model, hf_config)
    tasks = evaluate.load_tasks(config, tokenizer)
    check_test_tokens(tokenizer, tasks, loading.vocabulary(hf_config))
    loaded = _any_model(model, hf_config, torch.float32, trust_remote_code=trust_remote_code)
    return evaluate.evaluate(loaded, tokenizer, tasks, batch_size=config.batch_size, max_length=config.max_length)


def evaluate_on_tasks(
    model: str,
    tasks: list[str],
    limit: int | None,
    *,
    task_path: Path | None,
    trust_remote_code: bool,
    batch_size: int | None = None,
) -> Scores:
    """Scores of any model folder or hub id on tasks of lm-evaluation-harness, the same as its own command line gives.

    Raises:
        TunePruneError: the library is not installed, an unknown task, missing data, or a model that does not load.
    """
    for option, number in (("--limit", limit), ("--batch-size", batch_size)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} {number}: give at least 1.")
    model = plain_folder(expand_name(model))
    hf_config = loading.read_config(model, any_family=True, trust_remote_code=trust_remote_code)
    known = evaluate.find_tasks(tasks, task_path)
    tokenizer = loading.load_tokenizer(model, hf_config)
    loaded = _any_model(model, hf_config, "auto", trust_remote_code=trust_remote_code)
    return evaluate.evaluate_tasks(loaded, tokenizer, tasks, known, limit=limit, batch_size=batch_size or 16)


def _any_model(
    model: str, config: PretrainedConfig, dtype: torch.dtype | str, *, trust_remote_code: bool
) -> PreTrainedModel:
    """A model of any kind that transformers loads, on the GPU if there is one.

    Raises:
        ConfigError: it does not load, or it needs code that the user does not trust.
    """
    with wrap_errors(f"cannot load {model}"):
        has_own_code = loading.needs_own_code(config)
    if has_own_code and not trust_remote_code:
        raise ConfigError(f"{model} comes with its own model code: add --trust-remote-code.")
    model_folder.check_index(model, "model")
    with wrap_errors(f"cannot load {model}"):
        if not has_own_code:
            loading.check_room(model, loading.skeleton(config))
        options = loading.SAFELY | {"trust_remote_code": trust_remote_code, "config": config, "dtype": dtype}
        loaded = AutoModelForCausalLM.from_pretrained(model, **options)
    device: Any = "cuda" if torch.cuda.is_available() else "cpu"
    return loaded.to(device).eval()


def measure_table(model: str, out: Path, phase: str, batch_size: int, multiple_of: str) -> LatencyTable:
    """Measure a model's layers and write the table to the file `out`.

    Raises:
        TunePruneError: a model whose layers cannot be measured, an option out of range, or an unwritable file.
    """
    multiple = yaml_files.load(multiple_of, "--multiple-of")
    options = {"phase": phase, "batch_size": batch_size, "multiple_of": multiple}
    try:
        budget = Budget.model_validate({"of": "latency"} | options)
    except ValidationError as error:
        raise ConfigError(explain(error, Budget)) from error
    table = measure_times(loading.load_config(expand_name(model)), budget)
    write_text(out, table.model_dump_json(indent=1) + "\n")
    return table


def plan_model(config: RunConfig, out: Path, progress: Progress) -> Plan:
    """Decide by a one-shot method and write the plan to `out/plan`, without tuning or cutting anything.

    A folder in which the same decision was begun or made before is used again, with the same bytes as the result.

    Raises:
        TunePruneError: a method that decides while it tunes, or what is wrong with the run file.
    """
    if not config.method.one_shot:
        one_shot = ", ".join(name for name, method in registry().items() if method.one_shot)
        raise ConfigError(
            f"method `{config.method.title}` decides while it tunes, so there is no plan without a run: use `tuneprune"
            f" run`, which writes one too. Methods that decide at once are {one_shot}."
        )
    config = config.model_copy(update={"compensate": Compensation()})  # changes weights, which are not in a plan
    job = prepare(config, out, resume=(out / SETTINGS).exists(), progress=progress)
    with job.lock:
        return decide(job)[1]


def compress_model(
    model: str,
    plan_folder: Path,
    out: Path,
    adapter: str | None = None,
    *,
    max_shard_size: str = "5GB",
    progress: Progress | None = None,
) -> int:
    """Apply a stored plan to a dense model and write the smaller one; returns its number of parameters.

    Weights are copied from file to file a few rows at a time, so neither model has to fit into memory. Only adapters,
    plans that rotate the residual stream, and weight files that cannot be read by rows need the dense model in float32.

    Args:
        adapter: the LoRA adapter that was merged into the model before the plan was made.
        max_shard_size: maximum size of one weight file, as Hugging Face writes sizes.

    Raises:
        TunePruneError: no plan, a plan of another model, or a folder that cannot be written.
    """
    export.check_size(max_shard_size)
    model, adapter = expand_name(model), None if adapter is None else expand_name(adapter)
    export.check_replaceable(out, model, adapter, plan_folder)
    model = plain_folder(model)
    plan, config = Plan.load(plan_folder), loading.load_config(model, adapter)
    tokenizer = loading.load_tokenizer(model, config, adapter)
    name = str(plan.provenance.get("space", "width"))
    if adapter is None:
        empty = loading.skeleton(config, generation=model)
        architecture = families.describe(empty)
        streamed = stream(model, empty, architecture, spaces.build(name, architecture, empty), plan)
        if streamed is not None:  # it can be written row by row
            export.write(streamed, tokenizer, out, max_shard_size=max_shard_size, progress=progress)
            return sum(parameter.numel() for parameter in streamed.model.parameters())
    dense = loading.load_model(model, adapter, torch.device("cpu"))
    architecture = families.describe(dense)
    small = compress(dense, architecture, spaces.build(name, architecture, dense), plan)
    small.to(loading.stored_dtype(config))  # pyright: ignore[reportArgumentType]  (transformers hides its self)
    export.write(small, tokenizer, out, max_shard_size=max_shard_size)
    return sum(parameter.numel() for parameter in small.parameters())


def export_model(
    source: Path, targets: list[str], out: Path | None, progress: Progress, *, proof: bool = True
) -> dict[str, Any]:
    """Convert an exported folder, or the model of a finished run, and prove every result; the findings by label.

    Args:
        source: the folder of a run, or any Hugging Face folder of a known family.
        out: gets one folder a target; by default `exports` in the run's folder.

    Raises:
        TunePruneError: no model in `source`, a target that cannot hold it or lacks packages, or no folder to write to.
    """
    source = Path(expand_name(str(source)))
    is_run = (source / "record.json").is_file()
    if not is_run and (source / "config.yaml").is_file():
        raise ConfigError(f"{source} holds no finished run (no record.json). Finish it with --resume.")
    if not is_run and out is None:
        raise ConfigError(f"{source} is not the folder of a run: name a folder for the exports with --out.")
    model, out = (source / "model" if is_run else Path(plain_folder(str(source)))), out or source / "exports"
    loading.check_folder(str(model), "model", "config.json")
    named = export.targets_by_label(targets)
    if not named:
        raise ConfigError(
            "--to: name a target besides hf, which the folder is already. `tuneprune targets` lists them."
        )
    for label in named:
        export.check_replaceable(out / label, model)
    shape = Shape.of(_exported_config(model))
    for target in named.values():
        target.refuse(shape)
        target.require()
    reference = export.take_reference(model) if proof else None
    found = {}
    for label, target in named.items():
        progress.stage(f"convert to {label}")
        found[label] = export.convert(model, target, out / label, reference)
    return found


def _exported_config(folder: Path) -> PretrainedConfig:
    """The config of a folder that may be ragged, but not quantised.

    Raises:
        ConfigError: it cannot be read, or its weights are quantised.
    """
    config = loading.read_config(str(folder))
    if loading.quantisation(config):
        raise ConfigError(
            f"{folder} is quantised ({loading.quantisation(config)}), and other formats need unquantised weights. Name"
            " the folder that it was quantised from."
        )
    declared = config.tie_word_embeddings
    if not hasattr(config, "pruned"):
        follow_files(str(folder), config, loading.skeleton(config))
    if config.tie_word_embeddings != declared:
        raise ConfigError(f"{folder}: set tie_word_embeddings to false in its config.json, which the exports copy.")
    return config


def rewrite_report(folder: Path) -> Path:
    """Write `report.html` of a finished run again.

    Raises:
        ConfigError: the folder holds no finished run.
        DataError: its files are damaged or contradict each other.
    """
    if not (folder / "record.json").exists():
        raise ConfigError(f"{folder} holds no finished run (no record.json). Name the --out folder of a run.")
    record = RunRecord.load(folder / "record.json")
    metrics, reference = run_metrics(folder)
    with wrap_errors(f"{folder / 'config.yaml'} cannot be read", DataError):
        config = (folder / "config.yaml").read_text(encoding="utf8")
    with wrap_errors(f"{folder}: its record and logs cannot be drawn", DataError):
        return write_report(record, record.proof, metrics, config, folder, reference=reference)
