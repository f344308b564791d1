"""Where data comes from: the schema of a run file's `data` section, and reading a source into examples."""

import logging
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tuneprune.data import clinic
from tuneprune.data.bad_records import LeftOut
from tuneprune.data.chat_template import SystemRole
from tuneprune.data.examples import Example
from tuneprune.data.files import is_one, read_path
from tuneprune.data.hub import read_hub
from tuneprune.data.json_files import Numbered
from tuneprune.data.prompts import TASKS, Kind, Task, renamed, word_all, wording
from tuneprune.data.record_reader import RecordReader
from tuneprune.data.summary import in_notes
from tuneprune.errors import ConfigError, DataError, suggest
from tuneprune.system.paths import DataPath

if TYPE_CHECKING:  # costs seconds to import
    from transformers import PreTrainedTokenizerBase

Split = Literal["train", "val", "test"]
DATA_FOLDER = "TUNEPRUNE_DATA"
_CLINIC = "clinic_"
_LOGGER = logging.getLogger(__name__)


class SourceConfig(BaseModel):
    """One source of examples: a file or folder (`path`) or a named or hub data set (`source`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: DataPath | None = Field(default=None, description="a data file, a pattern of files, or a folder of splits")
    source: str | None = Field(default=None, description="a named set, or a hub id: owner/name or owner/name:subset")
    split: Split | None = Field(default=None, description="which part; by default `train`, or `val` for calibration")
    kind: Kind | None = Field(default=None, description="word own records as this kind of task")
    weight: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] = Field(
        default=1.0, description="how often an epoch holds each example"
    )
    limit: Annotated[int, Field(gt=0)] | None = Field(
        default=None, description="at most this many records, evenly spaced"
    )
    fields: dict[str, str] = Field(default_factory=dict, description="our field name: the data's column name")

    @model_validator(mode="after")
    def _one_origin(self) -> "SourceConfig":
        if (self.path is None) == (self.source is None):
            raise ValueError("a source needs exactly one of `path` (a file or folder) and `source` (a name)")
        if self.source in TASKS and (self.kind or self.fields):
            raise ValueError(f"the source `{self.source}` has its own wording: leave out `kind` and `fields`")
        return self

    def label(self, default_split: Split) -> str:
        """The name in messages and run records: the path, or name[split]."""
        if self.path is not None and not os.path.isdir(self.path):
            return str(self.path)
        return f"{self.path or self.source}[{self.split or default_split}]"


def _as_list(value: object) -> object:
    """A single source becomes a list, and a text the named set of that name, or else a path."""
    entries = cast("list[object]", value) if isinstance(value, list) else [value]
    if not all(isinstance(entry, str | Path | dict | SourceConfig) for entry in entries):
        return value
    return [_from_text(str(entry)) if isinstance(entry, str | Path) else entry for entry in entries]


def _from_text(text: str) -> dict[str, str]:
    is_path = Path(text).suffix or os.path.exists(os.path.expanduser(text)) or text.startswith((".", "/", "~", "$"))
    is_hub_id = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+)?", text)
    return {"source" if not is_path and (text in known_sources() or is_hub_id) else "path": text}


Sources = Annotated[list[SourceConfig], BeforeValidator(_as_list)]
"""One or several sources, each of which may be only a path or a name."""


class DataConfig(BaseModel):
    """What a run trains and calibrates on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    train: Sources = Field(min_length=1, description="training sources, mixed by their weights")
    calibration: Sources = Field(
        default_factory=list, description="data for the pruning decision; by default a tenth of train, held out"
    )
    packing: bool = Field(default=True, description="put several examples into a row, without attention between them")
    completion_only: bool = Field(default=True, description="compute the loss on completions only, not on prompts")
    test_overlap: Literal["error", "drop"] = Field(
        default="error", description="what to do with training and calibration examples that are test items"
    )
    unusable: Literal["error", "drop"] = Field(
        default="error", description="what to do with broken lines and other unusable training records"
    )
    duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="what to do with examples that repeat an earlier one of their part"
    )
    system_role: SystemRole = Field(
        default="fold", description="put a system text that the chat template has no role for into the user's turn"
    )


def read_source(
    config: SourceConfig,
    tokenizer: "PreTrainedTokenizerBase",
    default_split: Split,
    left_out: LeftOut | None = None,
    system_role: SystemRole = "fold",
) -> list[Example]:
    """The examples of one source.

    Args:
        left_out: counts the records that cannot be used, or refuses them; by default it refuses.
        system_role: what to do with a system text that the chat template has no role for.

    Raises:
        ConfigError: an unknown name, or messages without a chat template.
        DataError: missing, empty, broken or unusable data; names the file and the record.
    """
    left_out = LeftOut() if left_out is None else left_out
    split, label = config.split or default_split, config.label(default_split)
    task = TASKS.get(config.source or "")
    records = _thinned(_records(config, task, split, left_out), config.limit)
    if task is None and config.kind in (None, "perplexity"):
        reader = RecordReader(tokenizer, config.fields, records, system_role)
        examples = word_all(reader.read, records, label, left_out)
        if said := reader.words():
            _LOGGER.warning("%s: %s", label, said)
    else:
        word = task.word if task is not None else wording(config.kind or "perplexity", records)
        examples = word_all(lambda record: word(renamed(record, config.fields)), records, label, left_out)
    if left_out.total:
        _LOGGER.warning("%s: left out: %s", label, left_out.words())
    if noted := in_notes(examples):
        _LOGGER.warning("%s: %s", label, noted)
    return examples


def _records(config: SourceConfig, task: Task | None, split: Split, left_out: LeftOut) -> Numbered:
    if config.path is not None:
        if config.split is not None and is_one(config.path):
            raise ConfigError(
                f"{config.path} is one file or data set: leave out `split`, or name a folder of splits instead."
            )
        return read_path(config.path, split, left_out)
    name = config.source or ""
    if task is not None and name.startswith(_CLINIC):
        return list(enumerate(clinic.records(name.removeprefix(_CLINIC), split), start=1))
    folder = _named_folder(task.folder if task else name)
    if folder is not None:
        return read_path(folder, split, left_out)
    if "/" in name:
        return read_hub(name, split)
    if task is not None:
        now = os.environ.get(DATA_FOLDER) or "not set"
        raise DataError(
            f"{name}: not found in ${DATA_FOLDER} (now: {now}). Set it to the folder that contains "
            f"{task.folder}/{split}.jsonl, or name a file with `path` and its `kind`."
        )
    raise ConfigError(
        f"unknown source `{name}`.{suggest(name, known_sources())} Known: {', '.join(known_sources())}; "
        "write a hub data set as owner/name, and a file under `path`."
    )


def known_sources() -> list[str]:
    """Every name that `source` accepts: the built-in tasks and the folders in $TUNEPRUNE_DATA."""
    root = os.environ.get(DATA_FOLDER)
    folders = [folder.name for folder in Path(root).glob("*/") if folder.is_dir()] if root else []
    return sorted({*TASKS, *folders})


def _named_folder(name: str) -> Path | None:
    root = os.environ.get(DATA_FOLDER)
    folder = Path(root, name) if root and name and name not in (".", "..") else None
    return folder if folder is not None and folder.is_dir() else None


def _thinned(records: Numbered, limit: int | None) -> Numbered:
    """At most `limit` records, evenly spaced because files are often sorted."""
    if limit is None or limit >= len(records):
        return records
    return [records[index * len(records) // limit] for index in range(limit)]
