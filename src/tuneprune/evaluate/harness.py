"""Tasks evaluated on a model: texts read, choices scored by likelihood, summaries decoded greedily."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneprune.data.encoding import encode_choices, encode_prompt, padding_id
from tuneprune.evaluate.forward import (
    MAX_LOGITS,
    Scored,
    batches,
    score_tokens,
    vocabulary_size,
)
from tuneprune.evaluate.generation import decode_greedily
from tuneprune.evaluate.metrics import accuracy, macro_f1, rouge
from tuneprune.evaluate.perplexity import scored_documents
from tuneprune.evaluate.tasks import LoadedTask
from tuneprune.model.inference import evaluation_mode

Progress = Callable[[str, int, int], None]
NO_ANSWER = ""
MAX_TOKENS = 2**15
"""Tokens of one batch, padding included, where its logits are few."""


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[LoadedTask],
    *,
    batch_size: int = 16,
    max_length: int = 2048,
    progress: Progress | None = None,
) -> dict[str, dict[str, float]]:
    """The metrics of every task by its name; two calls give the same numbers.

    - perplexity: `perplexity` per predicted token and `nats_per_byte` (cross-entropy per UTF-8 byte,
      comparable between tokenizers). Texts are read in windows of `max_length` without overlap, EOS included;
      every token of a window but its first is predicted. Of a prompt and a completion, the completion is predicted.
      All predicted tokens weigh the same.
    - nli: `accuracy`; qa and multiple_choice: `macro_f1`, `accuracy`. The answer is the choice with the
      largest sum of log-probabilities over its tokens and EOS, the first one on ties. The sum is not divided
      by the length: it is the probability that the model, tuned on these strings, writes this and stops.
      A model that gives NaN for a choice has no answer, which is wrong.
    - summary: `rouge1`, `rouge2`, `rougeL` (F-measures in [0, 1], stemmed) of greedy decoding up to EOS.

    Args:
        batch_size: sequences in one forward pass; changes the numbers by rounding only.
        max_length: longest input in tokens, answers included; never more than the model's context.
        progress: called with task name, items done and items in all, after every batch.

    Raises:
        ConfigError: answers that leave no room for a prompt.
    """
    context = min(max_length, model.config.max_position_embeddings)
    runner = _Runner(model, tokenizer, batch_size, context, progress or (lambda _name, _done, _total: None))
    with evaluation_mode(model):
        return {task.name: runner.run(task) for task in tasks}


@dataclass(frozen=True)
class _Runner:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    batch_size: int
    context: int
    progress: Progress

    def run(self, task: LoadedTask) -> dict[str, float]:
        if task.kind == "perplexity":
            return self._perplexity(task)
        if task.kind == "summary":
            return self._summary(task)
        answers = self._answers(task)
        truths = [example.completion for example in task.examples]
        metrics = {"accuracy": accuracy(answers, truths)}
        return metrics if task.kind == "nli" else {"macro_f1": macro_f1(answers, truths), **metrics}

    def _perplexity(self, task: LoadedTask) -> dict[str, float]:
        documents, num_bytes = scored_documents(task.examples, self.tokenizer, self.context)
        loss = -math.fsum(self._score(task, documents, MAX_LOGITS // vocabulary_size(self.model)))
        num_tokens = sum(len(document.ids) - document.start for document in documents)
        return {"perplexity": _exp(loss / max(1, num_tokens)), "nats_per_byte": loss / max(1, num_bytes)}

    def _answers(self, task: LoadedTask) -> list[str]:
        rows, first_rows = [], []
        for example in task.examples:
            prompt, choices = encode_choices(example, self.tokenizer, self.context)
            first_rows.append(len(rows))
            rows += [Scored((*prompt, *choice), len(prompt)) for choice in choices]
        scores = self._score(task, rows, MAX_TOKENS)
        answers = []
        for example, row in zip(task.examples, first_rows, strict=True):
            own = scores[row : row + len(example.choices)]
            answers.append(NO_ANSWER if any(map(math.isnan, own)) else example.choices[own.index(max(own))])
        return answers

    def _score(self, task: LoadedTask, rows: Sequence[Scored], max_tokens: int) -> list[float]:
        scores = [0.0] * len(rows)
        for batch in self._batches(task, [len(row.ids) for row in rows], max_tokens):
            scored = score_tokens(self.model, [rows[index] for index in batch], padding_id(self.tokenizer))
            for index, score in zip(batch, scored, strict=True):
                scores[index] = score
        return scores

    def _summary(self, task: LoadedTask) -> dict[str, float]:
        reserve = task.max_new_tokens
        prompts = [encode_prompt(example, self.tokenizer, self.context, reserve)[0] for example in task.examples]
        summaries = [""] * len(prompts)
        for batch in self._batches(task, [len(prompt) + reserve for prompt in prompts], MAX_TOKENS):
            decoded = decode_greedily(
                self.model,
                [prompts[index] for index in batch],
                max_new_tokens=reserve,
                stop_ids=self._stop_ids(),
                pad_id=padding_id(self.tokenizer),
            )
            for index, ids in zip(batch, decoded, strict=True):
                summaries[index] = str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()
        return rouge(summaries, [example.completion.strip() for example in task.examples])

    def _batches(self, task: LoadedTask, lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
        done = 0
        for batch in batches(lengths, self.batch_size, max_tokens):
            yield batch
            done += len(batch)
            self.progress(task.name, done * len(task.examples) // len(lengths), len(task.examples))

    def _stop_ids(self) -> set[int]:
        """EOS of the tokenizer and of the checkpoint, which may name several."""
        configured: Any = self.model.generation_config.eos_token_id if self.model.generation_config else None
        stops: list[Any] = configured if isinstance(configured, list) else [configured]
        return {token for token in (*stops, self.tokenizer.eos_token_id) if isinstance(token, int)}


def _exp(loss: float) -> float:
    """The perplexity of a loss in nats; infinite where the loss is not a number or would overflow."""
    return math.exp(loss) if loss < 700 else math.inf
