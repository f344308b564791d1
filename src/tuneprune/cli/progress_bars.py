"""Progress on a terminal: a bar for steps with loss and kept share, or for the items of a task."""

from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text

from tuneprune.errors import printable
from tuneprune.system.progress import Progress


class ConsoleProgress(Progress):
    """Prints stages as lines and shows the work of a stage as a bar. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        columns = (
            TextColumn("  {task.description:<28}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[numbers]}", markup=False),
        )
        self.console = console
        self.bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.current = ""
        self.bar: Any = None

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # the terminal may be gone
            self.bars.stop()

    def stage(self, name: str) -> None:
        """Print a line for the new stage."""
        self._close()
        self.console.print(Text.assemble(("•", "bold"), " ", printable(name)))

    def detail(self, text: str) -> None:
        """Print a line below that of the stage."""
        self.console.print(f"  {printable(text)}", highlight=False, markup=False, soft_wrap=True)

    def step(self, metrics: Mapping[str, Any]) -> None:
        """Move the bar, with loss, kept share and speed next to it."""
        numbers = [f"loss {metrics['loss']:.3f}"]
        if "kept_share" in metrics:
            numbers.append(f"kept {metrics['kept_share']:.1%}")
        numbers.append(f"{metrics['tokens_per_s']:.0f} tokens/s")
        if metrics.get("skipped_steps"):
            numbers.append(f"{metrics['skipped_steps']} skipped")
        self._move(str(metrics["phase"]), int(metrics["step"]), int(metrics["steps"]), "  ".join(numbers))

    def item(self, task: str, done: int, total: int) -> None:
        """Move the bar of a task."""
        self._move(task, done, total, "")

    def note(self, text: str) -> None:
        """Print a line that stands out."""
        self.console.print(f"[bold yellow]![/] {escape(printable(text))}", highlight=False, soft_wrap=True)

    def _move(self, name: str, done: int, total: int, numbers: str) -> None:
        if self.bar is None or name != self.current:
            self._close()
            self.current, self.bar = name, self.bars.add_task(printable(name), total=total, numbers="")
        self.bars.update(self.bar, completed=done, numbers=numbers)

    def _close(self) -> None:
        if self.bar is not None:
            self.bars.remove_task(self.bar)
            self.bar = None
