"""The example: one item of data, in training as in evaluation."""

from dataclasses import dataclass
from typing import Literal

Note = Literal["system_folded", "developer_as_system", "later_turns", "fixed_date"]
"""Changes that may have been made to a record before it became an example."""


@dataclass(frozen=True)
class Content:
    """The content before it was worded: a question, its answer, and the passage in the question, if known."""

    asked: str
    answer: str
    passage: str = ""


@dataclass(frozen=True)
class Example:
    """One item: a prompt and a completion, on which the loss is computed. An empty prompt means plain text."""

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    """Every possible completion of a scored task; `completion` is one of them."""
    body: str = ""
    """The one part of the prompt that may be shortened; it occurs verbatim in `prompt`."""
    body_keeps: Literal["start", "end"] = "start"
    """Which end of the body is kept when it is shortened."""
    source: str = ""
    index: int = 0
    """Record number in the source, from 1: the line number of a JSONL file."""

    is_templated: bool = False
    """Whether a chat template wrote it, with its own control tokens."""
    notes: tuple[Note, ...] = ()
    content: Content | None = None
    """Its content before it was worded, so that the same content is found in another wording."""

    @property
    def is_text(self) -> bool:
        """Whether this is plain text, with the loss on everything."""
        return not self.prompt

    @property
    def where(self) -> str:
        """Source and record number, for messages."""
        return f"{self.source}:{self.index}"
