"""The names of columns that are recognised, and what all formats have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuneprune.data.bad_records import BlankField, UnusableRecord, WrongType, name_list
from tuneprune.data.conversations import ARGUMENTS
from tuneprune.data.examples import Content
from tuneprune.data.messages import Message, to_messages, to_tools
from tuneprune.data.prompts import Record

CHAT = "as messages"
PLAIN = "under Alpaca's headings, because the tokenizer has no chat template"

DIALOGUES = ("conversations", "conversation", "dialogue", "dialog")
ASKED = ("instruction", "question", "query", "prompt", "inputs", "input")
ANSWERS = ("output", "response", "answer", "completion", "targets", "chosen")
FORMS = {"messages", "text", *DIALOGUES, *ASKED, *ANSWERS}
"""Columns that determine the format of a record."""
PASSAGES = ("input", "context")
SYSTEMS = ("system", "system_prompt", "system_message")
REQUIRED = FORMS - {*PASSAGES}
COMPANIONS = (*PASSAGES, *SYSTEMS, "history", "tools")
"""Columns that belong to the prompt, and must not be lost."""
CHOICES = ("choices", "options", "endings")
KNOWN = {"rejected", "label", *FORMS, *COMPANIONS, *CHOICES}


@dataclass(frozen=True)
class Recognised:
    """A record in one of our own formats."""

    record: Record
    """With `messages`, or `prompt` and `completion`, or `text`."""
    read: tuple[str, ...]
    """The columns that were read."""
    how: str = ""
    """How they were converted; empty if the record was in our own format."""
    content: Content | None = None


def chat(there: dict[str, Any], turns: list[Message], read: Sequence[str]) -> Recognised:
    """Messages, starting with the system text if there is one, and the tools."""
    name, system = system_of(there)
    if name and (not turns or turns[0] != {"role": "system", "content": system}):
        if turns and turns[0].get("role") == "system":
            raise UnusableRecord(
                "of more than one form",
                f"both the column `{name}` and the messages have a system text. Keep one.",
            )
        turns = [{"role": "system", "content": system}, *turns]
    rest = {key: value for key, value in there.items() if key not in KNOWN}
    given = {"tools": to_tools(there["tools"])} if is_filled(there.get("tools")) else {}
    record = rest | {"messages": turns} | given
    used = [*read, *(key for key in (*SYSTEMS, *ARGUMENTS) if key in there)]
    is_own = used[0] == "messages" and _are_same(turns, there["messages"])
    return Recognised(record, tuple(used), "" if is_own else CHAT, content_of(turns))


def _are_same(turns: Sequence[Message], found: object) -> bool:
    """Whether messages are those of the record, up to keys that are null."""
    if not isinstance(found, list) or len(turns) != len(found):
        return False
    pairs = zip(turns, found, strict=True)
    return all(isinstance(old, Mapping) and new.items() <= old.items() for new, old in pairs)


def content_of(turns: Sequence[Any]) -> Content | None:
    """The content of a conversation of one question and its answer."""
    if len(turns) != 2 or not all(isinstance(turn, Mapping) for turn in turns):
        return None
    texts = [turn.get("content") for turn in turns]
    if [turn.get("role") for turn in turns] != ["user", "assistant"] or not all(
        isinstance(text, str) for text in texts
    ):
        return None
    return Content(asked=str(texts[0]), answer=str(texts[1]))


def system_of(there: Record) -> tuple[str, str]:
    """The column with a system text, and the text."""
    found = [name for name in SYSTEMS if is_filled(there.get(name))]
    if len(found) > 1:
        raise ambiguous(found)
    return (found[0], text_of(there, found[0])) if found else ("", "")


def answer_messages(value: object, column: str) -> list[Message]:
    """The messages of an answer, which may be a text."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": value}]
    found = to_messages(value, column)
    if not found:
        raise BlankField(f"the field `{column}` is blank.")
    return found


def is_filled(value: object) -> bool:
    """Whether a field has a value other than a blank text or an empty list."""
    return bool(value.strip() not in ("", "[]", "{}") if isinstance(value, str) else value)


def ambiguous(names: Sequence[str]) -> UnusableRecord:
    """The error where several columns could be meant."""
    listed = name_list(names)
    return UnusableRecord(
        "of more than one form",
        f"more than one of its columns could be meant ({listed}). Say which with `fields`, such as"
        " `fields: {instruction: <column>, output: <column>}` or `fields: {messages: <column>}`.",
    )


def text_of(there: Record, name: str) -> str:
    """The text of a field."""
    value = there[name]
    if not isinstance(value, str):
        raise WrongType(f"the field `{name}`", "a text", value, "Fix it, or name another column in `fields`.")
    return value
