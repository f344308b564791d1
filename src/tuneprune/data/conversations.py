"""Conversations in a record: the turns up to the answer that is learned, and what else the chat template is given."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneprune.data.bad_records import BlankField, UnusableRecord, quote
from tuneprune.data.examples import Note
from tuneprune.data.prompts import Record

Turn = dict[str, Any]

ARGUMENTS = ("tools", "documents", "enable_thinking", "chat_template_kwargs")
"""Fields of a record that its chat template is given; the last holds further ones by their names."""
_TEXT_PARTS = ("text", "input_text", "output_text")
_RESERVED = {"conversation", "chat_template", "add_generation_prompt", "continue_final_message", "tokenize", "padding"}
_RESERVED |= {"truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask", "messages"}
_RESERVED |= {"tokenizer_kwargs", "sanitize_control_tokens", *ARGUMENTS[:2]}
_WRONG_TYPE = "of the wrong type"


@dataclass(frozen=True)
class Conversation:
    """Turns of which the last, of the role `assistant`, is learned, and further arguments of the chat template."""

    turns: tuple[Turn, ...]
    arguments: Mapping[str, Any]
    notes: tuple[Note, ...] = ()


def conversation(record: Record) -> Conversation | None:
    """The conversation in `messages`, or in a `prompt` of messages with its `completion`; None where there is none.

    Raises:
        UnusableRecord: messages of another shape, parts that are not text, or no answer.
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
            "`messages` needs an answer of the role `assistant` after another message (and not of weight 0)."
            " Add one, or leave them out.",
        )
    if not (turns[last - 1].get("content", "").strip() or turns[last - 1].get("tool_calls")):
        raise BlankField("the assistant's last message is blank.")
    notes: tuple[Note, ...] = ("later_turns",) if last < len(turns) else ()
    return Conversation(tuple(turns[:last]), _arguments(record), notes)


def _turns(field: str, messages: object) -> list[Turn]:
    messages = _parsed(messages)
    if not isinstance(messages, list) or not all(map(_is_turn, messages)):
        raise UnusableRecord(
            _WRONG_TYPE,
            f"`{field}` has to be a list of objects with the text `role`, and `content` that is a text, a list of parts"
            " or null. Fix it.",
        )
    return [_turn(turn) for turn in messages]


def _asked(prompt: object) -> list[Turn]:
    turns = _turns("prompt", prompt)
    if turns and turns[-1]["role"] == "assistant":
        raise UnusableRecord(
            "with an answer at the end of the prompt",
            "`prompt` ends with a turn of the assistant, and nothing tells whether `completion` goes on with it or is"
            " another. Write the conversation as `messages`.",
        )
    return turns


def _is_learned(turn: Turn) -> bool:
    """Whether an answer is to be learned: some data sets give those a weight of 0 that are not."""
    weight = turn.pop("weight", 1)
    if weight not in (0, 1):
        raise UnusableRecord(_WRONG_TYPE, f"the `weight` of a message has to be 0 or 1, got {quote(weight)}. Fix it.")
    return bool(weight)


def _is_turn(turn: object) -> bool:
    return (
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content"), str | list | None)
    )


def _turn(found: Mapping[str, Any]) -> Turn:
    """A turn with plain text as its content and tool calls as most templates read them; what is null is left out."""
    turn = {str(name): value for name, value in found.items() if value is not None}
    if isinstance(turn.get("content"), list):
        turn["content"] = "\n".join(map(_text_of_part, turn["content"]))
    if isinstance(turn.get("function_call"), Mapping):  # what OpenAI's data had before tool calls
        turn["tool_calls"] = [turn.pop("function_call")]
    calls = _parsed(turn.pop("tool_calls", None)) or []
    if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
        raise UnusableRecord(_WRONG_TYPE, f"`tool_calls` has to be a list of objects, got {quote(calls)}. Fix it.")
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
    """A tool call as {type, function: {name, arguments}}, the arguments as an object, which most templates expect."""
    function = call.get("function")
    if not isinstance(function, Mapping):
        function = {name: call[name] for name in ("name", "arguments") if name in call}
        call = {name: value for name, value in call.items() if name not in function}
    if not isinstance(function.get("name"), str):
        raise UnusableRecord(
            _WRONG_TYPE, f"a tool call needs the text `name` of a function, got {quote(call)}. Fix it."
        )
    arguments = _parsed(function.get("arguments"))
    function = dict(function) | ({"arguments": arguments} if isinstance(arguments, Mapping) else {})
    return {"type": "function", **call, "function": function}


def _arguments(record: Record) -> dict[str, Any]:
    """What the record says to the chat template beside its messages; lists and objects may be written as JSON."""
    found = {name: _parsed(record.get(name)) for name in ARGUMENTS}
    further = found.pop("chat_template_kwargs") or {}
    for name in ("tools", "documents"):
        value = found[name]
        if value and not (isinstance(value, list) and all(isinstance(item, Mapping) for item in value)):
            raise UnusableRecord(_WRONG_TYPE, f"`{name}` has to be a list of objects, got {quote(value)}. Fix it.")
    if not isinstance(further, Mapping) or not _RESERVED.isdisjoint(further):
        raise UnusableRecord(
            _WRONG_TYPE,
            "`chat_template_kwargs` has to be an object of arguments that are the template's own, got"
            f" {quote(further)}. Fix it.",
        )
    return {name: value for name, value in found.items() if value not in (None, [], "")} | dict(further)


def _parsed(value: object) -> object:
    """A value that some data sets write as JSON within a text: lists and objects are read, all else stays."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{"):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
