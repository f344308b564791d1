"""The tokens that a perplexity is computed over, and the bytes that they represent."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from tuneprune.data.encoding import Encoded, control_tokens, encode, windows
from tuneprune.data.examples import Example
from tuneprune.evaluate.forward import Scored


def scored_documents(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[Scored], int]:
    """Texts in windows and completions behind their prompts, as in training, and the UTF-8 bytes that are predicted.

    Control tokens, such as the end of a turn that a chat template writes, are predicted but count as no bytes.
    """
    rows: list[Scored] = []
    num_bytes = 0
    for example in examples:
        if example.is_text:
            documents = windows(example, tokenizer, max_length)
            num_bytes += len(example.completion.encode())
            num_bytes -= sum(_bytes_of_a_first_token(document, tokenizer) for document in documents)
        else:
            documents = [encode(example, tokenizer, max_length)]
            num_bytes += _bytes_of_completion(example, documents[0], tokenizer)
        rows += [Scored(tuple(document.input_ids), max(1, document.num_given)) for document in documents]
    return [row for row in rows if len(row.ids) > row.start], num_bytes


def _bytes_of_a_first_token(window: Encoded, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes that are read but not predicted: a first token that is text, where the tokenizer puts nothing in front."""
    return 0 if window.num_given else len(str(tokenizer.decode(window.input_ids[:1])).encode())


def _bytes_of_completion(example: Example, document: Encoded, tokenizer: PreTrainedTokenizerBase) -> int:
    """Bytes of a completion, or of what is left of one that was cut."""
    predicted = document.input_ids[document.num_given :]
    if document.is_cut:
        return len(str(tokenizer.decode(predicted, skip_special_tokens=True)).encode())
    text = example.completion
    if example.is_templated:
        for token in control_tokens(tokenizer).values():
            text = text.replace(token, "")
    return len(text.encode())
