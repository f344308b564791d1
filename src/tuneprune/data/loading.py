"""The data of one run: training and calibration documents, checked against the test items and encoded."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from typing import TYPE_CHECKING, Any

from tuneprune.data.bad_records import LARGEST_SHARE, LeftOut
from tuneprune.data.encoding import Encoded, EncodedExamples, encode_all, padding_id
from tuneprune.data.examples import Example
from tuneprune.data.overlap import OverlapReport, content_fingerprint, leaks, overlaps, repeats
from tuneprune.data.sources import DataConfig, SourceConfig, Split, read_source
from tuneprune.data.stream import Stream
from tuneprune.data.summary import NOTES, in_words
from tuneprune.errors import DataError

if TYPE_CHECKING:  # costs seconds to import
    from transformers import PreTrainedTokenizerBase

HELD_OUT_SHARE = 0.1
"""Share of the training examples that is used for calibration when no calibration source is named."""


@dataclass(frozen=True)
class Part:
    """Training or calibration data: documents with their weights."""

    encoded: EncodedExamples
    weights: list[float]
    """One per document."""
    sources: tuple[dict[str, Any], ...]
    """A summary of each source."""

    def summary(self) -> dict[str, Any]:
        """Counts and hashes."""
        return {
            "sources": list(self.sources),
            "examples": len(set(self.encoded.owners)),
            "documents": len(self.encoded.documents),
            "tokens": self.encoded.num_tokens,
            "shortened": self.encoded.num_shortened,
            "split": self.encoded.num_split,
            "unknown": self.encoded.num_unknown,
            "control_tokens": self.encoded.num_control,
            **{note: self.encoded.noted[note] for note in NOTES},
        }


@dataclass(frozen=True)
class Data:
    """What a run trains and calibrates on."""

    train_part: Part
    calibration_part: Part
    is_held_out: bool
    """Whether the calibration data was held out from the training sources."""
    overlap: OverlapReport
    num_test: int
    num_blank_test: int
    config: DataConfig
    max_length: int
    pad_id: int

    @property
    def train(self) -> list[Encoded]:
        """Training documents."""
        return self.train_part.encoded.documents

    @property
    def calibration(self) -> list[Encoded]:
        """Calibration documents."""
        return self.calibration_part.encoded.documents

    def stream(self, part: Part, *, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> Stream:
        """Endless batches of one part; `batch_size` is the number of rows over all processes."""
        return Stream(
            part.encoded.documents,
            part.weights,
            batch_size=batch_size,
            max_length=self.max_length,
            pad_id=self.pad_id,
            seed=seed,
            packing=self.config.packing,
            rank=rank,
            world_size=world_size,
            origin=part.encoded.origin,
        )

    def summary(self) -> dict[str, Any]:
        """Counts, hashes, truncation and overlap, for the run record."""
        return {
            "train": self.train_part.summary(),
            "calibration": self.calibration_part.summary() | {"held_out_of_train": self.is_held_out},
            "test": {"examples": self.num_test, "blank": self.num_blank_test},
            "overlap": self.overlap.summary(),
            "max_length": self.max_length,
            "packing": self.config.packing,
            "completion_only": self.config.completion_only,
            "duplicates": self.config.duplicates,
            "system_role": self.config.system_role,
        }

    def words(self) -> str:
        """The summary in one line, for the start of a run."""
        return in_words(self.summary())


@dataclass(frozen=True)
class _Source:
    """The examples of one source, before they are encoded."""

    label: str
    weight: float
    examples: tuple[Example, ...]
    dropped: int = 0
    """Examples that were left out because they are test items."""
    duplicates: int = 0
    """Examples that repeat an earlier one of their part; left out if `data.duplicates` is `drop`."""
    left_out: LeftOut = field(default_factory=LeftOut)

    def summary(self) -> dict[str, Any]:
        """The source in numbers, for the run record."""
        digest = hashlib.sha256()
        for example in self.examples:
            digest.update(json.dumps([example.prompt, example.completion]).encode())
        return {
            "source": self.label,
            "examples": len(self.examples),
            "dropped": self.dropped,
            "duplicates": self.duplicates,
            "left_out": self.left_out.summary(),
            "weight": self.weight,
            "sha256": digest.hexdigest(),
        }


def load(
    config: DataConfig,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    test: Sequence[Example] | None = None,
    num_blank_test: int = 0,
) -> Data:
    """Training and calibration data, read, checked against the test items and encoded.

    Args:
        max_length: tokens in a row, at most.
        test: every item of every task that will be evaluated.
        num_blank_test: test items that were left out because they are blank.

    Raises:
        ConfigError: an unknown source, messages without a chat template.
        DataError: missing, broken, empty or unusable data; test items in training or calibration.
    """
    items = list(test or ())
    train = [_read(source, tokenizer, "train", config) for source in config.train]
    calibration = [_read(source, tokenizer, "val", config) for source in config.calibration]
    if config.test_overlap == "drop":
        train = [_without_leaks(source, items) for source in train]
        calibration = [_without_leaks(source, items) for source in calibration]
    train, calibration = (_count_repeats(sources, config) for sources in (train, calibration))
    is_held_out = not calibration
    if is_held_out:
        train, calibration = _hold_out(train)
    report = overlaps(_examples(train), _examples(calibration), items)
    return Data(
        train_part=_part(train, tokenizer, max_length, config.completion_only),
        calibration_part=_part(calibration, tokenizer, max_length, config.completion_only),
        is_held_out=is_held_out,
        overlap=report,
        num_test=len(items),
        num_blank_test=num_blank_test,
        config=config,
        max_length=max_length,
        pad_id=padding_id(tokenizer),
    )


def _read(source: SourceConfig, tokenizer: "PreTrainedTokenizerBase", split: Split, config: DataConfig) -> _Source:
    left_out = LeftOut(config.unusable == "drop", " Or set data.unusable: drop to leave such records out.")
    examples = tuple(read_source(source, tokenizer, split, left_out, config.system_role))
    return _Source(source.label(split), source.weight, examples, left_out=left_out)


def _without_leaks(source: _Source, test: Sequence[Example]) -> _Source:
    leaked = set(leaks(source.examples, test))
    kept = tuple(example for index, example in enumerate(source.examples) if index not in leaked)
    if not kept:
        raise DataError(
            f"{source.label}: every example is a test item, so nothing is left after dropping them. Name other data."
        )
    return replace(source, examples=kept, dropped=len(leaked))


def _count_repeats(sources: Sequence[_Source], config: DataConfig) -> list[_Source]:
    """The sources of one part with repeated examples counted, and left out if the run file says so."""
    repeated = set(repeats(_examples(sources)))
    result, start = [], 0
    for source in sources:
        is_first = [start + index not in repeated for index in range(len(source.examples))]
        start += len(source.examples)
        kept = tuple(compress(source.examples, is_first)) if config.duplicates == "drop" else source.examples
        result.append(replace(source, examples=kept, duplicates=is_first.count(False)))
    return result


def _hold_out(train: Sequence[_Source]) -> tuple[list[_Source], list[_Source]]:
    """The training sources without a tenth, and that tenth; chosen by content, so that passages stay together.

    The counts of what was left out of a source stay with its training part.
    """
    examples = _examples(train)
    by_hash = sorted(content_fingerprint(example) for example in examples)
    wanted = max(1, round(HELD_OUT_SHARE * len(examples)))
    last = by_hash[wanted - 1]

    def part(source: _Source, is_calibration: bool) -> _Source:
        is_chosen = [(content_fingerprint(example) <= last) == is_calibration for example in source.examples]
        chosen = replace(source, examples=tuple(compress(source.examples, is_chosen)))
        return replace(chosen, dropped=0, duplicates=0, left_out=LeftOut()) if is_calibration else chosen

    kept, held_out = ([part(source, is_held_out) for source in train] for is_held_out in (False, True))
    kept, held_out = ([source for source in sources if source.examples] for sources in (kept, held_out))
    if not kept:
        raise DataError(
            f"{train[0].label}: too few different examples ({len(set(by_hash))} of {len(examples)}) to hold some out"
            " for calibration. Add data, or name a calibration source."
        )
    return kept, held_out


def _examples(sources: Sequence[_Source]) -> list[Example]:
    return [example for source in sources for example in source.examples]


def _part(
    sources: Sequence[_Source], tokenizer: "PreTrainedTokenizerBase", max_length: int, completion_only: bool
) -> Part:
    examples = _examples(sources)
    encoded = encode_all(examples, tokenizer, max_length, completion_only)
    if encoded.num_unknown > LARGEST_SHARE * len(examples):
        raise DataError(
            f"{sources[0].label}: the tokenizer has no tokens for {encoded.num_unknown} of {len(examples)} examples."
            " Use a model for this language, or other data."
        )
    weights = [source.weight for source in sources for _ in source.examples]
    return Part(
        encoded=encoded,
        weights=[weights[owner] for owner in encoded.owners],
        sources=tuple(source.summary() for source in sources),
    )
