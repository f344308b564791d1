"""The proof of an export: what is loaded in a fresh process computes what the masked model computed."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneprune.errors import DataError
from tuneprune.export.hf import weight_bytes
from tuneprune.export.probes import run_reload
from tuneprune.export.probes.fresh_process import run_fresh
from tuneprune.model.inference import device_of, evaluation_mode

PROMPT_TOKENS = 16
TEXT_CHARACTERS = 2000


@dataclass(frozen=True)
class Probe:
    """The logits of a model on some text, for another model or program to repeat.

    `dtype` is the precision of the model, float32 where it is float64; the reloaded model answers in it. `text` and
    `text_ids` are a piece of the text and its tokens, for the reloaded tokenizer to repeat.
    """

    input_ids: Int[Tensor, "rows length"]
    logits: Float[Tensor, "rows length vocabulary"]
    prompt_ids: Int[Tensor, " prompt"]
    dtype: str
    text: str
    text_ids: Int[Tensor, " tokens"]

    def run(self, program: ModuleType, exported: Path, *arguments: str) -> dict[str, Any]:
        """Run a program in a fresh process and return its result.

        It is called with the exported folder or file, the result file to write, this probe as a safetensors file (the
        text is in its metadata) and `arguments`.
        """
        with tempfile.TemporaryDirectory(prefix="tuneprune-proof-") as scratch:
            file = Path(scratch, "probe.safetensors")
            names = ("input_ids", "logits", "prompt_ids", "text_ids")
            save_file({name: getattr(self, name).contiguous() for name in names}, file, metadata={"text": self.text})
            return run_fresh(program, str(exported.resolve()), [str(file), *arguments])


def take_probe(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    rows: int = 4,
    length: int = 64,
) -> Probe:
    """The logits of the model as it is, gates included, on `rows` rows of `length` tokens of `texts`.

    The texts are read as one stream, repeated where they are too short; rows are no longer than the model's context.

    Raises:
        DataError: the texts have no tokens.
    """
    context = getattr(model.config, "max_position_embeddings", length)
    length = min(length, context)
    input_ids = torch.tensor(_stream(tokenizer, texts, rows * length)).view(rows, length)
    logits = _logits(model, input_ids)
    prompt_ids = input_ids[0, : min(PROMPT_TOKENS, max(1, context - run_reload.NEW_TOKENS))].clone()
    dtype = torch.float32 if model.dtype == torch.float64 else model.dtype
    text = next(text for text in texts if text)[:TEXT_CHARACTERS]
    text_ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.long)
    return Probe(input_ids, logits, prompt_ids, str(dtype).removeprefix("torch."), text, text_ids)


def compare(model: PreTrainedModel, probe: Probe) -> dict[str, Any]:
    """How far the model as it is differs from a probe: the keys of `logits` in `prove`."""
    difference = (_logits(model, probe.input_ids) - probe.logits).abs().max()
    return {
        "max_abs_diff": difference.item(),
        "max_rel_diff": (difference / probe.logits.abs().max()).item(),
        "dtype": probe.dtype,
        "tokens": probe.input_ids.numel(),
    }


def prove(folder: Path, probe: Probe, *, needs_remote_code: bool) -> dict[str, Any]:
    """What a fresh Python process, which cannot import tuneprune, finds in an exported folder.

    The folder is loaded in float32 on the CPU. Returns `logits` (`max_abs_diff`, `max_rel_diff` = max_abs_diff over the
    largest absolute logit of the probe, `dtype`, `tokens`), `generation` (a greedy sample with and without cache),
    `loader`, `bytes_on_disk` (`pruned`: bytes of the weight files), `parameters_counted` (tied weights once) and
    `tokenizer_agrees` (the reloaded tokenizer splits a text as the one in memory did).

    Raises:
        TunePruneError: the folder does not load or does not run there.
    """
    result = probe.run(run_reload, folder, str(int(needs_remote_code)))
    result["logits"]["dtype"] = probe.dtype
    result["bytes_on_disk"] = {"pruned": weight_bytes(folder)}
    return result


def _logits(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """The float32 logits of every row, on the CPU."""
    device = device_of(model)
    with evaluation_mode(model):
        rows = [model(input_ids=row[None].to(device), use_cache=False).logits[0].float().cpu() for row in input_ids]
    return torch.stack(rows)


def _stream(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], count: int) -> list[int]:
    """The first `count` tokens of the texts, repeated as needed."""
    tokens: list[int] = []
    for text in texts:
        tokens.extend(tokenizer(text, verbose=False)["input_ids"])
        if len(tokens) >= count:
            break
    if not tokens:
        raise DataError("The texts for the proof have no tokens. Give at least one text that is not empty.")
    return list(islice(cycle(tokens), count))
