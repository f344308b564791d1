"""Other ways to say the same conversation, for chat templates that do not take it as it stands."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tuneprune.data.conversations import Turn
from tuneprune.data.examples import Note

SYSTEM_ROLES = ("system", "developer")


def variants(turns: Sequence[Turn]) -> Iterator[tuple[tuple[Note, ...], list[Turn]]]:
    """The turns as they stand, then with what templates differ in put otherwise, and what is worth a note in that.

    A message that is missing (null) becomes an empty one, the arguments of tool calls become JSON in a text, a
    developer turn becomes a system turn, and the text of a system turn goes in front of the user turn behind it.
    """
    for contents in _those(list(turns), _without_gaps(turns)):
        for calls in _those(contents, _with_arguments_as_text(contents)):
            roles: tuple[tuple[tuple[Note, ...], list[Turn] | None], ...] = (
                ((), calls),
                (("developer_as_system",), _with_developer_as_system(calls)),
                (("system_folded",), _folded(calls)),
            )
            yield from ((notes, changed) for notes, changed in roles if changed is not None)


def _those(*candidates: list[Turn] | None) -> Iterator[list[Turn]]:
    return (turns for turns in candidates if turns is not None)


def _without_gaps(turns: Sequence[Turn]) -> list[Turn] | None:
    filled = [{"content": ""} | turn for turn in turns]
    return filled if filled != list(turns) else None


def _with_arguments_as_text(turns: Sequence[Turn]) -> list[Turn] | None:
    changed = [
        turn | {"tool_calls": [_as_text(call) for call in turn["tool_calls"]]} if "tool_calls" in turn else turn
        for turn in turns
    ]
    return changed if changed != list(turns) else None


def _as_text(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    if not isinstance(function.get("arguments"), Mapping):
        return dict(call)
    text = json.dumps(function["arguments"], ensure_ascii=False, default=str)
    return dict(call) | {"function": function | {"arguments": text}}


def _with_developer_as_system(turns: Sequence[Turn]) -> list[Turn] | None:
    if all(turn["role"] != "developer" for turn in turns):
        return None
    return [turn | {"role": "system"} if turn["role"] == "developer" else turn for turn in turns]


def _folded(turns: Sequence[Turn]) -> list[Turn] | None:
    """The turns with every system text in front of the user turn right behind it; None where there is none."""
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
