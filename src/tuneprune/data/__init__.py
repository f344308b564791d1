"""Data: examples from files and named sets; their wording, encoding, packing and overlap."""

from tuneprune.data.encoding import (
    Encoded,
    encode,
    encode_all,
    encode_choices,
    encode_prompt,
    padding_id,
    windows,
)
from tuneprune.data.examples import Example
from tuneprune.data.loading import Data, Part, load
from tuneprune.data.overlap import overlaps
from tuneprune.data.prompts import TASKS
from tuneprune.data.sources import DataConfig, SourceConfig, read_source
from tuneprune.data.stream import Stream
from tuneprune.data.suites import METRICS, SUITES, TaskSpec, load_task

__all__ = [
    "METRICS",
    "SUITES",
    "TASKS",
    "Data",
    "DataConfig",
    "Encoded",
    "Example",
    "Part",
    "SourceConfig",
    "Stream",
    "TaskSpec",
    "encode",
    "encode_all",
    "encode_choices",
    "encode_prompt",
    "load",
    "load_task",
    "overlaps",
    "padding_id",
    "read_source",
    "windows",
]
