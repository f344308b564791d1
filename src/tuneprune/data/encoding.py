"""Examples as token ids: BOS, prompt, completion, EOS, with labels on what is learned."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from transformers import PreTrainedTokenizerBase

from tuneprune.data.examples import Example
from tuneprune.errors import ConfigError
from tuneprune.structure.statistics import IGNORED

_SHORTEST = 8


@dataclass(frozen=True)
class Encoded:
    """One document in tokens."""

    input_ids: list[int]
    labels: list[int]
    is_shortened: bool = False
    """Whether something was left out to fit the maximal length."""


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
    """BOS + prompt + completion + EOS, with labels on the completion, or on everything.

    Too long: the body gets shorter first, then the prompt loses its start. A completion is cut (and then has
    no EOS) only where it exceeds half of `max_length` and the prompt needs the other half. Plain text keeps
    its beginning.

    Args:
        max_length: tokens, special ones included.
        completion_only: take no loss on the prompt.
    """
    start, completion = _start(tokenizer, max_length), _completion_ids(example, tokenizer)
    prompt, room = [], max_length - len(start)
    is_shortened = False
    if example.prompt:
        prompt_room = max(room - len(completion), room // 2)
        prompt, is_shortened = _prompt_ids(example, tokenizer, prompt_room)
    prompt = _join_start(start, prompt, completion)
    kept = completion[: max_length - len(prompt)]
    ignored = len(prompt) if completion_only and example.prompt else 0
    return Encoded(
        input_ids=prompt + kept,
        labels=[IGNORED] * ignored + (prompt + kept)[ignored:],
        is_shortened=is_shortened or len(kept) < len(completion),
    )


def encode_choices(
    example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[int], list[list[int]]]:
    """The prompt (BOS included) and every choice with its EOS, for scoring; all choices share one prompt.

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
    """BOS + prompt, shortened so that `reserve` tokens remain for what follows; and whether it was shortened.

    Raises:
        ConfigError: `reserve` leaves no room for a prompt.
    """
    start = _start(tokenizer, max_length)
    room = max_length - len(start) - reserve
    if room < 1:
        raise ConfigError(
            f"{example.where}: {reserve} tokens of answer leave no room for a prompt in a context "
            f"of {max_length}. Lower max_new_tokens or take a model with a longer context."
        )
    prompt, is_shortened = _prompt_ids(example, tokenizer, room)
    return _join_start(start, prompt, []), is_shortened


def windows(example: Example, tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[Encoded]:
    """A plain text as consecutive documents without overlap.

    BOS opens each of them; EOS closes the last, unless it would stand alone.

    Training and perplexity both read texts through here.
    """
    start, ids = _start(tokenizer, max_length), _completion_ids(example, tokenizer)
    if start and ids[:1] == start:
        ids = ids[1:]
    room = max_length - len(start)
    if len(ids) > room and len(ids) % room == 1:
        ids = ids[:-1]  # a window with nothing but EOS teaches and measures nothing
    parts = [start + ids[position : position + room] for position in range(0, len(ids), room)]
    return [Encoded(input_ids=part, labels=list(part)) for part in parts]


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
        result.num_control += not example.is_templated and _holds(documents, control)
        result.documents += documents
        result.owners += [index] * len(documents)
    return result


def _read_back(tokenizer: PreTrainedTokenizerBase, tokens: set[int]) -> str:
    """What tokens say, white space aside, and the mark with which SentencePiece begins every text."""
    return str(tokenizer.decode(sorted(tokens))).replace("▁", " ").strip()


def _holds(documents: list[Encoded], control: frozenset[int]) -> bool:
    """Whether there is a control token elsewhere than at the start and the end, where they belong."""
    return not all(control.isdisjoint(document.input_ids[1:-1]) for document in documents)


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


def _start(tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    if max_length < _SHORTEST:
        raise ConfigError(f"max_length is {max_length}, but has to be {_SHORTEST} tokens or more.")
    return [tokenizer.bos_token_id] if isinstance(tokenizer.bos_token_id, int) else []


def _completion_ids(example: Example, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The completion with one EOS (a chat template may have written it already)."""
    ids = _ids(tokenizer, example.completion)
    if example.prompt and example.completion.startswith(" "):
        bare = _ids(tokenizer, example.completion[1:])
        # SentencePiece tokenizers put a space of their own before every text they are given.
        if bare and tokenizer.convert_ids_to_tokens(bare[:1])[0].startswith("▁"):
            ids = bare
    end = tokenizer.eos_token_id
    return [*ids, end] if isinstance(end, int) and ids[-1:] != [end] else ids


def _join_start(start: list[int], prompt: list[int], completion: list[int]) -> list[int]:
    """The prompt behind one BOS (a chat template may have written it already)."""
    begins = (prompt or completion)[:1]
    return prompt if begins == start else start + prompt


def _prompt_ids(example: Example, tokenizer: PreTrainedTokenizerBase, room: int) -> tuple[list[int], bool]:
    """The prompt in at most `room` tokens, and whether it was shortened: the body first, then the start."""
    ids = _ids(tokenizer, example.prompt)
    if len(ids) <= room:
        return ids, False
    if example.body:
        ids = _with_shorter_body(example, tokenizer, room)
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
