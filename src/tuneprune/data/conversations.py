"""Conversations in a record: the turns up to the answer that is learned, and other arguments of the chat template."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneprune.data.bad_records import BlankField, UnusableRecord, WrongType, quote
from tuneprune.data.examples import Note
from tuneprune.data.prompts import Record

Turn = dict[str, Any]

ARGUMENTS = ("tools", "documents", "enable_thinking", "chat_template_kwargs")
"""Fields of a record that are passed to the chat template; the last one holds further arguments by name."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_RESERVED = {"conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"}
_RESERVED |= {"truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "messages"}
_RESERVED |= {"tokenizer_kwargs", "sanitize_control_tokens", *ARGUMENTS[:2]}


@dataclass(frozen=True)
class Conversation:
    """Turns, of which the last is by the assistant and is learned, and further arguments of the chat template."""

    turns: tuple[Turn, ...]
    arguments: Mapping[str, Any]
    notes: tuple[Note, ...] = ()


def conversation(record: Record) -> Conversation | None:
    """The conversation in `messages`, or in a `prompt` of messages and its `completion`; None if there is none.

    Raises:
        UnusableRecord: messages in another format, parts that are not text, or no answer.
    """
    prompt, completion = record.get("prompt"), record.get("completion")
    if record.get("messages") is not None:
        turns = _turns("messages", record["messages"])
    elif isinstance(prompt, list) and isinstance(completion, str):
        turns = [*_asked(prompt), {"role": "assistant", "content": completion}]
    elif isinstance(prompt, list) and completion is not None:
        turns = [*_asked(prompt), *_turns("completion", completion)]
    else:
        return None
    learned = [turn["role"] == "assistant" and _is_learned(turn) for turn in turns]
    last = len(turns) - learned[::-1].index(True) if any(learned) else 0
    if last < 2:
        raise UnusableRecord(
            "without an answer",
            "`messages` needs an answer with the role `assistant` after another message (and a weight other than 0)."
            " Add one, or remove the record.",
        )
    if not (turns[last - 1].get("content", "").strip() or turns[last - 1].get("tool_calls")):
        raise BlankField("the assistant's last message is blank.")
    notes: tuple[Note, ...] = ("later_turns",) if last < len(turns) else ()
    return Conversation(tuple(turns[:last]), _arguments(record), notes)


def _turns(field: str, messages: object) -> list[Turn]:
    messages = _parsed(messages)
    if not isinstance(messages, list) or not all(map(_is_turn, messages)):
        wanted = "a list of objects with a text `role` and a `content` that is a text, a list of parts or null"
        raise WrongType(f"`{field}`", wanted, messages)
    return [_turn(turn) for turn in messages]


def _asked(prompt: object) -> list[Turn]:
    turns = _turns("prompt", prompt)
    if turns and turns[-1]["role"] == "assistant":
        raise UnusableRecord(
            "with an answer at the end of the prompt",
            "`prompt` ends with a turn of the assistant, so it is not clear whether `completion` continues it or is"
            " another turn. Write the conversation as `messages`.",
        )
    return turns


def _is_learned(turn: Turn) -> bool:
    """Whether an answer is learned: some data sets give a weight of 0 to those that are not."""
    weight = turn.pop("weight", 1)
    if weight not in (0, 1):
        raise WrongType("the `weight` of a message", "0 or 1", weight)
    return bool(weight)


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str | list | None)
    )


def _turn(found: Mapping[str, Any]) -> Turn:
    """A turn with plain text as its content and tool calls in the format of most templates, without null fields."""
    turn = {str(name): value for name, value in found.items() if value is not None}
    if isinstance(turn.get("content"), list):
        turn["content"] = "\n".join(map(_text_of_part, turn["content"]))
    if isinstance(turn.get("function_call"), Mapping):  # OpenAI's format before tool calls
        turn["tool_calls"] = [turn.pop("function_call")]
    calls = _parsed(turn.pop("tool_calls", None)) or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise WrongType("`tool_calls`", "a list of objects", calls)
    if calls:
        turn["tool_calls"] = [_call(call) for call in calls]
    return turn


def _text_of_part(part: object) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else None
    text = part.get("text") if isinstance(part, Mapping) and kind in _TEXT_PARTS else None
    if isinstance(text, str):
        return text
    raise UnusableRecord(
        "with a part that is not text",
        f"a message has a part that is not text ({quote(kind if kind not in (None, 'text') else part)}), and only texts"
        " are learned from here. Take the part out, or leave the record out.",
    )


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as {type, function: {name, arguments}} with the arguments as an object, as most templates expect."""
    function = call.get("function")
    if not isinstance(function, Mapping):
        function = {name: call[name] for name in ("name", "arguments") if name in call}
        call = {name: value for name, value in call.items() if name not in function}
    if not isinstance(function.get("name"), str):
        raise WrongType("a tool call", "an object with a function that has a text `name`", call)
    arguments = _parsed(function.get("arguments"))
    function = dict(function) | ({"arguments": arguments} if isinstance(arguments, Mapping) else {})
    return {"type": "function", **call, "function": function}


def _arguments(record: Record) -> dict[str, Any]:
    """The arguments of the chat template in addition to the messages; lists and objects may be JSON text."""
    found = {name: _parsed(record.get(name)) for name in ARGUMENTS}
    further = found.pop("chat_template_kwargs") or {}
    for name in ("tools", "documents"):
        value = found[name]
        if value and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            raise WrongType(f"`{name}`", "a list of objects", value)
    if not isinstance(further, Mapping) or not _RESERVED.isdisjoint(further):
        raise WrongType("`chat_template_kwargs`", "an object with arguments of the template's own", further)
    return {name: value for name, value in found.items() if value not in (None, [], "")} | dict(further)


def _parsed(value: object) -> object:
    """The value, parsed if it is a list or an object as JSON text, as in some data sets."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
