"""Examples as token ids: what the tokenizer puts in front, prompt, completion, EOS, with labels on what is learned."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from tuneprune.calibration.statistics import IGNORED
from tuneprune.data.examples import Example, Note
from tuneprune.errors import ConfigError

_SHORTEST = 8


@dataclass(frozen=True)
class Encoded:
    """One document in tokens."""

    input_ids: list[int]
    labels: list[int]
    num_given: int = 0
    """Tokens at the start that are only read: what the tokenizer puts in front, and the prompt."""
    is_shortened: bool = False
    """Whether something was left out to fit the maximal length."""
    is_cut: bool = False
    """Whether the completion lost its end."""


@dataclass
class EncodedExamples:
    """Documents of many examples, what had to be done to fit them, and what was odd about them."""

    documents: list[Encoded] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    """Position of the example behind each document."""
    places: list[tuple[str, int]] = field(default_factory=list)
    """Source and record number of each example."""
    num_shortened: int = 0
    num_split: int = 0
    """Plain texts longer than the maximal length, read as several windows."""
    num_unknown: int = 0
    """Examples left out, because the tokenizer knows nothing of what they would teach."""
    num_control: int = 0
    """Examples whose own texts hold control tokens, such as an end of text; messages may not hold any."""
    noted: Counter[Note] = field(default_factory=Counter)
    """Examples to which something was done on the way, by what it was."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all documents."""
        return sum(len(document.input_ids) for document in self.documents)

    def origin(self, document: int) -> str:
        """Where the document at a position comes from, as `Example.where` says it."""
        source, index = self.places[self.owners[document]]
        return f"{source}:{index}"


def encode(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, completion_only: bool = True
) -> Encoded:
    """The tokenizer's start + prompt + completion + EOS, with labels on the completion, or on everything.

    The start is what the tokenizer itself puts before a text, such as BOS, or nothing; a chat template writes its own.
    Too long: the body gets shorter first, then the prompt loses its start. A completion is cut (and then has
    no EOS) only where it exceeds half of `max_length` and the prompt needs the other half. Plain text keeps
    its beginning.

    Args:
        max_length: tokens, special ones included.
        completion_only: take no loss on the prompt.
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
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[list[int]]]:
    """The prompt, behind what the tokenizer puts in front, and every choice with its EOS; all choices share one prompt.

    Raises:
        ConfigError: a choice alone fills the context.
    """
    choices = [_completion_ids(replace(example, completion=choice), tokenizer) for choice in example.choices]
    longest = max(map(len, choices))
    prompt, _ = encode_prompt(example, tokenizer, max_length, reserve=longest)
    return prompt, choices


def encode_prompt(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int, reserve: int
) -> tuple[list[int], bool]:
    """The tokenizer's start + prompt, shortened so that `reserve` tokens remain; and whether it was shortened.

    Raises:
        ConfigError: `reserve` leaves no room for a prompt.
    """
    start = _start(example, tokenizer, max_length)
    room = max_length - len(start) - reserve
    if room < 1:
        raise ConfigError(
            f"{example.where}: {reserve} tokens of answer leave no room for a prompt in a context "
            f"of {max_length}. Lower max_new_tokens or take a model with a longer context."
        )
    prompt, is_shortened = _prompt_ids(example, tokenizer, start, room)
    return start + prompt, is_shortened


def windows(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Encoded]:
    """A plain text as consecutive documents without overlap.

    What the tokenizer puts in front opens each of them; EOS closes the last, unless it would stand alone.

    Training and perplexity both read texts through here.
    """
    start = _start(example, tokenizer, max_length)
    ids = _without(start, _completion_ids(example, tokenizer))
    room = max_length - len(start)
    if len(ids) > room and len(ids) % room == 1:
        ids = ids[:-1]  # a window with nothing but EOS teaches and measures nothing
    parts = [start + ids[position : position + room] for position in range(0, len(ids), room)]
    return [Encoded(input_ids=part, labels=list(part), num_given=len(start)) for part in parts]


def encode_all(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    completion_only: bool = True,
) -> EncodedExamples:
    """Every example as documents of at most `max_length` tokens, counting what was done to them.

    Examples of which the tokenizer knows nothing are left out.
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


