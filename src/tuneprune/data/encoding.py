"""Examples as token ids: the tokenizer's prefix, prompt, completion and EOS, with labels on what is learned."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, cast

from tuneprune.calibration.labels import IGNORED
from tuneprune.data.examples import Example, Note
from tuneprune.errors import ConfigError

if TYPE_CHECKING:  # costs seconds to import
    from transformers import PreTrainedTokenizerBase

_SHORTEST = 8


@dataclass(frozen=True)
class Encoded:
    """One document as tokens."""

    input_ids: list[int]
    labels: list[int]
    num_given: int = 0
    """Tokens at the start that are only read: the tokenizer's prefix and the prompt."""
    is_shortened: bool = False
    """Whether something was left out to fit the maximum length."""
    is_cut: bool = False
    """Whether the completion lost its end."""


@dataclass
class EncodedExamples:
    """Documents of many examples, with counts of changes and peculiarities."""

    documents: list[Encoded] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """Position of the example behind each document."""
    places: list[tuple[str, int]] = field(default_factory=list)
    """Source and record number of each example."""
    num_shortened: int = 0
    num_split: int = 0
    """Plain texts longer than the maximum length, read as several windows."""
    num_unknown: int = 0
    """Examples left out because the tokenizer has no tokens for what they would teach."""
    num_control: int = 0
    """Examples whose own texts contain control tokens, such as an end of text; messages may not contain any."""
    noted: Counter[Note] = field(default_factory=Counter)
    """The number of examples with each kind of change."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(document.input_ids) for document in self.documents)

    def origin(self, document: int) -> str:
        """Where the document at a position comes from, in the format of `Example.where`."""
        source, index = self.places[self.owners[document]]
        return f"{source}:{index}"


def encode(
    example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int, completion_only: bool = True
) -> Encoded:
    """The tokenizer's prefix + prompt + completion + EOS, with labels on the completion, or on everything.

    The prefix is what the tokenizer itself puts before a text, such as BOS, or nothing; a chat template writes its own.
    If it is too long, the body is shortened first, then the prompt loses its start. A completion is cut (and then has
    no EOS) only if it exceeds half of `max_length` and the prompt needs the other half. Plain text keeps its beginning.

    Args:
        max_length: tokens, including special ones.
        completion_only: compute no loss on the prompt.
    """
    start, completion = _start(example, tokenizer, max_length), _completion_ids(example, tokenizer)
    prompt, is_shortened = [], False
    if example.prompt:
        room = max_length - len(start)
        prompt, is_shortened = _prompt_ids(example, tokenizer, start, max(room - len(completion), room // 2))
    else:
        completion = _without(start, completion)
    prompt = start + prompt
    kept = completion[: max_length - len(prompt)]
    ignored = len(prompt) if completion_only and example.prompt else 0
    return Encoded(
        input_ids=prompt + kept,
        labels=[IGNORED] * ignored + (prompt + kept)[ignored:],
        num_given=len(prompt),
        is_shortened=is_shortened or len(kept) < len(completion),
        is_cut=len(kept) < len(completion),
    )


def encode_choices(
    example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> tuple[list[int], list[list[int]]]:
    """The prompt with the tokenizer's prefix, and every choice with its EOS; all choices share one prompt.

    Raises:
        ConfigError: a choice alone fills the context.
    """
    choices = [_completion_ids(replace(example, completion=choice), tokenizer) for choice in example.choices]
    longest = max(map(len, choices))
    prompt, _ = encode_prompt(example, tokenizer, max_length, reserve=longest)
    return prompt, choices


def encode_prompt(
    example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int, reserve: int
) -> tuple[list[int], bool]:
    """The tokenizer's prefix + prompt, shortened so that `reserve` tokens remain; and whether it was shortened.

    Raises:
        ConfigError: `reserve` leaves no room for a prompt.
    """
    start = _start(example, tokenizer, max_length)
    room = max_length - len(start) - reserve
    if room < 1:
        raise ConfigError(
            f"{example.where}: {reserve} tokens of answer leave no room for a prompt in a context "
            f"of {max_length}. Lower max_new_tokens or use a model with a longer context."
        )
    prompt, is_shortened = _prompt_ids(example, tokenizer, start, room)
    return start + prompt, is_shortened


def windows(example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[Encoded]:
    """A plain text as consecutive documents without overlap.

    Each begins with the tokenizer's prefix; EOS ends the last one, unless it would be alone there. Training and
    perplexity both use this.
    """
    start = _start(example, tokenizer, max_length)
    ids = _without(start, _completion_ids(example, tokenizer))
    room = max_length - len(start)
    if len(ids) > room and len(ids) % room == 1:
        ids = ids[:-1]  # a window of only EOS teaches and measures nothing
    parts = [start + ids[position : position + room] for position in range(0, len(ids), room)]
    return [Encoded(input_ids=part, labels=list(part), num_given=len(start)) for part in parts]


def encode_all(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    completion_only: bool = True,
) -> EncodedExamples:
    """Every example as documents of at most `max_length` tokens, with counts of the changes.

    Examples for which the tokenizer has no tokens are left out.
    """
    result = EncodedExamples()
    control, unknown = frozenset(control_tokens(tokenizer)), cast("int | None", tokenizer.unk_token_id)
    meaningless = control | {IGNORED, unknown}
    num_front = max(1, len(added_in_front(tokenizer)))
    for index, example in enumerate(examples):
        if example.is_text:
            documents = windows(example, tokenizer, max_length)
        else:
            documents = [encode(example, tokenizer, max_length, completion_only)]
        result.places.append((example.source, example.index))
        learned = set().union(*(document.labels for document in documents)) - meaningless
        if len(learned) <= 1 and not _read_back(tokenizer, learned):
            result.num_unknown += 1
            continue
        result.num_split += len(documents) > 1
        result.num_shortened += documents[0].is_shortened
        result.num_control += not example.is_templated and _holds(documents, control, num_front)
        result.noted.update(example.notes)
        result.documents += documents
        result.owners += [index] * len(documents)
    return result


def _read_back(tokenizer: "PreTrainedTokenizerBase", tokens: set[int]) -> str:
    """The text of tokens without white space around it and without SentencePiece's mark at its start."""
    return str(tokenizer.decode(sorted(tokens))).replace("▁", " ").strip()


