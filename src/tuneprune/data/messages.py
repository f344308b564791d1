"""Conversations in the forms that people keep them in, as messages with `role` and `content`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuneprune.data.bad_records import UnusableRecord, quote

Message = dict[str, Any]

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
    **{role: role for role in ("system", "developer")},
}
"""Names of speakers, in lower case: the role that chat templates know."""
_CALLS = ("function_call", "tool_call")
_SPEAKERS, _CONTENTS = ("role", "from", "speaker"), ("content", "value", "text")


def to_messages(value: object, column: str, are_texts_turns: bool = False) -> list[Message]:
    """The messages of a conversation, without keys that are null.

    Understands objects with `role` and `content`, ShareGPT's with `from` and `value`, pairs of `input` and `output`,
    each also as JSON text and as one list a key.

    Args:
        are_texts_turns: whether a list of texts is by user and assistant in turn.

    Raises:
        UnusableRecord: another shape, or a speaker that is not known.
    """
    turns = parse_json(value, column)
    if isinstance(turns, Mapping):
        turns = _rows(turns)
    if not isinstance(turns, list):
        raise _wrong(column, value)
    if are_texts_turns and turns and all(isinstance(turn, str) for turn in turns):
        return [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
    return [message for turn in turns for message in _messages(turn, column)]


def parse_json(value: object, column: str) -> object:
    """The value, or what it says where it is JSON text, as a CSV file holds it.

    Raises:
        UnusableRecord: it is other text.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UnusableRecord(
            "of the wrong type",
            f"the field `{column}` has to be a list, or one as JSON, got {quote(value)}. Fix it.",
        ) from None


def to_tools(value: object) -> object:
    """The descriptions of tools in the form that chat templates know; what is not a list of objects stays as it is."""
    found = value
    if isinstance(value, str) and value.strip()[:1] in ("[", "{"):
        found = parse_json(value, "tools")
    listed = [found] if isinstance(found, Mapping) else found
    if not isinstance(listed, list) or not all(isinstance(tool, Mapping) for tool in listed):
        return value
    return [
        dict(tool) if "function" in tool or "name" not in tool else {"type": "function", "function": dict(tool)}
        for tool in listed
    ]


def _messages(turn: object, column: str) -> list[Message]:
    if not isinstance(turn, Mapping):
        raise _wrong(column, turn)
    there = {key: value for key, value in turn.items() if value is not None or key == "content"}
    if there.keys() >= {"input", "output"} and not there.keys() & {*_SPEAKERS}:
        return [{"role": "user", "content": there["input"]}, {"role": "assistant", "content": there["output"]}]
    speakers, contents = _named(there, _SPEAKERS)[:1], _named(there, _CONTENTS)[:1]
    speaker = there[speakers[0]] if speakers else None
    if not isinstance(speaker, str):
        raise _wrong(column, turn)
    rest = {key: value for key, value in there.items() if key not in (*speakers, *contents)}
    content = there[contents[0]] if contents else None
    if speaker.strip().lower() in _CALLS:
        return [{"role": "assistant", "content": "", "tool_calls": _calls(content)}]
    role = _ROLES.get(speaker.strip().lower())
    if speakers == ["role"] and role not in ("user", "assistant"):
        role = speaker  # the chat template judges it
    if role is None:
        raise UnusableRecord(
            "with an unknown speaker",
            f"a turn of `{column}` is by {quote(speaker)}. Possible: {', '.join((*_ROLES, *_CALLS))}.",
        )
    return [{"role": role, "content": content} | rest]


def _named(turn: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in turn]


def _calls(content: object) -> list[dict[str, Any]]:
    """A call of a tool, or several, as LLaMA-Factory's data holds them: JSON with `name` and `arguments`."""
    found = parse_json(content, "function_call")
    calls: list[Any] = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise UnusableRecord(
            "of the wrong type", f"a call of a tool has to be JSON with a `name`, got {quote(content)}. Fix it."
        )
    return [{"type": "function", "function": dict(call)} for call in calls]


def _rows(lists: Mapping[str, Any]) -> object:
    """Turns that are kept as one list a key, as the library datasets keeps sequences of objects."""
    columns = [values for values in lists.values() if isinstance(values, list)]
    lengths = {len(values) for values in columns}
    if len(columns) < len(lists) or len(lengths) != 1:
        return None
    return [{key: values[at] for key, values in lists.items()} for at in range(lengths.pop())]


def _wrong(column: str, value: object) -> UnusableRecord:
    return UnusableRecord(
        "of the wrong type",
        f"`{column}` has to be a list of objects with `role` and `content`, or `from` and `value`, got {quote(value)}."
        " Fix it.",
    )
