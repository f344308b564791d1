"""Example: one item of data, the same object in training and in evaluation."""

from dataclasses import dataclass
from typing import Literal

Note = Literal["system_folded", "developer_as_system", "later_turns", "fixed_date"]
"""What may have been done to a record before it became an example."""


@dataclass(frozen=True)
class Content:
    """What was worded: a question, its answer, and the passage in the question, if one is known."""

    asked: str
    answer: str
    passage: str = ""


@dataclass(frozen=True)
class Example:
    """One item: a prompt and the completion the loss is taken on. An empty prompt means plain text."""

    prompt: str
    completion: str
    choices: tuple[str, ...] = ()
    """Every possible completion of a scored task; `completion` is one of them."""
    body: str = ""
    """The one part of the prompt that may be shortened; it occurs verbatim in `prompt`."""
    body_keeps: Literal["start", "end"] = "start"
    """Which end of the body survives when it is shortened."""
    source: str = ""
    index: int = 0
    """Record number in the source, from 1: the line number of a JSONL file."""

    is_templated: bool = False
    """Whether a chat template wrote it, with control tokens of its own."""
    notes: tuple[Note, ...] = ()
    content: Content | None = None
    """What it holds before it was worded, so that the same content is found under another wording."""

    @property
    def is_text(self) -> bool:
        """Whether this is plain text, with the loss on everything."""
        return not self.prompt

    @property
    def where(self) -> str:
        """Source and record number, for messages."""
        return f"{self.source}:{self.index}"
