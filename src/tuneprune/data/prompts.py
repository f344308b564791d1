"""The wording of tasks: training, calibration and evaluation all get their prompts here.

Every prompt ends without a space and every completion starts with one: the two are tokenised separately.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tuneprune.data.bad_records import LONGEST_RECORD, BlankField, LeftOut, UnusableRecord, WrongType, name_list, quote
from tuneprune.data.examples import Example
from tuneprune.errors import ConfigError, has_surrogates

Kind = Literal["perplexity", "nli", "qa", "multiple_choice", "summary"]
Record = Mapping[str, Any]

_THREE_WAY = {"entailment": " true", "contradiction": " false", "neutral": " unknown"}
_TWO_WAY = {"entailment": " yes", "not_entailment": " no"}
_QA_ANSWERS = {"yes": " yes", "no": " no", "maybe": " maybe"}
_HOLDING_MARK = "<HOLDING>"
_NO_CHOICE = "with an answer outside the choices"
_MOST_DIGITS = 18

# Other names for the same field in published files (MedNLI, PubMedQA, MeQSum, CaseHOLD).
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


def text(record: Record) -> Example:
    """Plain text, as it is."""
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

    In a passage with a <HOLDING> mark, the words right before it matter most, so they are kept when it is shortened.
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
    """A named source and the wording of its records."""

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
    """The wording for a user's records of a kind of task; NLI is two-way if a label is not_entailment."""
    if kind == "nli" and any("not_entailment" in record.values() for _, record in records):
        return nli_two_way
    return _WORDINGS[kind]


def word_all(
    word: Callable[[Record], Example], records: Sequence[tuple[int, Record]], source: str, left_out: LeftOut
) -> list[Example]:
    """The examples of numbered records.

    Args:
        left_out: counts the records that cannot be used, or refuses them.

    Raises:
        DataError: a record that is refused, or too many that are left out; names the record.
        ConfigError: the tokenizer cannot encode such records.
    """
    examples, before = [], left_out.total
    for number, record in records:
        with left_out.catching(source, number):
            try:
                examples.append(replace(_checked(word(record)), source=source, index=number))
            except ConfigError as error:
                raise ConfigError(f"{source}:{number}: {error}") from None
    left_out.check_share(source, left_out.total - before, len(records))
    return examples


def _checked(example: Example) -> Example:
    """The example, if any tokenizer can read its texts."""
    texts = (example.prompt, example.completion, *example.choices)
    if sum(map(len, texts)) > LONGEST_RECORD:
        limit = f"longer than {LONGEST_RECORD >> 20} MiB"
        raise UnusableRecord(limit, f"its texts are {limit} together. Split them into several records.")
    if any(map(has_surrogates, texts)):
        raise UnusableRecord(
            "with half a character",
            "a text holds one half of a surrogate pair (\\ud800 to \\udfff), which is not a character. Fix it.",
        )
    return example


def renamed(record: Record, fields: Mapping[str, str]) -> Record:
    """The record with its columns under our field names.

    Args:
        fields: our name for each of the data's.
    """
    missing = [column for column in fields.values() if column not in record]
    if missing:
        raise UnusableRecord(
            "without a column",
            f"no column `{missing[0]}` (columns: {name_list(record)}). Name one of these in `fields`.",
        )
    kept = {name: value for name, value in record.items() if name not in fields.values()}
    return kept | {field: record[column] for field, column in fields.items()}


def _find(record: Record, field: str) -> object:
    for name in (field, *_OTHER_NAMES.get(field, ())):
        if name in record:
            return record[name]
    raise UnusableRecord(
        "without a field",
        f"the field `{field}` is missing (found: {name_list(record)}). Rename a column with"
        f" `fields: {{{field}: <column>}}`.",
    )


def _words(record: Record, field: str) -> str:
    value = _find(record, field)
    if isinstance(value, Mapping):  # PubMedQA's published form: {"contexts": [...], "labels": [...], ...}
        value = _find(value, field)
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        value = " ".join(value)
    if value is None:
        raise BlankField(f"the field `{field}` is null.")
    if not isinstance(value, str):
        raise WrongType(f"the field `{field}`", "a text", value, "Fix it, or name another column in `fields`.")
    if not value.strip():
        raise BlankField(f"the field `{field}` is blank.")
    return value.strip()


def _label(record: Record, answers: Mapping[str, str]) -> str:
    value = _find(record, "answer")
    if not isinstance(value, str) or value.strip().lower() not in answers:
        raise UnusableRecord(
            _NO_CHOICE, f"the answer {quote(value)} is not one of {', '.join(answers)}. Write one of these."
        )
    return answers[value.strip().lower()]


def _options(record: Record) -> list[str]:
    options = _find(record, "choices")
    are_texts = isinstance(options, list) and all(isinstance(option, str) for option in options)
    if not isinstance(options, list) or not are_texts or len(options) < 2:
        raise WrongType("the field `choices`", "a list of two or more texts", options)
    return options


def _answer_index(record: Record, num_options: int) -> int:
    value = _find(record, "answer")
    is_number = isinstance(value, str) and value.strip().isdecimal() and len(value) <= _MOST_DIGITS
    index = int(value) if is_number and isinstance(value, str) else value
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < num_options:
        raise UnusableRecord(
            _NO_CHOICE,
            f"the answer {quote(value)} is not a position in `choices` (0 to {num_options - 1}). Write one of these.",
        )
    return index
