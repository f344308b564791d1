"""A table of texts that renders as Markdown and for a terminal, and the escaping that each needs."""

import re
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text

from tuneprune.errors import printable


@dataclass(frozen=True)
class TextTable:
    """A table of texts: the first column names the row, and a row of one cell is a heading of the rows below it.

    Args:
        left: how many columns, from the first, are aligned to the left.
        roles: for pages, the style of every row.
    """

    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    left: int = 1
    roles: tuple[str, ...] = ()

    def markdown(self) -> list[str]:
        """The header, the rule and the rows as lines of Markdown, without the title."""
        rule = [":---"] * self.left + ["---:"] * (len(self.headers) - self.left)
        lines = [list(map(escape_markdown, self.headers)), rule]
        for row in self.rows:
            is_heading = len(row) == 1
            cells = [f"**{escape_markdown(cell)}**" if is_heading else escape_markdown(cell) for cell in row]
            lines.append(cells + [""] * (len(self.headers) - len(row)))
        return ["| " + " | ".join(line) + " |" for line in lines]

    def rich(self) -> Table:
        """The table for a terminal."""
        table = Table(title=plain(self.title), title_justify="left")
        for index, header in enumerate(self.headers):
            table.add_column(plain(header), justify="left" if index < self.left else "right")
        for row in self.rows:
            is_heading = len(row) == 1
            if is_heading:
                table.add_section()
            table.add_row(*(plain(cell, "bold" if is_heading else "") for cell in row))
        return table


def plain(text: str, style: str = "") -> Text:
    """Text for a terminal, in which nothing is taken for rich's markup."""
    return Text(printable(text), style=style)


def escape_markdown(text: str) -> str:
    """`text` that cannot end a table cell, start a tag, a link or a picture, or break the line."""
    line = printable(" ".join(text.split()))
    return re.sub(r"([\\|`\[\]])", r"\\\1", line).replace("<", "&lt;").replace(">", "&gt;")


def code_span(text: str) -> str:
    """`text` as code in a line of Markdown, between more backticks than it has in a row."""
    line = printable(" ".join(text.split()))
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    space = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{space}{line or ' '}{space}{fence}"
