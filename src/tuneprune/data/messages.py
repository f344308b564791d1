"""Conversations in common formats, converted to messages with `role` and `content`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tuneprune.data.bad_records import UnusableRecord, WrongType, quote

Message = dict[str, Any]

_ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "bot", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response"), "tool"),
    **{role: role for role in ("system", "developer")},
}
"""The role that chat templates know, by the name of the speaker in lower case."""
_CALLS = ("function_call", "tool_call")
_SPEAKERS, _CONTENTS = ("role", "from", "speaker"), ("content", "value", "text")


def to_messages(value: object, column: str, are_texts_turns: bool = False) -> list[Message]:
    """The messages of a conversation, without keys that are null.

    Accepts objects with `role` and `content`, ShareGPT's with `from` and `value`, pairs of `input` and `output`, each
    also as JSON text and as one list per key.

    Args:
        are_texts_turns: whether a list of texts alternates between user and assistant.

    Raises:
        UnusableRecord: another format, or an unknown speaker.
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
    """The value, parsed if it is JSON text, as in a CSV file.

    Raises:
        UnusableRecord: it is another text.
    """
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise WrongType(f"the field `{column}`", "a list, or a list as JSON text", value) from None


def to_tools(value: object) -> object:
    """The descriptions of tools in the format of chat templates; anything but a list of objects is kept as it is."""
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
        role = speaker  # the chat template decides whether it is valid
    if role is None:
        raise UnusableRecord(
            "with an unknown speaker",
            f"a turn of `{column}` is by {quote(speaker)}. Possible: {', '.join((*_ROLES, *_CALLS))}.",
        )
    return [{"role": role, "content": content} | rest]


def _named(turn: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    return [name for name in names if name in turn]


def _calls(content: object) -> list[dict[str, Any]]:
    """One or several tool calls in LLaMA-Factory's format: JSON with `name` and `arguments`."""
    found = parse_json(content, "function_call")
    calls: list[Any] = found if isinstance(found, list) else [found]
    if not calls or not all(isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls):
        raise WrongType("a tool call", "JSON with a `name`", content)
    return [{"type": "function", "function": dict(call)} for call in calls]


def _rows(lists: Mapping[str, Any]) -> object:
    """Turns that are stored as one list per key, as the datasets library stores sequences of objects."""
    columns = [values for values in lists.values() if isinstance(values, list)]
    lengths = {len(values) for values in columns}
    if len(columns) < len(lists) or len(lengths) != 1:
        return None
    return [{key: values[at] for key, values in lists.items()} for at in range(lengths.pop())]


def _wrong(column: str, value: object) -> UnusableRecord:
    return WrongType(f"`{column}`", "a list of objects with `role` and `content`, or `from` and `value`", value)
