"""Instructions with outputs (Alpaca, question and answer, preferences), as messages or under Alpaca's headings."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tuneprune.data.bad_records import BlankField, UnusableRecord, WrongType
from tuneprune.data.column_names import (
    CHOICES,
    KNOWN,
    PASSAGES,
    PLAIN,
    SYSTEMS,
    Recognised,
    ambiguous,
    answer_messages,
    chat,
    is_filled,
    system_of,
    text_of,
)
from tuneprune.data.examples import Content
from tuneprune.data.messages import Message, parse_json, to_messages
from tuneprune.data.prompts import Record
from tuneprune.errors import ConfigError


def instruction(there: dict[str, Any], asked: list[str], answers: list[str], has_template: bool) -> Recognised:
    """An instruction and its output, with its passage, system text, earlier turns and tools."""
    if len(asked) > 1 or len(answers) > 1:
        raise ambiguous(asked if len(asked) > 1 else answers)
    _refuse_choices(there)
    question, answer = (asked or [""])[0], answers[0]
    if _are_turns(there[answer]) or _are_turns(there.get(question)):
        return _preferred(there, question, answer)
    if not question:
        raise UnusableRecord(
            "without a prompt", "`chosen` without a `prompt` has to be a list of messages. Add a column `prompt`."
        )
    passages = [name for name in PASSAGES if name != question and is_filled(there.get(name))]
    if len(passages) > 1:
        raise ambiguous(passages)
    passage = text_of(there, passages[0]) if passages else ""
    request, reply = text_of(there, question), text_of(there, answer)
    if not request.strip() and not passage.strip():
        raise BlankField(f"the field `{question}` is blank.")
    read = [question, *(name for name in PASSAGES if name in there and name != question)]
    read += [*(["history"] if "history" in there else []), answer]
    if has_template or is_filled(there.get("tools")):
        return _templated(there, request, passage, reply, read)
    return _under_headings(there, request, passage, reply, read)


def _templated(there: dict[str, Any], request: str, passage: str, reply: str, read: Sequence[str]) -> Recognised:
    asked = "\n\n".join(part for part in (request, passage) if part.strip())
    turns = [turn for pair in (*_history(there), (asked, reply)) for turn in _exchange(*pair)]
    found = chat(there, turns, read)
    return replace(found, content=found.content and Content(asked, reply, passage))


def _under_headings(there: dict[str, Any], request: str, passage: str, reply: str, read: Sequence[str]) -> Recognised:
    (name, system), earlier = system_of(there), _history(there)
    parts = [system] if name else []
    parts += [_headed(*pair) for pair in earlier] + [_headed(request, "", passage)]
    rest = {key: value for key, value in there.items() if key not in KNOWN}
    record = rest | {"prompt": "\n\n".join(parts), "completion": reply}
    content = None if name or earlier else Content(f"{request}\n\n{passage}", reply, passage)
    return Recognised(record, (*read, *(column for column in SYSTEMS if column in there)), PLAIN, content)


def _refuse_choices(there: Record) -> None:
    found = next((name for name in CHOICES if is_filled(there.get(name))), None)
    if found is not None:
        raise ConfigError(
            f"the column `{found}` holds choices, which would not be shown with the question. Set `kind:"
            f" multiple_choice`, or ignore them with `fields: {{unused: {found}}}`.",
        )


def _are_turns(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(turn, Mapping) for turn in value)


def _preferred(there: dict[str, Any], question: str, answer: str) -> Recognised:
    """A prompt and the chosen answer, of which one or both are messages; the answer may repeat the prompt."""
    prompt, reply = there.get(question), answer_messages(there[answer], answer)
    before = to_messages(prompt, question) if isinstance(prompt, list) else []
    if isinstance(prompt, str) and reply[0]["role"] == "assistant":
        before = [{"role": "user", "content": prompt}]
    return chat(there, [*before, *reply], [*([question] if question else []), answer])


def _exchange(asked: str, answer: str) -> tuple[Message, Message]:
    return {"role": "user", "content": asked}, {"role": "assistant", "content": answer}


def _headed(asked: str, answer: str, passage: str = "") -> str:
    """One exchange under Alpaca's headings; without an answer it ends where the answer would begin."""
    parts = [("Instruction", asked), ("Input", passage)]
    headed = [f"### {heading}:\n{text.strip()}" for heading, text in parts if text.strip()]
    return "\n\n".join([*headed, f"### Response:\n{answer}"])


def _history(there: Record) -> list[tuple[str, str]]:
    """Earlier questions and answers, in LLaMA-Factory's format."""
    value = there.get("history")
    if not is_filled(value):
        return []
    pairs = parse_json(value, "history")
    if not isinstance(pairs, list) or not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in pairs
    ):
        raise WrongType("the field `history`", "a list of pairs of texts", value)
    return [(pair[0], pair[1]) for pair in pairs]
