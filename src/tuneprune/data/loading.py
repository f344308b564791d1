"""The data of one run: training and calibration documents, encoded, checked against the test items."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import compress
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneprune.data.encoding import Encoded, EncodedExamples, encode_all, padding_id
from tuneprune.data.examples import Example
from tuneprune.data.overlap import OverlapReport, content_fingerprint, leaks, overlaps
from tuneprune.data.sources import DataConfig, SourceConfig, Split, read_source
from tuneprune.data.stream import Stream
from tuneprune.errors import DataError

HELD_OUT_SHARE = 0.1
"""Share of the training examples that calibrates when no calibration source is named."""


@dataclass(frozen=True)
class PartSummary:
    """One source in numbers, for the record of a run."""

    source: str
    examples: int
    dropped: int
    """Left out, because they are test items."""
    weight: float
    sha256: str


@dataclass(frozen=True)
class Part:
    """Training or calibration data: documents with their weights."""

    encoded: EncodedExamples
    weights: list[float]
    """One a document."""
    sources: tuple[PartSummary, ...]

    def summary(self) -> dict[str, Any]:
        """Counts and hashes."""
        return {
            "sources": [asdict(source) for source in self.sources],
            "examples": len(set(self.encoded.owners)),
            "documents": len(self.encoded.documents),
            "tokens": self.encoded.num_tokens,
            "shortened": self.encoded.num_shortened,
            "split": self.encoded.num_split,
        }


@dataclass(frozen=True)
class Data:
    """What a run trains and calibrates on."""

    train_part: Part
    calibration_part: Part
    is_held_out: bool
    """Whether calibration is a slice of the training sources."""
    overlap: OverlapReport
    num_test: int
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
        """Endless batches of one part; `batch_size` counts the rows over all processes."""
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
        """Counts, hashes, truncation and overlap: what the record of a run keeps about its data."""
        return {
            "train": self.train_part.summary(),
            "calibration": self.calibration_part.summary() | {"held_out_of_train": self.is_held_out},
            "test": {"examples": self.num_test},
            "overlap": self.overlap.summary(),
            "max_length": self.max_length,
            "packing": self.config.packing,
            "completion_only": self.config.completion_only,
        }


@dataclass(frozen=True)
class _Source:
    """One source's examples on their way into a part."""

    label: str
    weight: float
    examples: tuple[Example, ...]
    dropped: int = 0


def load(
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    test: Sequence[Example] | None = None,
) -> Data:
    """Training and calibration data, read, checked against the test items and encoded.

    Args:
        max_length: tokens in a row, at most.
        test: every item of every task that will be evaluated.

    Raises:
        ConfigError: an unknown source, messages without a chat template.
        DataError: missing, broken, empty or unusable data; test items in training or calibration.
    """
    items = list(test or ())
    train = [_read(source, tokenizer, "train") for source in config.train]
    calibration = [_read(source, tokenizer, "val") for source in config.calibration]
    if config.test_overlap == "drop":
        train = [_without_leaks(source, items) for source in train]
        calibration = [_without_leaks(source, items) for source in calibration]
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
        config=config,
        max_length=max_length,
        pad_id=padding_id(tokenizer),
    )


def _read(config: SourceConfig, tokenizer: PreTrainedTokenizerBase, split: Split) -> _Source:
    return _Source(config.label(split), config.weight, tuple(read_source(config, tokenizer, split)))


def _without_leaks(source: _Source, test: Sequence[Example]) -> _Source:
    leaked = set(leaks(source.examples, test))
    kept = tuple(example for index, example in enumerate(source.examples) if index not in leaked)
    if not kept:
        raise DataError(f"{source.label}: every example is a test item, so dropping them leaves nothing.")
    return replace(source, examples=kept, dropped=len(leaked))


def _hold_out(train: Sequence[_Source]) -> tuple[list[_Source], list[_Source]]:
    """Training sources without a tenth, and that tenth; picked by content, one passage as a whole."""
    examples = _examples(train)
    by_hash = sorted(content_fingerprint(example) for example in examples)
    wanted = max(1, round(HELD_OUT_SHARE * len(examples)))
    last = by_hash[wanted - 1]

    def part(source: _Source, is_calibration: bool) -> _Source:
        is_chosen = [(content_fingerprint(example) <= last) == is_calibration for example in source.examples]
        return replace(source, examples=tuple(compress(source.examples, is_chosen)))

    kept, held_out = ([part(source, is_held_out) for source in train] for is_held_out in (False, True))
    kept, held_out = ([source for source in sources if source.examples] for sources in (kept, held_out))
    if not kept:
        raise DataError(
            f"{train[0].label}: too few different examples ({len(examples)}) to hold some out for "
            "calibration. Add data, or name a calibration source."
        )
    return kept, held_out


def _examples(sources: Sequence[_Source]) -> list[Example]:
    return [example for source in sources for example in source.examples]


def _part(
    sources: Sequence[_Source], tokenizer: PreTrainedTokenizerBase, max_length: int, completion_only: bool
) -> Part:
    encoded = encode_all(_examples(sources), tokenizer, max_length, completion_only)
    weights = [source.weight for source in sources for _ in source.examples]
    return Part(
        encoded=encoded,
        weights=[weights[owner] for owner in encoded.owners],
        sources=tuple(
            PartSummary(
                source=source.label,
                examples=len(source.examples),
                dropped=source.dropped,
                weight=source.weight,
                sha256=_sha256(source.examples),
            )
            for source in sources
        ),
    )


def _sha256(examples: Sequence[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps([example.prompt, example.completion]).encode())
    return digest.hexdigest()
