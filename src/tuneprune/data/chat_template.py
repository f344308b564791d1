"""Conversations written by a tokenizer's chat template, with checks that it leaves nothing out."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from jinja2 import TemplateSyntaxError

from tuneprune.data.bad_records import UnusableRecord, name_list, quote
from tuneprune.data.conversations import Conversation, Turn
from tuneprune.data.examples import Note
from tuneprune.data.template_variants import SYSTEM_ROLES, variants
from tuneprune.errors import ConfigError, DataError, first_line, wrap_errors
from tuneprune.system.timeout import time_limit

if TYPE_CHECKING:  # costs seconds to import
    from transformers import PreTrainedTokenizerBase

SystemRole = Literal["fold", "refuse"]
PATIENCE_S = 10.0
"""Time limit in seconds for one record, because a chat template may never finish."""
TODAY, ANOTHER_DAY = datetime(2025, 1, 1), datetime(2024, 10, 31, 13, 30)
"""The date for templates that ask for the current one, so that runs can be repeated; and one to compare with."""
_CLOCK = "strftime_now"
_DIRECTIVES = "aAbBcdfHIjmMpSUwWxXyY"
_REASONING = ("reasoning_content", "reasoning", "thinking")


class Written(NamedTuple):
    """A conversation written by the template."""

    prompt: str
    completion: str
    notes: tuple[Note, ...] = ()


def write(conversation: Conversation, tokenizer: "PreTrainedTokenizerBase", system_role: SystemRole) -> Written:
    """Prompt and completion as the template writes them: the completion is the last turn.

    If the template does not accept the conversation as it is, or leaves something out, its variants are tried in turn.

    Raises:
        ConfigError: no chat template, or one that is broken or never finishes.
        UnusableRecord: the template refuses the messages, or leaves something out.
    """
    template = _template(tokenizer, conversation.arguments)
    endless = ConfigError(
        f"the tokenizer's chat template takes more than {PATIENCE_S:g} s for one record. Use another tokenizer's, or"
        " prompt and completion fields."
    )
    refusal, hint = None, ""
    with time_limit(PATIENCE_S, endless):
        for notes, turns in variants(conversation.turns):
            if system_role == "refuse" and "system_folded" in notes:
                hint = " Or set data.system_role: fold to put the system text into the user turn after it."
                continue
            try:
                written = _Writer(tokenizer, template, turns, conversation.arguments).written()
            except UnusableRecord as error:
                refusal = refusal or error
            else:
                return written._replace(notes=(*conversation.notes, *notes, *written.notes))
    assert refusal is not None, "the conversation is tried as it is first"
    raise UnusableRecord(refusal.reason, f"{refusal}{hint}")


def _template(tokenizer: "PreTrainedTokenizerBase", arguments: Mapping[str, Any]) -> str:
    """The template of a tokenizer, which may have one for tools and one called default."""
    templates = cast("str | dict[str, str] | None", tokenizer.chat_template)
    if not templates:
        raise ConfigError(
            "the data holds messages, but the tokenizer has no chat template. "
            "Use prompt and completion fields, or a model whose tokenizer has a template."
        )
    if isinstance(templates, str):
        return templates
    template = templates.get("tool_use" if "tools" in arguments else "default") or templates.get("default")
    if template is None:
        raise ConfigError(
            f"the tokenizer has several chat templates ({name_list(templates)}), but none called `default`."
            " Save the tokenizer with one, or use prompt and completion fields."
        )
    return template


@dataclass(frozen=True)
class _Writer:
    """The template applied to turns, of which the last is the answer."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str
    turns: list[Turn]
    arguments: Mapping[str, Any]
    today: datetime = TODAY

    def written(self) -> Written:
        """Prompt and completion, checked to hold everything in the turns and the tools."""
        found = self.split()
        for what in (*self._left_out(found), *self._left_out_of_answer(found)):
            raise _left_out(what)
        is_dated = _CLOCK in self.template and not _ignores(found, replace(self, today=ANOTHER_DAY))
        return found._replace(notes=("fixed_date",)) if is_dated else found

    def split(self) -> Written:
        """Prompt and completion: the input of the model, and what it should generate."""
        whole = self._render(self.turns).rstrip()
        # Two attempts: some templates open the assistant's turn differently than they write it.
        opened, closed = (self._render(self.turns[:-1], add_generation_prompt=is_opened) for is_opened in (True, False))
        for prompt in (opened, closed):
            if whole.startswith(prompt) and len(whole) > len(prompt):
                return Written(prompt, whole[len(prompt) :])
        # Some write the earlier turns differently once they are answered: then the answer follows its opening.
        opening = opened[len(closed) :] if opened.startswith(closed) else ""
        answer = self.turns[-1].get("content", "").strip()
        at = whole.rfind(answer)
        start = whole.rfind(opening, 0, at) + len(opening) if opening or answer else -1
        if at < 0:
            raise _left_out("the whole last answer")
        if start < len(opening):
            raise UnusableRecord(
                "whose answer cannot be told from its prompt",
                "the tokenizer's chat template writes the turns before the answer differently once they are answered,"
                " so its start cannot be found. Use another tokenizer's, or prompt and completion fields.",
            )
        if not opening and not opened[-1:].isspace():
            start = len(whole[:at].rstrip())
        return Written(opened, whole[start:])

    def _render(self, turns: list[Turn], **options: bool) -> str:
        """The text that the template writes for turns. It runs in jinja's sandbox, with access to plain values only."""
        template = _with_date(self.template, self.today) if _CLOCK in self.template else self.template
        options |= {"tokenize": False}
        refusal = "the tokenizer's chat template refuses these messages"
        advice = "Change them as it asks, or use another tokenizer's."
        try:
            with wrap_errors(refusal, DataError, advice):
                text = self.tokenizer.apply_chat_template(turns, chat_template=template, **options, **self.arguments)
        except DataError as error:
            if isinstance(error.__cause__, TemplateSyntaxError):  # broken for every record
                raise ConfigError(
                    f"the tokenizer's chat template is broken ({first_line(error.__cause__)}). Use another tokenizer's,"
                    " or prompt and completion fields."
                ) from error
            raise UnusableRecord("refused by the chat template", str(error)) from error
        return str(text)

    def _left_out(self, found: Written) -> Iterator[str]:
        """The parts that the template ignores: changing them changes nothing."""
        text = _squeezed(found.prompt + found.completion)
        for position, turn in enumerate(self.turns):
            content = turn.get("content", "")
            is_there = turn["role"] not in SYSTEM_ROLES and _squeezed(content) in text
            changed = replace(self, turns=self._with(position, content + " x"))
            if content.strip() and not is_there and _ignores(found, changed):
                yield f"the turn of the role `{turn['role']}`"
            for number, call in enumerate(turn.get("tool_calls", ())):
                if _ignores(found, replace(self, turns=self._with_renamed_call(position, number))):
                    yield f"the call of the tool {quote(call['function']['name'])}"
                if _is_written_as_python(call["function"].get("arguments"), found):
                    yield f"the arguments of the tool {quote(call['function']['name'])} as JSON"
        for name in ("tools", "documents"):
            others = {key: value for key, value in self.arguments.items() if key != name}
            if len(others) < len(self.arguments) and _ignores(found, replace(self, arguments=others)):
                yield f"`{name}`"

    def _left_out_of_answer(self, found: Written) -> Iterator[str]:
        """The parts of the answer that are not in the completion, such as the thinking that some templates remove."""
        answer, text = self.turns[-1], _squeezed(found.completion)
        if _squeezed(answer.get("content", "")) not in text:
            yield "the whole last answer (some leave out its thinking)"
        for name in _REASONING:
            if _squeezed(str(answer.get(name, ""))) not in text:
                yield f"the field `{name}` of the last answer"

    def _with(self, position: int, content: str) -> list[Turn]:
        changed = self.turns[position] | {"content": content}
        return [*self.turns[:position], changed, *self.turns[position + 1 :]]

    def _with_renamed_call(self, position: int, number: int) -> list[Turn]:
        calls = list(self.turns[position]["tool_calls"])
        function = calls[number]["function"]
        calls[number] = calls[number] | {"function": function | {"name": function["name"] + "_x"}}
        return [*self.turns[:position], self.turns[position] | {"tool_calls": calls}, *self.turns[position + 1 :]]