def _read_back(tokenizer: PreTrainedTokenizerBase, tokens: set[int]) -> str:
    """What tokens say, white space aside, and the mark with which SentencePiece begins every text."""
    return str(tokenizer.decode(sorted(tokens))).replace("▁", " ").strip()


def _holds(documents: list[Encoded], control: frozenset[int], num_front: int) -> bool:
    """Whether there is a control token elsewhere than at the start and the end, where they belong."""
    return not all(control.isdisjoint(document.input_ids[num_front:-1]) for document in documents)


def control_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """The tokens that mean something to the model beyond their text, such as the end of a turn; not the unknown one."""
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)  # one of them may stand for the unknown as well
    return {
        token: added.content
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and (token != tokenizer.unk_token_id or token in ends)
    }


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that fills rows up; its labels are always ignored, so any known token serves."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id)
    return next((token for token in known if isinstance(token, int)), 0)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    # verbose=False: no warning about texts longer than the context, they are cut right after.
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def added_in_front(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What the tokenizer itself puts before every text: BOS, several tokens, or nothing."""
    whole, bare = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (True, False))
    places = range(len(whole) - len(bare) + 1)
    return whole[: next((place for place in places if whole[place : place + len(bare)] == bare), 0)]


def _start(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    """The tokens in front that no shortening takes away; a chat template writes its own, or none."""
    if max_length < _SHORTEST:
        raise ConfigError(f"max_length is {max_length}, but has to be {_SHORTEST} tokens or more.")
    if example.is_templated:
        first = _ids(tokenizer, example.prompt)[:1]
        return first if first == [tokenizer.bos_token_id] else []
    return added_in_front(tokenizer)


def _without(start: list[int], ids: list[int]) -> list[int]:
    """The tokens without a start that their text spells out itself, so that it does not come twice."""
    return ids[len(start) :] if start and ids[: len(start)] == start else ids


def _completion_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The completion with one EOS (a chat template may have written it already)."""
    ids = _ids(tokenizer, example.completion)
    if example.is_templated:
        prompt, whole = (_ids(tokenizer, text) for text in (example.prompt, example.prompt + example.completion))
        # As in the whole conversation, where SentencePiece puts no space of its own before the answer.
        ids = whole[len(prompt) :] if whole[: len(prompt)] == prompt else ids
    elif example.prompt and example.completion.startswith(" "):
        bare = _ids(tokenizer, example.completion[1:])
        # SentencePiece tokenizers put a space of their own before every text they are given.
        if bare and tokenizer.convert_ids_to_tokens(bare[:1])[0].startswith("▁"):
            ids = bare
    end = tokenizer.eos_token_id
    return [*ids, end] if isinstance(end, int) and ids[-1:] != [end] else ids


def _prompt_ids(
    example: Example, tokenizer: PreTrainedTokenizerBase, start: list[int], room: int
) -> tuple[list[int], bool]:
    """The prompt behind `start` in at most `room` tokens, and whether it lost the rest: of the body first."""
    ids = _without(start, _ids(tokenizer, example.prompt))
    if len(ids) <= room:
        return ids, False
    if example.body:
        ids = _without(start, _with_shorter_body(example, tokenizer, room))
    return ids[len(ids) - min(room, len(ids)) :], True


def _with_shorter_body(example: Example, tokenizer: PreTrainedTokenizerBase, room: int) -> list[int]:
    """The prompt with as much of the body as fits; without any if that is still too long."""
    before, _, after = example.prompt.partition(example.body)

    def shortened(length: int) -> list[int]:
        return _ids(tokenizer, before + _cut(example.body, length, example.body_keeps == "end") + after)

    low, high = 0, len(example.body)  # `low` characters fit (or nothing does), `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(shortened(middle)) <= room else (low, middle)
    return shortened(low)


def _cut(body: str, length: int, keeps_end: bool) -> str:
    """At most `length` characters of the body, whole words where it has words."""
    if length <= 0:
        return ""
    if keeps_end:
        kept = body[-length:]
        return kept.partition(" ")[2] if " " in kept and body[-length - 1] != " " else kept
    kept = body[:length]
    return kept.rpartition(" ")[0] if " " in kept and body[length] != " " else kept
