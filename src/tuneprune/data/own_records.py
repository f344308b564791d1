"""Somebody's own records, read by their fields: messages, prompt + completion, or text."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneprune.data.bad_records import BlankField, UnusableRecord, name_list, quote
from tuneprune.data.chat_template import SystemRole, write
from tuneprune.data.conversations import Conversation, conversation
from tuneprune.data.encoding import control_tokens
from tuneprune.data.examples import Example
from tuneprune.data.prompts import Record


def by_fields(tokenizer: PreTrainedTokenizerBase, system_role: SystemRole = "fold") -> Callable[[Record], Example]:
    """Reads a record as messages, else as `prompt` and `completion`, else as `text`; null is as good as missing.

    The reader raises UnusableRecord on a record without usable fields, and ConfigError on messages when the
    tokenizer has no chat template.

    Args:
        system_role: what becomes of a system text that the chat template has no role for.
    """

    @cache
    def control() -> tuple[str, ...]:
        return tuple(control_tokens(tokenizer).values())

    def read(record: Record) -> Example:
        found = conversation(record)
        if found is not None:
            _refuse_control_tokens(found, control())
            prompt, completion, notes = write(found, tokenizer, system_role)
        else:
            (prompt, completion), notes = _plain(record), ()
        if not completion.strip():
            raise BlankField("there is nothing to learn: the completion or the text is blank.")
        return Example(prompt=prompt, completion=completion, is_templated=found is not None, notes=notes)

    return read


def _plain(record: Record) -> tuple[str, str]:
    """Prompt and completion as they stand, or a text, which is a completion without a prompt."""
    there = {field for field in ("prompt", "completion", "text") if record.get(field) is not None}
    if {"prompt", "completion"} <= there:
        return _string(record, "prompt"), _string(record, "completion")
    if "text" in there:
        return "", _string(record, "text")
    if "text" in record or "messages" in record or {"prompt", "completion"} <= record.keys():
        raise BlankField("there is nothing to learn: the fields are null.")
    raise UnusableRecord(
        "without usable fields",
        f"no usable fields (found: {name_list(record)}). Possible: text | prompt and completion | messages; "
        "rename columns with `fields: {prompt: <column>, completion: <column>}`.",
    )


def _string(record: Mapping[str, Any], field: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise UnusableRecord(
            "of the wrong type",
            f"the field `{field}` has to be a text, got {quote(value)}. Fix it, or name another column in `fields`.",
        )
    return value


def _refuse_control_tokens(found: Conversation, tokens: tuple[str, ...]) -> None:
    """Refuse what would end a turn, or begin one, that the data does not have."""
    texts = json.dumps([found.turns, found.arguments], ensure_ascii=False, default=str)
    token = next((token for token in tokens if token in texts), None)
    if token is not None:
        raise UnusableRecord(
            "with a control token in a message",
            f"a message holds the control token {quote(token)} of the tokenizer, which would end or begin a turn"
            " that is not there. Take it out of the text.",
        )