def _left_out(what: str) -> UnusableRecord:
    return UnusableRecord(
        "with something that the chat template leaves out",
        f"the tokenizer's chat template does not write {what}. Use a tokenizer whose template does, or remove it from"
        " the record.",
    )


def _ignores(found: Written, changed: _Writer) -> bool:
    """Whether the template writes the same text after a change."""
    try:
        return changed.split() == found
    except UnusableRecord:
        return False


def _is_written_as_python(arguments: object, found: Written) -> bool:
    """Whether a template prints an object as Python does, which happens if it expects JSON text."""
    if not isinstance(arguments, Mapping) or not arguments:
        return False
    return str(dict(arguments)) in found.prompt + found.completion


def _with_date(template: str, today: datetime) -> str:
    """The template with a fixed date."""
    values = {f"%{letter}": today.strftime(f"%{letter}") for letter in _DIRECTIVES}
    values |= {f"%-{name[1]}": value.lstrip("0") or "0" for name, value in values.items() if value.isdecimal()}
    replaced = "".join(f"|replace('{name}', '{value}')" for name, value in values.items())
    # Jinja removes the line break after the macro, so the template still begins on a line of its own.
    return f"{{% macro {_CLOCK}(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}\n{template}"


def _squeezed(text: str) -> str:
    """Text without white space, because templates trim it."""
    return "".join(text.split())
