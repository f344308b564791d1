"""The command line: a thin layer over the library; a user's mistake becomes one sentence and exit status 2."""

import errno
import json
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tuneprune.cli import display, listing
from tuneprune.cli.display import expand
from tuneprune.cli.listing import AsJson
from tuneprune.errors import ConfigError, TunePruneError
from tuneprune.system.processes import PeerLost, has_peers, watch_peers
from tuneprune.system.signals import (
    EXIT_RESUMABLE,
    Stopped,
    on_signals,
    restore_default_handlers,
    stop_at_once,
    stop_partly_done,
    stop_unwritten,
)

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # a lost connection is one sentence, not a traceback

app = typer.Typer(cls=display.Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(listing.app)
RunFile = Annotated[Path, typer.Argument(callback=expand, metavar="RUN.yaml", help="the run file")]
Set = Annotated[list[str] | None, typer.Option("--set", help="override: key.path=value (repeatable)")]
Out = Annotated[Path | None, typer.Option(callback=expand, help="output folder; by default out/<name of the run file>")]
EXIT_USER = 2


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("tuneprune"))
        raise typer.Exit


@app.callback()
def options(
    _: Annotated[
        bool, typer.Option("--version", help="show the version and exit", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Tune and structurally prune a Hugging Face LLM for your domain in one run."""


@app.command()
def run(
    run_file: RunFile,
    out: Out = None,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a run that was stopped")] = False,
) -> None:
    """Tune, prune, compress, prove, evaluate and report."""
    from tuneprune.config import load_run_file
    from tuneprune.pipeline.run import run as run_job

    config, folder = load_run_file(run_file, overrides or ()), out or Path("out") / run_file.stem
    with display.terminal_progress() as progress:
        record = run_job(config, folder, resume=resume, progress=progress)
    display.show_results(record, folder)


@app.command()
def compare(
    run_file: RunFile,
    methods: Annotated[
        str, typer.Option(help="methods, comma separated; options as name:option=value, space=... among them")
    ],
    keep: Annotated[str | None, typer.Option(help="shares of all parameters, comma separated")] = None,
    seeds: Annotated[str | None, typer.Option(help="seeds, comma separated; by default the run file's")] = None,
    against: Annotated[str | None, typer.Option(help="compare with this method; by default with the first")] = None,
    jobs: Annotated[int, typer.Option(help="runs at a time, each of one thread")] = 1,
    out: Out = None,
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue, or add methods, budgets and seeds")] = False,
) -> None:
    """Run several methods at the same sizes, on the same data and steps, next to dense and dense + LoRA."""
    from tuneprune.budget.amounts import read_share
    from tuneprune.config import load_run_file
    from tuneprune.pipeline.compare import compare as compare_methods

    config, folder = load_run_file(run_file, overrides or ()), out or Path("out") / run_file.stem
    keeps = _numbers(
        "--keep", keep, lambda part: float(str(read_share(part))), "shares separated by commas, such as 0.8,0.6,0.5"
    )
    chosen = _numbers("--seeds", seeds, int, "whole numbers separated by commas, such as 0,1,2")
    with display.terminal_progress() as progress:
        outcome = compare_methods(
            config,
            methods.split(","),
            folder,
            keeps=keeps,
            seeds=chosen,
            against=against,
            jobs=jobs,
            resume=resume,
            progress=progress,
        )
    display.show_comparison(outcome, folder)


@app.command()
def recover(
    model: Annotated[str, typer.Argument(help="folder or hub id of a pruned model, such as the model/ of a run")],
    run_file: RunFile,
    out: Annotated[Path, typer.Option(callback=expand, help="folder for the tuned model")],
    overrides: Set = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue a tuning that was stopped")] = False,
) -> None:
    """Fine-tune a pruned model with LoRA without changing its shape, and prove and evaluate it again."""
    from tuneprune.config import load_recover_file
    from tuneprune.pipeline.recover import recover as recover_model

    config = load_recover_file(model, run_file, overrides or ())
    with display.terminal_progress() as progress:
        record = recover_model(config, out, resume=resume, progress=progress)
    display.show_recovered(record, out)


@app.command()
def validate(run_file: RunFile, overrides: Set = None) -> None:
    """Check everything about a run that needs no training."""
    from tuneprune.config import load_run_file
    from tuneprune.pipeline.validation import preview

    display.print_sections(preview(load_run_file(run_file, overrides or ())))


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="model folder, GGUF file or hub id")],
    space: Annotated[str, typer.Option(help="pruning space")] = "width",
    as_json: AsJson = False,
) -> None:
    """Show the groups and units of a model, and what common budgets would leave of it."""
    from tuneprune.pipeline.inspection import inspect as inspect_model

    report = inspect_model(model, space)
    if as_json:
        typer.echo(json.dumps(report, indent=1))
    else:
        display.print_sections(report)


@app.command()
def latency(
    model: Annotated[str, typer.Argument(help="model folder, GGUF file or hub id")],
    out: Annotated[Path, typer.Option(callback=expand, help="file for the table, which budget.table names")],
    phase: Annotated[str, typer.Option(help="decode or prefill")] = "decode",
    batch_size: Annotated[int, typer.Option(help="rows of the batch")] = 1,
    multiple_of: Annotated[str, typer.Option(help="widths to measure, as in the run file")] = "auto",
) -> None:
    """Measure how long a model's layers of different widths take on this machine, for latency budgets."""
    from tuneprune.pipeline.stages import measure_table

    with display.terminal_progress(stop_unwritten):
        table = measure_table(model, out, phase, batch_size, multiple_of)
    typer.echo(f"{table.what} in {out}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="model folder, GGUF file or hub id")],
    suite: Annotated[str | None, typer.Option(help="suites, comma separated")] = None,
    tasks: Annotated[str | None, typer.Option(help="tasks of lm-evaluation-harness instead, comma separated")] = None,
    task_path: Annotated[Path | None, typer.Option(callback=expand, help="folder with your own task files")] = None,
    limit: Annotated[int | None, typer.Option(help="maximum number of items per task")] = None,
    batch_size: Annotated[int | None, typer.Option(help="sequences in one forward pass; by default 16")] = None,
    trust_remote_code: Annotated[bool, typer.Option(help="run the folder's own model code")] = False,
) -> None:
    """Evaluate a model on suites, or on tasks of lm-evaluation-harness, and print its scores as JSON."""
    from tuneprune.pipeline.stages import evaluate_model, evaluate_on_tasks

    if (suite is None) == (tasks is None):
        raise ConfigError("evaluate: give either --suite (`tuneprune suites` lists them) or --tasks.")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "batch_size": batch_size}
    with display.terminal_progress(stop_at_once):
        if tasks is None:
            scores = evaluate_model(model, (suite or "").split(","), limit, **options)
        else:
            scores = evaluate_on_tasks(model, tasks.split(","), limit, task_path=task_path, **options)
    typer.echo(json.dumps(scores, indent=1))


@app.command()
def plan(run_file: RunFile, out: Out = None, overrides: Set = None) -> None:
    """Decide by a one-shot method and write the plan, without tuning or cutting anything."""
    from tuneprune.config import load_run_file
    from tuneprune.pipeline.stages import plan_model

    config, folder = load_run_file(run_file, overrides or ()), out or Path("out") / run_file.stem
    with display.terminal_progress(stop_partly_done) as progress:
        decided = plan_model(config, folder, progress)
    typer.echo(f"{len(decided.edits)} edits in {folder / 'plan'}")


@app.command()
def compress(
    model: Annotated[str, typer.Argument(help="dense model folder, GGUF file or hub id")],
    plan: Annotated[Path, typer.Option(callback=expand, help="folder with plan.json and plan.safetensors")],
    out: Annotated[Path, typer.Option(callback=expand, help="folder for the smaller model")],
    adapter: Annotated[str | None, typer.Option(help="LoRA adapter of the plan's run, merged in first")] = None,
    max_shard_size: Annotated[str, typer.Option(help="maximum size of one weight file")] = "5GB",
) -> None:
    """Apply a plan to a dense model and write the smaller one, in little memory."""
    from tuneprune.pipeline.stages import compress_model

    with display.terminal_progress(stop_unwritten) as progress:
        num_parameters = compress_model(model, plan, out, adapter, max_shard_size=max_shard_size, progress=progress)
    typer.echo(f"{num_parameters:,} parameters in {out}")


@app.command()
def export(
    model: Annotated[Path, typer.Argument(callback=expand, help="folder of a finished run, or a Hugging Face folder")],
    to: Annotated[str, typer.Option(help="targets, comma separated; options as name:option=value")],
    out: Annotated[Path | None, typer.Option(callback=expand, help="by default exports/ of a run")] = None,
    proof: Annotated[bool, typer.Option(help="run what was written, and compare the outputs")] = True,
) -> None:
    """Convert a finished model for other runtimes, and prove that its outputs are the same there."""
    from tuneprune.pipeline.stages import export_model

    with display.terminal_progress(stop_partly_done) as progress:
        found = export_model(model, to.split(","), out, progress, proof=proof)
    typer.echo(json.dumps(found, indent=1))


@app.command()
def report(folder: Annotated[Path, typer.Argument(callback=expand, help="the folder of a finished run")]) -> None:
    """Write report.html of a finished run again."""
    from tuneprune.pipeline.stages import rewrite_report

    typer.echo(str(rewrite_report(folder)))


def main() -> None:
    """Run the command line; exit with 2 for a user's mistake, 3 for a failed proof, 75 for a stop after saving."""
    try:
        display.check_interpreter()
        with on_signals(stop_at_once), watch_peers():
            app()
    except PeerLost as lost:
        _leave(str(lost), EXIT_USER, in_any_process=lost.rank == 0)
    except TunePruneError as error:
        _leave(str(error), error.exit_status)
    except Stopped as stop:
        restore_default_handlers()
        _leave(str(stop), EXIT_RESUMABLE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        from tuneprune.system.storage import advice

        _leave(f"{error}. {advice(error)}", EXIT_USER)


def _leave(message: str, status: int, *, in_any_process: bool = False) -> NoReturn:
    """Print why and exit; one of several processes exits at once, as clean-up can hang without the others."""
    with suppress(OSError):  # the terminal may be gone
        display.print_error(message, in_any_process=in_any_process)
        sys.stdout.flush()
    if has_peers():
        os._exit(status)
    sys.exit(status)


def _numbers(option: str, text: str | None, kind: Callable[[str], Any], form: str) -> list[Any]:
    """Comma-separated numbers; an empty list if the option was not given."""
    try:
        return [kind(part) for part in text.split(",")] if text else []
    except ValueError:
        raise ConfigError(f"{option} {text}: write {form}.") from None
