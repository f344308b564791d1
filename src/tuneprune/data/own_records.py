"""Somebody's own records, read by their fields: messages, prompt + completion, or text."""

import logging
from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from tuneprune.data.examples import Example
from tuneprune.data.records import Numbered
from tuneprune.errors import ConfigError, DataError

_LOGGER = logging.getLogger(__name__)


def examples_by_fields(records: Numbered, tokenizer: PreTrainedTokenizerBase, source: str) -> list[Example]:
    """One example a record: from `messages`, else `prompt` + `completion`, else `text`; blank texts left out.

    Raises:
        DataError: a record without usable fields, or nothing but blank texts; names source and record.
        ConfigError: messages, but the tokenizer has no chat template.
    """
    examples = []
    for number, record in records:
        example = _example(record, tokenizer, source, number)
        if example is not None:
            examples.append(example)
    if not examples:
        raise DataError(f"{source}: every record's text is blank, so there is nothing to read.")
    if len(examples) < len(records):
        _LOGGER.warning("%s: %d blank records left out", source, len(records) - len(examples))
    return examples


def _example(
    record: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, source: str, number: int
) -> Example | None:
    where = f"{source}:{number}"
    if "messages" in record:
        prompt, completion = _chat(record["messages"], tokenizer, where)
    elif "prompt" in record and "completion" in record:
        prompt, completion = (_string(record, field, where) for field in ("prompt", "completion"))
        if not completion.strip():
            raise DataError(f"{where}: the completion is blank. Fill it or remove the record.")
    elif "text" in record:
        prompt, completion = "", _string(record, "text", where)
        if not completion.strip():
            return None
    else:
        found = ", ".join(record) or "none"
        raise DataError(
            f"{where}: no usable fields (found: {found}). Possible: text | prompt and completion | messages; "
            "rename columns with `fields: {prompt: <column>, completion: <column>}`."
        )
    return Example(prompt=prompt, completion=completion, source=source, index=number)


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    value = record[field]
    if not isinstance(value, str):
        raise DataError(f"{where}: the field `{field}` has to be a text, got {value!r:.60}.")
    return value


def _chat(messages: object, tokenizer: PreTrainedTokenizerBase, where: str) -> tuple[str, str]:
    """Prompt and completion of a conversation: the last message of the assistant is the completion."""
    turns = _turns(messages, where)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"{where}: the data holds messages, but the tokenizer has no chat template. "
            "Use prompt and completion fields, or a model whose tokenizer has a template."
        )
    try:
        whole = str(tokenizer.apply_chat_template(turns, tokenize=False)).rstrip()
        # Two tries: some templates open the assistant's turn in another way than they write it.
        for is_opened in (True, False):
            prompt = str(
                tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=is_opened)
            )
            if whole.startswith(prompt) and len(whole) > len(prompt):
                return prompt, whole[len(prompt) :]
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"{where}: the tokenizer's chat template refuses these messages ({error}).") from None
    raise ConfigError(
        f"{where}: the tokenizer's chat template rewrites earlier turns, so prompt and completion cannot "
        "be told apart. Use prompt and completion fields instead."
    )


def _turns(messages: object, where: str) -> list[dict[str, str]]:
    """The messages up to the assistant's last."""
    if not isinstance(messages, list) or not all(
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str)
        for turn in messages
    ):
        raise DataError(
            f"{where}: `messages` has to be a list of objects with the texts `role` and `content`."
        )
    turns = [dict(turn) for turn in messages]
    while turns and turns[-1]["role"] != "assistant":
        turns.pop()
    if len(turns) < 2 or not turns[-1]["content"].strip():
        raise DataError(f"{where}: `messages` needs an answer of the role `assistant` after another message.")
    return turns
