"""The proof of an export: what loads in a fresh process computes what the masked model computed."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneprune.errors import DataError
from tuneprune.export.hf import weight_bytes
from tuneprune.export.probes import run_reload
from tuneprune.export.probes.fresh_process import run_fresh

PROMPT_TOKENS = 16
TEXT_CHARACTERS = 2000


@dataclass(frozen=True)
class Probe:
    """What a model said about some text before it was cut.

    `dtype` is the coarser of the model's precision and float32, in which the reloaded model answers; `text` and
    `text_ids` are a piece of the text and its tokens, for the reloaded tokenizer to repeat.
    """

    input_ids: Int[Tensor, "rows length"]
    logits: Float[Tensor, "rows length vocabulary"]
    prompt_ids: Int[Tensor, " prompt"]
    dtype: str
    text: str
    text_ids: Int[Tensor, " tokens"]

    def save(self, file: Path) -> None:
        """Write it as a safetensors file, the text in its metadata, for a program in another process."""
        names = ("input_ids", "logits", "prompt_ids", "text_ids")
        save_file({name: getattr(self, name).contiguous() for name in names}, file, metadata={"text": self.text})


@torch.no_grad()
def take_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    rows: int = 4,
    length: int = 64,
) -> Probe:
    """The logits of the model as it stands, gates included, on `rows` rows of `length` tokens of `texts`.

    The texts are read as one stream, from the start again where they are too short; rows are no longer than the
    model's context.

    Raises:
        DataError: the texts hold no token.
    """
    length = min(length, getattr(model.config, "max_position_embeddings", length))
    input_ids = torch.tensor(_stream(tokenizer, texts, rows * length)).view(rows, length)
    logits = _logits(model, input_ids)
    room = max(1, getattr(model.config, "max_position_embeddings", length) - run_reload.NEW_TOKENS)
    prompt_ids = input_ids[0, : min(PROMPT_TOKENS, room)].clone()
    dtype = torch.float32 if model.dtype == torch.float64 else model.dtype
    text = next(text for text in texts if text)[:TEXT_CHARACTERS]
    text_ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    return Probe(input_ids, logits, prompt_ids, str(dtype).removeprefix("torch."), text, text_ids)


@torch.no_grad()
def compare(model: PreTrainedModel, probe: Probe) -> dict[str, Any]:
    """How far the model as it stands is from a probe: the keys of `logits` in `prove`."""
    difference = (_logits(model, probe.input_ids) - probe.logits).abs().max()
    return {
        "max_abs_diff": difference.item(),
        "max_rel_diff": (difference / probe.logits.abs().max()).item(),
        "dtype": probe.dtype,
        "tokens": probe.input_ids.numel(),
    }


def _logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The float32 logits of every row, on the CPU."""
    device = next(model.parameters()).device
    with _evaluating(model):
        rows = [model(input_ids=row[None].to(device), use_cache=False).logits[0].float().cpu() for row in input_ids]
    return torch.stack(rows)


def prove(folder: Path, probe: Probe, *, needs_remote_code: bool) -> dict[str, Any]:
    """What a fresh Python process, which cannot import tuneprune, finds in an exported folder.

    The folder is loaded in float32 on the CPU. Returns `logits` (`max_abs_diff`, `max_rel_diff` = max_abs_diff over the
    largest absolute logit of the probe, `dtype`, `tokens`), `generation` (a greedy sample with and without cache),
    `loader`, `bytes_on_disk` (`pruned`: bytes of the weight files), `parameters_counted` (tied weights once) and
    `tokenizer_agrees` (the reloaded tokenizer splits a text as the one in memory did).

    Raises:
        TunePruneError: the folder does not load or does not run there.
    """
    with tempfile.TemporaryDirectory(prefix="tuneprune-proof-") as scratch:
        probe_file = Path(scratch, "probe.safetensors")
        probe.save(probe_file)
        arguments = [str(probe_file), str(int(needs_remote_code))]
        result = run_fresh(run_reload, str(folder.resolve()), arguments)
    result["logits"]["dtype"] = probe.dtype
    result["bytes_on_disk"] = {"pruned": weight_bytes(folder)}
    return result


def _stream(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int) -> list[int]:
    """The first `count` tokens of the texts, repeated as needed."""
    tokens: list[int] = []
    for text in texts:
        tokens.extend(tokenizer(text, verbose=False)["input_ids"])
        if len(tokens) >= count:
            break
    if not tokens:
        raise DataError("The texts for the proof hold no token. Give at least one text that is not empty.")
    return list(islice(cycle(tokens), count))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and the model's mode restored afterwards."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
