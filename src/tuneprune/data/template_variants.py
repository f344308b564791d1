"""Variants of a conversation, for chat templates that do not accept it as it is."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneprune.data.conversations import Turn
from tuneprune.data.examples import Note

SYSTEM_ROLES = ("system", "developer")


def variants(turns: Sequence[Turn]) -> Iterator[tuple[tuple[Note, ...], list[Turn]]]:
    """The turns as they are, then with changes that templates differ in; each with notes on what was changed.

    Missing (null) messages become empty, the arguments of tool calls become JSON text, developer turns become system
    turns, and the text of a system turn is put in front of the user turn after it.
    """
    for contents in _changed(list(turns), [{"content": ""} | turn for turn in turns]):
        for calls in _changed(contents, [_with_arguments_as_text(turn) for turn in contents]):
            yield (), calls
            if any(turn["role"] == "developer" for turn in calls):
                yield (
                    ("developer_as_system",),
                    [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in calls],
                )
            folded = _folded(calls)
            if folded is not None:
                yield ("system_folded",), folded


def _changed(turns: list[Turn], other: list[Turn]) -> list[list[Turn]]:
    """Both, unless they are equal."""
    return [turns] if turns == other else [turns, other]


def _with_arguments_as_text(turn: Turn) -> Turn:
    return turn | {"tool_calls": list(map(_as_text, turn["tool_calls"]))} if "tool_calls" in turn else turn


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if not isinstance(function.get("arguments"), Mapping):
        return dict(call)
    text = json.dumps(function["arguments"], ensure_ascii=False, default=str)
    return dict(call) | {"function": function | {"arguments": text}}


def _folded(turns: Sequence[Turn]) -> list[Turn] | None:
    """The turns with every system text in front of the user turn right after it; None if that is not possible."""
    folded: list[Turn] = []
    pending: list[str] = []
    for turn in turns:
        if turn["role"] in SYSTEM_ROLES:
            pending.append(turn.get("content", ""))
        elif pending and turn["role"] != "user":
            return None
        else:
            texts = [*(text for text in pending if text.strip()), turn.get("content", "")]
            folded.append(turn | {"content": "\n\n".join(texts)} if pending else turn)
            pending = []
    return folded if len(folded) < len(turns) and not pending else None
