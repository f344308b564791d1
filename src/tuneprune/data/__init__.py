"""Data: examples from files and named sets, their wording, encoding, packing and overlap."""

from tuneprune.data.encoding import (
    Encoded,
    EncodedExamples,
    encode,
    encode_all,
    encode_choices,
    encode_prompt,
    padding_id,
    windows,
)
from tuneprune.data.examples import Example
from tuneprune.data.loading import Data, Part, load
from tuneprune.data.overlap import OverlapReport, overlaps
from tuneprune.data.prompts import TASKS, Kind
from tuneprune.data.sources import DataConfig, SourceConfig, known_sources, read_source
from tuneprune.data.stream import Stream
from tuneprune.data.suites import METRICS, SUITES, TaskSpec, load_task

__all__ = [
    "METRICS",
    "SUITES",
    "TASKS",
    "Data",
    "DataConfig",
    "Encoded",
    "EncodedExamples",
    "Example",
    "Kind",
    "OverlapReport",
    "Part",
    "SourceConfig",
    "Stream",
    "TaskSpec",
    "encode",
    "encode_all",
    "encode_choices",
    "encode_prompt",
    "known_sources",
    "load",
    "load_task",
    "overlaps",
    "padding_id",
    "read_source",
    "windows",
]
