"""The one place where tasks are worded: training, calibration and evaluation all read their prompts here.

Every prompt ends without a space and every completion starts with one: the two are tokenised separately.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuneprune.data.examples import Example
from tuneprune.errors import ConfigError, DataError

_LOGGER = logging.getLogger(__name__)

Kind = Literal["perplexity", "nli", "qa", "multiple_choice", "summary"]
Record = Mapping[str, Any]

_THREE_WAY = {"entailment": " true", "contradiction": " false", "neutral": " unknown"}
_TWO_WAY = {"entailment": " yes", "not_entailment": " no"}
_QA_ANSWERS = {"yes": " yes", "no": " no", "maybe": " maybe"}
_HOLDING_MARK = "<HOLDING>"

# Names that the sets' own files use for the same thing (MedNLI, PubMedQA, MeQSum, CaseHOLD).
_OTHER_NAMES = {
    "premise": ("sentence1",),
    "hypothesis": ("sentence2",),
    "answer": ("gold_label", "final_decision", "label"),
    "choices": ("endings",),
    "prompt": ("citing_prompt", "context"),
    "context": ("CONTEXTS", "contexts"),
    "text": ("CHQ",),
    "summary": ("Summary",),
}


class BlankField(DataError):
    """A record whose field is there but blank: it is left out, where a missing field is an error."""


def text(record: Record) -> Example:
    """Plain text, as it stands."""
    return Example(prompt="", completion=_words(record, "text"))


def nli_three_way(record: Record) -> Example:
    """Inference with the labels entailment, contradiction and neutral."""
    return _inference(record, "true, false or unknown", _THREE_WAY)


def nli_two_way(record: Record) -> Example:
    """Inference with the labels entailment and not_entailment."""
    return _inference(record, "yes or no", _TWO_WAY)


def _inference(record: Record, options: str, answers: Mapping[str, str]) -> Example:
    premise, hypothesis = _words(record, "premise"), _words(record, "hypothesis")
    request = f"Does the hypothesis follow from the text: {options}?"
    prompt = f'Text: "{premise}"\nHypothesis: "{hypothesis}"\n{request}\nAnswer:'
    completion = _label(record, answers)
    return Example(prompt=prompt, completion=completion, choices=tuple(answers.values()), body=premise)


def qa(record: Record) -> Example:
    """A question about a passage, answered yes, no or maybe."""
    context, question = _words(record, "context"), _words(record, "question")
    prompt = f'Text: "{context}"\nQuestion: {question}\nReply with yes, no or maybe.\nAnswer:'
    completion = _label(record, _QA_ANSWERS)
    return Example(prompt=prompt, completion=completion, choices=tuple(_QA_ANSWERS.values()), body=context)


def multiple_choice(record: Record) -> Example:
    """A passage and its numbered options; the answer is a number, from 1.

    In a passage with a <HOLDING> mark the words right before the mark say most, so they survive shortening.
    """
    passage, options = _words(record, "prompt"), _options(record)
    before, mark, _ = passage.partition(_HOLDING_MARK)
    wanted = f"Which option belongs at {_HOLDING_MARK}?" if mark else "Which option fits best?"
    listed = "\n".join(f"{number}. {option}" for number, option in enumerate(options, start=1))
    prompt = f'Text: "{passage}"\n{wanted}\n{listed}\nAnswer:'
    choices = tuple(f" {number}" for number in range(1, len(options) + 1))
    body = before if before.strip() else passage
    return Example(
        prompt=prompt,
        completion=choices[_answer_index(record, len(options))],
        choices=choices,
        body=body,
        body_keeps="end" if mark else "start",
    )


def summary(record: Record) -> Example:
    """A text and its summary."""
    body = _words(record, "text")
    prompt = f'Text: "{body}"\nSay in short what the text says.\nSummary:'
    return Example(prompt=prompt, completion=" " + _words(record, "summary"), body=body)


def heading(record: Record) -> Example:
    """A section and its heading."""
    body = _words(record, "text")
    prompt = f'Section: "{body}"\nGive the section its heading.\nHeading:'
    return Example(prompt=prompt, completion=" " + _words(record, "heading"), body=body)


def question_and_answer(record: Record) -> Example:
    """A question followed by its answer, as one plain text."""
    return Example(prompt="", completion=f"{_words(record, 'question')}\n{_words(record, 'answer')}")


@dataclass(frozen=True)
class Task:
    """A named source and how its records are worded."""

    name: str
    kind: Kind
    folder: str
    word: Callable[[Record], Example]


_TASKS = (
    Task("openstax_anatomy", "perplexity", "openstax_anatomy", text),
    Task("rqe", "nli", "rqe", nli_two_way),
    Task("pubmedqa", "qa", "pubmedqa", qa),
    Task("rqe_question_summary", "summary", "rqe_question_summary", summary),
    Task("medquad", "perplexity", "medquad", question_and_answer),
    Task("dc_code", "perplexity", "dc_code", text),
    Task("dc_code_heading", "summary", "dc_code", heading),
    Task("us_bills_pd", "perplexity", "us_bills_pd", text),
    Task("casehold", "multiple_choice", "casehold", multiple_choice),
    Task("billsum", "summary", "billsum", summary),
    Task("wikitext2", "perplexity", "wikitext2", text),
    Task("snli", "nli", "snli", nli_three_way),
    Task("books", "perplexity", "books", text),
    Task("books_more", "perplexity", "books_more", text),
    Task("tinystories_sample", "perplexity", "tinystories_sample", text),
    Task("mednli", "nli", "mednli", nli_three_way),
    Task("hqs", "summary", "hqs", summary),
    Task("multilegalpile", "perplexity", "multilegalpile", text),
    Task("harrison", "perplexity", "harrison", text),
    Task("clinic_text", "perplexity", "", text),
    Task("clinic_nli", "nli", "", nli_three_way),
    Task("clinic_qa", "qa", "", qa),
    Task("clinic_summary", "summary", "", summary),
)
TASKS: Mapping[str, Task] = {task.name: task for task in _TASKS}

_WORDINGS: Mapping[Kind, Callable[[Record], Example]] = {
    "perplexity": text,
    "nli": nli_three_way,
    "qa": qa,
    "multiple_choice": multiple_choice,
    "summary": summary,
}


def wording(kind: Kind, records: Sequence[tuple[int, Record]]) -> Callable[[Record], Example]:
    """The wording of a kind of task for own records; NLI is two-way where a label is not_entailment."""
    if kind == "nli" and any("not_entailment" in record.values() for _, record in records):
        return nli_two_way
    return _WORDINGS[kind]


def word_all(word: Callable[[Record], Example], records: Sequence[tuple[int, Record]], source: str) -> list[Example]:
    """The examples of numbered records; those with a blank field are left out, with a warning.

    Raises:
        DataError: a record lacks a field or holds something else in it, or all are blank; names the record.
        ConfigError: the tokenizer cannot read such records.
    """
    examples, blank = [], ""
    for number, record in records:
        try:
            examples.append(replace(word(record), source=source, index=number))
        except BlankField as error:
            blank = blank or f"{source}:{number}: {error}"
        except (ConfigError, DataError) as error:
            raise type(error)(f"{source}:{number}: {error}") from None
    if not examples:
        raise DataError(f"every record is blank, first {blank} Name other fields or other data.")
    if blank:
        _LOGGER.warning("%d blank records left out, first %s", len(records) - len(examples), blank)
    return examples


def _find(record: Record, field: str) -> object:
    for name in (field, *_OTHER_NAMES.get(field, ())):
        if name in record:
            return record[name]
    found = ", ".join(record) or "none"
    mapping = f"fields: {{{field}: <column>}}"
    raise DataError(f"the field `{field}` is missing (found: {found}). Rename a column with `{mapping}`.")


def _words(record: Record, field: str) -> str:
    value = _find(record, field)
    if isinstance(value, Mapping):  # PubMedQA's published form: {"contexts": [...], "labels": [...], ...}
        value = _find(value, field)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if not isinstance(value, str):
        raise DataError(f"the field `{field}` has to be a text, got {value!r:.60}.")
    if not value.strip():
        raise BlankField(f"the field `{field}` is blank.")
    return value.strip()


def _label(record: Record, answers: Mapping[str, str]) -> str:
    value = _find(record, "answer")
    if not isinstance(value, str) or value.strip().lower() not in answers:
        raise DataError(f"the answer {value!r:.60} is none of {', '.join(answers)}.")
    return answers[value.strip().lower()]


def _options(record: Record) -> list[str]:
    options = _find(record, "choices")
    are_texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not isinstance(options, list) or not are_texts or len(options) < 2:
        raise DataError("the field `choices` has to be a list of two or more texts.")
    return options


def _answer_index(record: Record, num_options: int) -> int:
    value = _find(record, "answer")
    index = int(value) if isinstance(value, str) and value.strip().isdecimal() else value
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < num_options:
        raise DataError(f"the answer {value!r:.60} is no position in `choices` (0 to {num_options - 1}).")
    return index
