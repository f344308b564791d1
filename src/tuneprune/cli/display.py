"""What the commands print: tables, sections, lists."""

import io
import json
import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from tuneprune.errors import ConfigError, printable

UsageError: Any = typer.BadParameter.__bases__[0]  # of the click that typer brings along, which has no public name


CHATTER = ("bitsandbytes.backends.cpu.ops", "transformers.integrations.heterogeneity.configuration_utils")
"""Libraries that warn of what no user of ours can do anything about: kernels that do not matter here, uneven widths."""


class Commands(TyperGroup):
    """The commands, whose mistaken options and arguments are told in one sentence like every other mistake."""

    def main(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401  (as typer calls it)
        """Run a command.

        Raises:
            ConfigError: an unknown command or option, or an argument that is missing or malformed.
        """
        quieten()
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


class Remarks(logging.Handler):
    """Shows what this program logs as lines of the terminal."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line, in one process."""
        if is_main_process():
            typer.echo(f"! {printable(record.getMessage())}", err=True)


def quieten() -> None:
    """Leave out warnings of libraries that a user can do nothing about; before they are imported, as some warn then.

    What this program itself logs is shown.
    """
    for name in CHATTER:
        logging.getLogger(name).setLevel(logging.ERROR)
    own = logging.getLogger("tuneprune")
    if not any(isinstance(handler, Remarks) for handler in own.handlers):
        own.addHandler(Remarks())


def check_interpreter() -> None:
    """Let every text be printed, whatever the terminal's encoding, and refuse a Python that transformers cannot use.

    Raises:
        ConfigError: docstrings are left out, which transformers builds its classes with.
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
    """A path from the command line with `~` and variables, which a shell leaves alone in `--out=~/x` and in quotes.

    Raises:
        ConfigError: a variable that is not set.
    """
    if path is None or not {"$", "~"} & set(str(path)):
        return path
    from tuneprune.model.location import expand_name

    return Path(expand_name(str(path)))


def is_main_process() -> bool:
    """Whether this is the process that speaks, under `accelerate launch` or torchrun."""
    return os.environ.get("RANK", "0") == "0"


def complain(message: str, *, speaks: bool = False) -> None:
    """An error's sentence, which may quote what a stranger wrote; from a process that `speaks` or is the main one."""
    if speaks or is_main_process():
        typer.echo("\n".join(map(printable, f"tuneprune: {message}".split("\n"))), err=True)


@contextmanager
def at_work(stop: Callable[[], NoReturn] | None = None) -> Iterator[Any]:
    """Progress on the terminal, in one process; libraries' bars off; a signal calls `stop` (or `stop_resumable`)."""
    from rich.console import Console
    from transformers.utils.logging import disable_progress_bar

    from tuneprune.cli.progress_bars import ConsoleProgress
    from tuneprune.system.progress import Progress
    from tuneprune.system.signals import on_signals, stop_resumable

    disable_progress_bar()
    with on_signals(stop or stop_resumable):
        if not is_main_process():
            yield Progress()
            return
        with ConsoleProgress(Console(stderr=True)) as progress:
            yield progress


def show_comparison(outcome: Any, folder: Path) -> None:  # noqa: ANN401  (imported only when a command runs)
    """The tables of a comparison and where its page is.

    Raises:
        CellsFailed: runs that failed, after everything else was shown.
    """
    from tuneprune.errors import CellsFailed
    from tuneprune.report import comparison_rich

    if is_main_process() and outcome.comparison is not None:
        console = _console()
        for table in comparison_rich(outcome.comparison):
            console.print(table)
        typer.echo(f"report: {folder / 'report.html'}")
    if outcome.failed:
        raise CellsFailed(outcome.failed, folder)


def _console() -> Any:  # noqa: ANN401  (imported only when a command runs)
    """The terminal; a file or a pipe has no width of its own."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def show_results(records: list[Any], folder: Path) -> None:
    """The table of a run and where its files are."""
    from tuneprune.report import loading_line, rich_table

    if not is_main_process():
        return
    _console().print(rich_table(records))
    for record in records:
        _show_findings(record)
    typer.echo(f"report: {folder / 'report.html'}")
    if (folder / "model").exists():
        typer.echo(f"model:  {folder / 'model'}")
        typer.echo(f"load:   {loading_line(records[0].proof, str(folder / 'model'))}")


def _show_findings(record: Any) -> None:  # noqa: ANN401  (imported only when a command runs)
    """Bad numbers and warnings of a run, where there were any."""
    from tuneprune.errors import printable

    for sentence in [*record.training.bad_sentences, *(warned.sentence for warned in record.training.warnings)]:
        typer.echo(f"warning: {printable(sentence)}")


def show_recovered(record: Any, folder: Path) -> None:  # noqa: ANN401  (imported only when a command runs)
    """The scores before and after a tuning, and where the model is."""
    from tuneprune.report.recover import recover_table

    if is_main_process():
        _console().print(recover_table(record))
        _show_findings(record)
        typer.echo(f"model:  {folder / 'model'}")


def print_sections(content: Mapping[str, Any], indent: str = "") -> None:
    """Nested values, one a line."""
    for key, value in content.items():
        if isinstance(value, Mapping):
            typer.echo(f"{indent}{printable(key)}:")
            print_sections(value, indent + "  ")
        else:
            typer.echo(f"{indent}{printable(key)}: {printable(value)}")


def print_list(entries: Mapping[str, str], as_json: bool) -> None:
    """Names with some text each, wrapped where a terminal reads it, or as JSON."""
    if as_json:
        typer.echo(json.dumps(entries, indent=1))
        return
    indent = max(map(len, entries), default=0) + 2
    columns = max(shutil.get_terminal_size().columns, indent + 20) if sys.stdout.isatty() else sys.maxsize
    for name, text in entries.items():
        lines = textwrap.wrap(text, columns - indent, break_long_words=False, break_on_hyphens=False)
        typer.echo(f"{name:<{indent}}" + f"\n{'':<{indent}}".join(lines))


def first_line(docstring: str | None) -> str:
    """What a docstring says first."""
    return (docstring or "").strip().splitlines()[0]