def _holds(documents: list[Encoded], control: frozenset[int], num_front: int) -> bool:
    """Whether there is a control token anywhere but at the start and the end, where they belong."""
    return not all(control.isdisjoint(document.input_ids[num_front:-1]) for document in documents)


def control_tokens(tokenizer: "PreTrainedTokenizerBase") -> dict[int, str]:
    """The tokens with a meaning beyond their text, such as the end of a turn; without the unknown token."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)  # one of them may also be the unknown token
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and (token != tokenizer.unk_token_id or token in ends)
    }


def padding_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The padding token; its labels are always ignored, so any known token will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return next((token for token in known if isinstance(token, int)), 0)


def _ids(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # verbose=False: no warning about texts longer than the context, which are cut next.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def added_in_front(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokenizer's prefix, which it puts before every text: BOS, several tokens, or nothing."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    places = range(len(whole) - len(bare) + 1)
    return whole[: next((place for place in places if whole[place : place + len(bare)] == bare), 0)]


def _start(example: Example, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> list[int]:
    """The tokenizer's prefix, which is never shortened; a chat template writes its own, or none."""
    if max_length < _SHORTEST:
        raise ConfigError(f"max_length is {max_length}, but has to be {_SHORTEST} tokens or more.")
    if example.is_templated:
        first = _ids(tokenizer, example.prompt)[:1]
        return first if first == [tokenizer.bos_token_id] else []
    return added_in_front(tokenizer)


def _without(start: list[int], ids: list[int]) -> list[int]:
    """The tokens without a prefix that is already in their text, so that it does not appear twice."""
    return ids[len(start) :] if start and ids[: len(start)] == start else ids


def _completion_ids(example: Example, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The completion with one EOS (a chat template may have written it already)."""
    ids = _ids(tokenizer, example.completion)
    if example.is_templated:
        prompt, whole = (_ids(tokenizer, text) for text in (example.prompt, example.prompt + example.completion))
        # As in the whole conversation, where SentencePiece adds no space before the answer.
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else ids
    elif example.prompt and example.completion.startswith(" "):
        bare = _ids(tokenizer, example.completion[1:])
        # SentencePiece tokenizers add a space before every text.
        if bare and tokenizer.convert_ids_to_tokens(bare[:1])[0].startswith("▁"):
            ids = bare
    end = tokenizer.eos_token_id
    return [*ids, end] if isinstance(end, int) and ids[-1:] != [end] else ids


def _prompt_ids(
    example: Example, tokenizer: "PreTrainedTokenizerBase", start: list[int], room: int
) -> tuple[list[int], bool]:
    """The prompt after `start` in at most `room` tokens, and whether it was shortened, the body first."""
    ids = _without(start, _ids(tokenizer, example.prompt))
    if len(ids) <= room:
        return ids, False
    if example.body:
        ids = _without(start, _with_shorter_body(example, tokenizer, room))
    return ids[len(ids) - min(room, len(ids)) :], True


def _with_shorter_body(example: Example, tokenizer: "PreTrainedTokenizerBase", room: int) -> list[int]:
    """The prompt with as much of the body as fits; without the body if it is still too long."""
    before, _, after = example.prompt.partition(example.body)

    def shortened(length: int) -> list[int]:
        return _ids(tokenizer, before + _cut(example.body, length, example.body_keeps == "end") + after)

    low, high = 0, len(example.body)  # `low` characters fit (or nothing does), `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(shortened(middle)) <= room else (low, middle)
    return shortened(low)


def _cut(body: str, length: int, keeps_end: bool) -> str:
    """At most `length` characters of the body, cut between words if it has any."""
    if length <= 0:
        return ""
    if keeps_end:
        kept = body[-length:]
        return kept.partition(" ")[2] if " " in kept and body[-length - 1] != " " else kept
    kept = body[:length]
    return kept.rpartition(" ")[0] if " " in kept and body[length] != " " else kept
