"""Somebody's own records, read by their fields: messages, prompt + completion, or text."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneprune.data.encoding import control_tokens
from tuneprune.data.examples import Example
from tuneprune.data.prompts import Record
from tuneprune.data.unusable import BlankField, UnusableRecord, columns, shown
from tuneprune.errors import ConfigError, DataError, reading
from tuneprune.limits import within

PATIENCE_S = 10.0
"""Seconds for one record in a chat template, which may have loops without end."""


def by_fields(tokenizer: PreTrainedTokenizerBase) -> Callable[[Record], Example]:
    """Reads a record as `messages`, else as `prompt` and `completion`, else as `text`; null is as good as missing.

    The reader raises UnusableRecord on a record without usable fields, and ConfigError on messages when the
    tokenizer has no chat template.
    """

    @cache
    def control() -> tuple[str, ...]:
        return tuple(control_tokens(tokenizer).values())

    def read(record: Record) -> Example:
        there = {field for field in ("messages", "prompt", "completion", "text") if record.get(field) is not None}
        if "messages" in there:
            turns = _turns(record["messages"])
            _refuse_control_tokens(turns, control())
            prompt, completion = _chat(turns, tokenizer)
        elif {"prompt", "completion"} <= there:
            prompt, completion = _string(record, "prompt"), _string(record, "completion")
        elif "text" in there:
            prompt, completion = "", _string(record, "text")
        elif "text" in record or "messages" in record or {"prompt", "completion"} <= record.keys():
            raise BlankField("there is nothing to learn: the fields are null.")
        else:
            raise UnusableRecord(
                "without usable fields",
                f"no usable fields (found: {columns(record)}). Possible: text | prompt and completion | messages; "
                "rename columns with `fields: {prompt: <column>, completion: <column>}`.",
            )
        if not completion.strip():
            raise BlankField("there is nothing to learn: the completion or the text is blank.")
        return Example(prompt=prompt, completion=completion, is_templated="messages" in there)

    return read


def _string(record: Mapping[str, Any], field: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise UnusableRecord(
            "of the wrong type",
            f"the field `{field}` has to be a text, got {shown(value)}. Mend it, or name another column in `fields`.",
        )
    return value


def _chat(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """Prompt and completion of a conversation: the last message of the assistant is the completion."""
    if not tokenizer.chat_template:
        raise ConfigError(
            "the data holds messages, but the tokenizer has no chat template. "
            "Use prompt and completion fields, or a model whose tokenizer has a template."
        )
    endless = ConfigError(
        f"the tokenizer's chat template takes more than {PATIENCE_S:g} s for one record. Use another tokenizer's, or"
        " prompt and completion fields."
    )
    refuses = "the tokenizer's chat template refuses these messages"
    try:
        with reading(refuses, DataError, "Order the roles as it asks."), within(PATIENCE_S, endless):
            found = _split(turns, tokenizer)
    except DataError as error:
        raise UnusableRecord("refused by the chat template", str(error)) from error
    if found is not None:
        return found
    raise ConfigError(
        "the tokenizer's chat template rewrites earlier turns, so prompt and completion cannot be told "
        "apart. Use prompt and completion fields instead."
    )


def _refuse_control_tokens(turns: list[dict[str, str]], tokens: tuple[str, ...]) -> None:
    """Refuse what would end a turn, or begin one, that the data does not have."""
    for turn in turns:
        found = next((token for token in tokens if token in turn["content"]), None)
        if found is not None:
            raise UnusableRecord(
                "with a control token in a message",
                f"a message holds the control token {shown(found)} of the tokenizer, which would end or begin a turn"
                " that is not there. Take it out of the text.",
            )


def _split(turns: list[dict[str, str]], tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """Prompt and completion as the template writes them; None where it does not write one after the other.

    The template comes with the tokenizer. It runs in a sandbox of jinja's: nothing of Python but plain values.
    """
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip()
    # Two tries: some templates open the assistant's turn in another way than they write it.
    for is_opened in (True, False):
        prompt = str(tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=is_opened))
        if whole.startswith(prompt) and len(whole) > len(prompt):
            return prompt, whole[len(prompt) :]
    return None


def _turns(messages: object) -> list[dict[str, str]]:
    """The messages up to the assistant's last."""
    if not isinstance(messages, list) or not all(
        isinstance(turn, Mapping) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
        for turn in messages
    ):
        raise UnusableRecord(
            "of the wrong type", "`messages` has to be a list of objects with the texts `role` and `content`. Mend it."
        )
    turns = [dict(turn) for turn in messages]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if len(turns) < 2:
        raise UnusableRecord(
            "without an answer",
            "`messages` needs an answer of the role `assistant` after another message. Add one, or leave them out.",
        )
    if not turns[-1]["content"].strip():
        raise BlankField("the assistant's last message is blank.")
    return turns
