"""Records in common formats, converted into one of our own: messages, prompt and completion, or text."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from tuneprune.data.bad_records import BlankField, UnusableRecord, name_list
from tuneprune.data.column_names import (
    ANSWERS,
    ASKED,
    COMPANIONS,
    DIALOGUES,
    FORMS,
    KNOWN,
    Recognised,
    ambiguous,
    answer_messages,
    chat,
    content_of,
    is_filled,
)
from tuneprune.data.conversations import ARGUMENTS
from tuneprune.data.instructions import instruction
from tuneprune.data.messages import to_messages
from tuneprune.data.prompts import Record
from tuneprune.errors import ConfigError


def recognise(record: Record, has_template: bool, chosen: Collection[str] = ()) -> Recognised:
    """The record in one of our own formats: as it is, or converted from a conversation or an instruction with output.

    Args:
        has_template: whether there is a chat template; without one, instructions are put under Alpaca's headings.
        chosen: names that the user gave to columns; they win where several columns are possible.

    Raises:
        UnusableRecord: no format fits, or more than one does.
        ConfigError: a column would be lost.
    """
    spelled = _spelled(record)
    there = {name: record[column] for name, column in spelled.items() if record[column] is not None}
    picked = {*chosen} & FORMS
    if picked:
        aside = FORMS if picked & {"messages", "text"} else {"messages", "text"}
        there = {name: value for name, value in there.items() if name in picked or name not in aside}
    found = _own(there) if picked <= {"messages", "prompt", "completion", "text"} else None
    found = found or _convert(there, picked, has_template)
    if found is None:
        raise _nothing(record, spelled)
    if there.get("label") is False and found.read[0] != "text":
        raise UnusableRecord(
            "marked as unwanted",
            "`label: false` marks an unwanted answer. Remove the record, or rename the column with"
            " `fields: {unused: label}` if it means something else.",
        )
    return Recognised(found.record, tuple(spelled.get(name, name) for name in found.read), found.how, found.content)


def _spelled(record: Record) -> dict[str, str]:
    """The column of each name: known names may be capitalised or have spaces around them."""
    result = {}
    for column in record:
        plain = column.strip().lower()
        name = plain if plain in KNOWN and plain not in record else column
        if name in result:
            raise UnusableRecord(
                "of more than one form",
                f"the columns {name_list([result[name], column])} differ only in capitalisation. Rename one.",
            )
        result[name] = column
    return result


def _meant(there: Record, names: Sequence[str], picked: Collection[str]) -> list[str]:
    found = [name for name in names if name in there]
    found = [name for name in found if name in picked] or found
    return [name for name in found if name != "input"] or found


def _own(there: dict[str, Any]) -> Recognised | None:
    """The record if it is in one of our own formats: messages, else prompt and completion, else text."""
    pair = there.get("prompt"), there.get("completion")
    if "messages" in there:
        return _conversation(there, "messages")
    if isinstance(pair[0], list) and pair[1] is not None:
        _refuse_loss({name: value for name, value in there.items() if name != "tools"}, "")
        turns = [*pair[0], *(pair[1] if isinstance(pair[1], list) else answer_messages(pair[1], "completion"))]
        read = ("prompt", "completion", *(name for name in ARGUMENTS if name in there))
        return Recognised(there, read, content=content_of(turns))
    if None not in pair:
        _refuse_loss(there, str(pair[0]))
        return Recognised(there, ("prompt", "completion"))
    return Recognised(there, ("text",)) if "text" in there else None


def _convert(there: dict[str, Any], picked: set[str], has_template: bool) -> Recognised | None:
    """The record converted from a conversation, or from an instruction with its output."""
    dialogues = _meant(there, DIALOGUES, picked)
    asked, answers = _meant(there, ASKED, picked), _meant(there, ANSWERS, picked)
    is_asked = bool(asked and answers) or answers == ["chosen"]
    if is_asked and dialogues and picked:
        is_asked = not picked & {*dialogues}
        dialogues = [] if is_asked else dialogues
    if is_asked and isinstance(there[answers[0]], Mapping) and dialogues and not asked:
        is_asked = False  # ShareGPT's preferences: the chosen answer is one more turn
    if len(dialogues) + is_asked > 1:
        raise ambiguous([*dialogues, *(asked if is_asked else ())])
    if is_asked:
        return instruction(there, asked, answers, has_template)
    return _conversation(there, dialogues[0]) if dialogues else None


def _refuse_loss(there: Record, prompt: str) -> None:
    """Refuse a prompt and completion next to another filled column that belongs to the prompt."""
    filled = [name for name in COMPANIONS if is_filled(there.get(name))]
    lost = next((name for name in filled if str(there[name]).strip() not in prompt), None)
    if lost is not None:
        raise ConfigError(
            f"the column `{lost}` is not blank, and its text is not in `prompt`. Map the columns to `instruction` and"
            f" `output` in `fields` to read all of them, or ignore it with `fields: {{unused: {lost}}}`.",
        )


def _nothing(record: Record, spelled: Mapping[str, str]) -> UnusableRecord:
    names = set(spelled)
    if names & {"messages", "text", *DIALOGUES} or (names & set(ASKED) and names & set(ANSWERS)):
        return BlankField("there is nothing to learn: the fields are null.")
    return UnusableRecord(
        "without usable fields",
        f"no usable fields (found: {name_list(record)}). Possible: text | prompt and completion | messages |"
        " conversations | instruction, input and output; rename columns with"
        " `fields: {prompt: <column>, completion: <column>}`.",
    )


def _conversation(there: dict[str, Any], column: str) -> Recognised:
    turns, read = to_messages(there[column], column, are_texts_turns=column != "messages"), [column]
    if isinstance(there.get("chosen"), Mapping):
        turns, read = [*turns, *to_messages([there["chosen"]], "chosen")], [column, "chosen"]
    return chat(there, turns, read)
