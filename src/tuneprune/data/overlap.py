"""Overlap between training, calibration and test, by content."""

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass

from tuneprune.data.bad_records import quote
from tuneprune.data.examples import Example
from tuneprune.errors import DataError


@dataclass(frozen=True)
class Shared:
    """How many examples of one part are also in another."""

    items: int
    passages: int
    """Other items about a passage that is in both parts; allowed, but worth knowing."""


@dataclass(frozen=True)
class OverlapReport:
    """Shared content of each pair of parts: how much of the second part is in the first."""

    train_test: Shared
    calibration_test: Shared
    train_calibration: Shared

    def summary(self) -> dict[str, dict[str, int]]:
        """The counts as plain numbers."""
        return asdict(self)


def item_fingerprints(example: Example) -> frozenset[str]:
    """Hashes of what the example asks; two examples are the same item if they share one.

    Case and white space are ignored. An item is its prompt, and also its prompt with its completion (so that plain
    text made of both is found). Where only the passage varies (plain text, summaries: no choices), the passage alone
    is the item; where there are choices, another question about the same passage is another item. Content is also
    compared without the template or headings around it.
    """
    asked = {_hash(example.prompt), _hash(example.prompt, example.completion)} if example.prompt else set()
    if example.content:
        asked |= {_hash(example.content.asked), _hash(example.content.asked, example.content.answer)}
    return frozenset(asked if example.choices else asked | {passage_fingerprint(example)})


def passage_fingerprint(example: Example) -> str:
    """Hash of the longest part of the content: the body, else the prompt, else the text."""
    return _hash(example.body or example.prompt or example.completion)


def content_fingerprint(example: Example) -> str:
    """Hash that items about one passage share; without a marked passage, of prompt and completion."""
    return _hash(example.body) if example.body else _hash(example.prompt, example.completion)


def repeats(examples: Sequence[Example]) -> list[int]:
    """Positions of examples with the prompt and completion of an earlier one, ignoring case and white space."""
    seen: set[str] = set()
    found: list[int] = []
    for index, example in enumerate(examples):
        fingerprint = _hash(example.prompt, example.completion)
        if fingerprint in seen:
            found.append(index)
        seen.add(fingerprint)
    return found


def overlaps(train: Sequence[Example], calibration: Sequence[Example], test: Sequence[Example]) -> OverlapReport:
    """The content that the three parts share.

    A test item in training or calibration is an error: the same prompt, the same text, or, for tasks that consist of a
    passage only (plain text, summaries), any example about that passage. A passage shared by different questions, and
    whatever training and calibration share, is only counted. Content is compared exactly, except for case and white
    space: paraphrases and texts cut at other places are not found.

    Raises:
        DataError: test items in training or calibration; says how many, and where the first one is.
    """
    for part, examples in (("training", train), ("calibration", calibration)):
        leaked = leaks(examples, test)
        if leaked:
            found, item = examples[leaked[0]], _first_match(examples[leaked[0]], test)
            raise DataError(
                f"{len(leaked)} of {len(examples)} {part} examples are test items, first {found.where} = "
                f"{item.where} ({_quote(item)}). Remove them, or set data.test_overlap: drop."
            )
    return OverlapReport(
        train_test=_shared(train, test),
        calibration_test=_shared(calibration, test),
        train_calibration=_shared(train, calibration),
    )


def leaks(examples: Sequence[Example], test: Iterable[Example]) -> list[int]:
    """Positions of the examples that contain a test item."""
    known = {fingerprint for example in test for fingerprint in item_fingerprints(example)}
    return [index for index, example in enumerate(examples) if not known.isdisjoint(_content(example))]


def _content(example: Example) -> frozenset[str]:
    """Everything in the example: its item and its passages."""
    passages = {example.content.passage} if example.content and example.content.passage else set()
    return item_fingerprints(example) | {passage_fingerprint(example)} | {_hash(passage) for passage in passages}


def _shared(known: Sequence[Example], examples: Sequence[Example]) -> Shared:
    content: Collection[str] = {fingerprint for example in known for fingerprint in _content(example)}
    items = [example for example in examples if not item_fingerprints(example).isdisjoint(content)]
    touching = [example for example in examples if not _content(example).isdisjoint(content)]
    return Shared(items=len(items), passages=len(touching) - len(items))


def _first_match(example: Example, test: Iterable[Example]) -> Example:
    content = _content(example)
    return next(item for item in test if not item_fingerprints(item).isdisjoint(content))


def _quote(example: Example) -> str:
    return quote(" ".join((example.body or example.prompt or example.completion).split()))


def _hash(*parts: str) -> str:
    return hashlib.sha256(" ".join(" ".join(parts).lower().split()).encode()).hexdigest()
