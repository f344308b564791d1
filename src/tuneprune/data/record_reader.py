"""A user's records as examples: recognised by their columns, and written by the chat template if conversations."""

import json
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from tuneprune.data.bad_records import BlankField, UnusableRecord, name_list, quote
from tuneprune.data.chat_template import SystemRole, write
from tuneprune.data.column_names import REQUIRED, text_of
from tuneprune.data.conversations import Conversation, conversation
from tuneprune.data.encoding import control_tokens
from tuneprune.data.examples import Content, Example
from tuneprune.data.formats import recognise
from tuneprune.data.json_files import Numbered
from tuneprune.data.prompts import Record, renamed

if TYPE_CHECKING:  # costs seconds to import
    from transformers import PreTrainedTokenizerBase


class RecordReader:
    """Reads the records of one source, and counts what has to be reported about them.

    Args:
        fields: our name for each of the data's columns.
        system_role: what to do with a system text that the chat template has no role for.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        fields: Mapping[str, str],
        records: Numbered,
        system_role: SystemRole,
    ) -> None:
        self.tokenizer, self.fields = tokenizer, fields
        self.system_role: SystemRole = system_role
        self.has_template = bool(getattr(tokenizer, "chat_template", None))
        there = {name for _, record in records for name in record} if fields else set()
        self.optional = {name for name, column in fields.items() if name not in REQUIRED and column in there}
        """Our names for columns that some records may lack."""
        self.converted: Counter[str] = Counter()
        self.unread: dict[str, None] = {}
        """Columns that were not read, in order."""

    def read(self, record: Record) -> Example:
        """The example of a record.

        Raises:
            UnusableRecord: a record without usable fields.
            ConfigError: messages, but the tokenizer has no chat template.
        """
        fields = {name: column for name, column in self.fields.items() if column in record or name not in self.optional}
        found = recognise(renamed(record, fields), self.has_template, fields)
        read = [fields.get(name, name) for name in found.read]
        example = self._example(found.record, found.content)
        self.unread |= dict.fromkeys(name or "(without a name)" for name in record if name not in read)
        if found.how:
            self.converted[f"{name_list(read)} read {found.how}"] += 1
        return example

    def words(self) -> str:
        """How many records were converted, and which columns were not read; empty if there is nothing to report."""
        said = [f"{count} record{'s' if count > 1 else ''}: {what}" for what, count in self.converted.items()]
        return "; ".join([*said, *([f"columns not read: {name_list(self.unread)}"] if self.unread else [])])

    def _example(self, record: Record, content: Content | None) -> Example:
        """The example of a record with messages, or with a prompt and a completion, or with a text."""
        found, notes = conversation(record), ()
        if found is not None:
            self._refuse_control_tokens(found)
            prompt, completion, notes = write(found, self.tokenizer, self.system_role)
        elif record.get("prompt") is not None and record.get("completion") is not None:
            prompt, completion = text_of(record, "prompt"), text_of(record, "completion")
        else:
            prompt, completion = "", text_of(record, "text")
        if not completion.strip():
            raise BlankField("there is nothing to learn: the completion or the text is blank.")
        return Example(prompt, completion, is_templated=found is not None, notes=notes, content=content)

    @cached_property
    def _control_tokens(self) -> tuple[str, ...]:
        return tuple(control_tokens(self.tokenizer).values())

    def _refuse_control_tokens(self, found: Conversation) -> None:
        """Refuse messages with a token that would end or begin a turn that the data does not have."""
        texts = json.dumps([found.turns, found.arguments], ensure_ascii=False, default=str)
        token = next((token for token in self._control_tokens if token in texts), None)
        if token is not None:
            raise UnusableRecord(
                "with a control token in a message",
                f"a message holds the control token {quote(token)} of the tokenizer, which would end or begin a turn"
                " that is not there. Remove it from the text.",
            )
