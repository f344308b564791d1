"""Terminal output of the commands: errors, progress, tables, sections, lists."""

import io
import json
import logging
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from tuneprune.errors import ConfigError, RunsFailed, printable
from tuneprune.system.signals import is_main_process, on_signals, stop_resumable

if TYPE_CHECKING:  # imported only when a command runs
    from rich.console import Console

    from tuneprune.pipeline.compare import Outcome
    from tuneprune.report import RunRecord
    from tuneprune.report.recover import RecoverRecord
    from tuneprune.system.progress import Progress

UsageError: Any = typer.BadParameter.__bases__[0]  # of the click inside typer, which has no public name
NOISY_LOGGERS = ("bitsandbytes.backends.cpu.ops", "transformers.integrations.heterogeneity.configuration_utils")
"""Loggers whose warnings a user can do nothing about: of kernels that are not used here, and of uneven widths."""


class Commands(TyperGroup):
    """The commands; wrong options and arguments are reported in one sentence like every other mistake."""

    def main(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (as typer calls it)
        """Run a command.

        Raises:
            ConfigError: an unknown command or option, or an argument that is missing or malformed.
        """
        set_up_logging()
        try:
            status = super().main(*arguments, **options | {"prog_name": "tuneprune", "standalone_mode": False})
        except UsageError as error:
            said = error.format_message()
            if not said or "\n" in said:  # no command was given, so this is the help
                error.show()
                sys.exit(error.exit_code)
            path = error.ctx.command_path if error.ctx is not None else "tuneprune"
            if path == "tuneprune" and sys.argv[1:2] and sys.argv[1] in self.commands:
                path += f" {sys.argv[1]}"
            raise ConfigError(
                f"{said if said.endswith('?') else said.rstrip('.') + '.'} See `{path} --help`."
            ) from error
        if status:
            sys.exit(status)


class TerminalHandler(logging.Handler):
    """Prints the warnings that this program logs."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line, in the main process only."""
        if is_main_process():
            typer.echo(f"! {printable(record.getMessage())}", err=True)


def set_up_logging() -> None:
    """Silence the noisy loggers, before their libraries are imported, as some warn then; print this program's own."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    own = logging.getLogger("tuneprune")
    if not any(isinstance(handler, TerminalHandler) for handler in own.handlers):
        own.addHandler(TerminalHandler())


def check_interpreter() -> None:
    """Make every text printable, whatever the terminal's encoding, and refuse a Python that transformers cannot use.

    Raises:
        ConfigError: Python runs without docstrings, which transformers builds its classes with.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if sys.flags.optimize > 1:
        raise ConfigError(
            "Python runs without docstrings (-OO or PYTHONOPTIMIZE=2), which transformers needs. Use -O, or unset"
            " PYTHONOPTIMIZE."
        )


def expand(path: Path | None) -> Path | None:
    """A path from the command line with `~` and variables, which a shell does not expand in `--out=~/x` and in quotes.

    Raises:
        ConfigError: a variable that is not set.
    """
    if path is None or not {"$", "~"} & set(str(path)):
        return path
    from tuneprune.model.location import expand_name

    return Path(expand_name(str(path)))


def print_error(message: str, *, in_any_process: bool = False) -> None:
    """Print an error's sentence, which may quote untrusted text; by default in the main process only."""
    if in_any_process or is_main_process():
        typer.echo("\n".join(map(printable, f"tuneprune: {message}".split("\n"))), err=True)


@contextmanager
def terminal_progress(stop: Callable[[], NoReturn] = stop_resumable) -> "Iterator[Progress]":
    """Progress on the terminal, in the main process only, without libraries' bars; a signal calls `stop`."""
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from tuneprune.cli.progress_bars import ConsoleProgress
    from tuneprune.system.progress import Progress

    disable_progress_bar()
    with on_signals(stop):
        if not is_main_process():
            yield Progress()
            return
        with ConsoleProgress(Console(stderr=True)) as progress:
            yield progress


def show_comparison(outcome: "Outcome", folder: Path) -> None:
    """Print the tables of a comparison and where its page is.

    Raises:
        RunsFailed: runs that failed, after everything else was shown.
    """
    from tuneprune.report import comparison_rich

    if is_main_process() and outcome.comparison is not None:
        console = _console()
        for table in comparison_rich(outcome.comparison):
            console.print(table)
        typer.echo(f"report: {folder / 'report.html'}")
    if outcome.failed:
        raise RunsFailed(outcome.failed, folder)


def _console() -> "Console":
    """The terminal, or a wide page where the output is a file or a pipe."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def show_results(record: "RunRecord", folder: Path) -> None:
    """Print the table of a run and where its files are."""
    from tuneprune.report import loading_line, rich_table

    if not is_main_process():
        return
    _console().print(rich_table([record]))
    _show_findings(record)
    typer.echo(f"report: {folder / 'report.html'}")
    if (folder / "model").exists():
        typer.echo(f"model:  {folder / 'model'}")
        typer.echo(f"load:   {loading_line(record.proof, str(folder / 'model'))}")


def _show_findings(record: "RunRecord | RecoverRecord") -> None:
    for sentence in [*record.training.bad_sentences, *(warned.sentence for warned in record.training.warnings)]:
        typer.echo(f"warning: {printable(sentence)}")


def show_recovered(record: "RecoverRecord", folder: Path) -> None:
    """Print the scores before and after a tuning, and where the model is."""
    from tuneprune.report.recover import recover_table

    if is_main_process():
        _console().print(recover_table(record))
        _show_findings(record)
        typer.echo(f"model:  {folder / 'model'}")


def print_sections(content: Mapping[str, Any], indent: str = "") -> None:
    """Print nested values, one a line."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            typer.echo(f"{indent}{printable(key)}:")
            print_sections(value, indent + "  ")
        else:
            typer.echo(f"{indent}{printable(key)}: {printable(value)}")


def print_list(entries: Mapping[str, str], as_json: bool) -> None:
    """Print names with a text each, wrapped to the width of a terminal, or as JSON."""
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    indent = max(map(len, entries), default=0) + 2
    columns = max(shutil.get_terminal_size().columns, indent + 20) if sys.stdout.isatty() else sys.maxsize
    for name, text in entries.items():
        lines = textwrap.wrap(text, columns - indent, break_long_words=False, break_on_hyphens=False)
        typer.echo(f"{name:<{indent}}" + f"\n{'':<{indent}}".join(lines))


def first_line(docstring: str | None) -> str:
    """The first line of a docstring."""
    return (docstring or "").strip().splitlines()[0]
