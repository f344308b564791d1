"""The answers of an exported Hugging Face folder, with which exports made from it are compared."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from tuneprune import families
from tuneprune.compress.modeling_pruned import equal_layers, resize, resize_head
from tuneprune.errors import ConfigError
from tuneprune.export.proof import Probe, take_probe
from tuneprune.system import model_folder

TEXTS = (
    "The patient was given two tablets a day and came back after a week without fever.",
    "This agreement ends thirty days after either party has told the other in writing.",
    "Once upon a time a small dog found a red ball under the old tree near the river.",
)
HARD_TEXTS = (
    "def area(r):\n    return 3.14159 * r**2  # 1234567 m\u00b2",
    "Gr\u00f6\u00dfe, na\u00efve, \u6570\u636e, \u0434\u0430\u043d\u043d\u044b\u0435, \U0001f999!",
    "  two  spaces,\t\ta tab\n\n\nand lines \n",
    "It's what they'LL say: don't, WON'T, can't... (see [12], 'so-called')?!",
)
"""Texts on which tokenizers often differ: digits, scripts, white space, contractions."""
ROWS, LENGTH, NEW_TOKENS = 2, 24, 32


@dataclass(frozen=True)
class Spelling:
    """A text as tokens: as the tokenizer returns them, and `bare`, without the special tokens that it adds."""

    text: str
    ids: tuple[int, ...]
    bare: tuple[int, ...]


@dataclass(frozen=True)
class Reference:
    """Answers of `folder` in transformers, in float32: logits of a few rows, a greedy continuation, texts as tokens."""

    probe: Probe
    greedy_ids: Int[Tensor, " new"]
    folder: Path
    spellings: tuple[Spelling, ...] = ()


def load_exported(folder: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model of an exported folder on the CPU, stock or ragged, without running code from the folder.

    Ragged models are built by our own `modeling_pruned`, of which the code in the folder is a copy.

    Raises:
        ConfigError: weights that are missing.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    stock = families.stock_class(config)
    if not hasattr(config, "pruned"):
        return stock.from_pretrained(folder, dtype=dtype, use_safetensors=True).eval()
    with torch.device("meta"):
        _check_weights(folder, _ragged(stock, config, dtype))  # before memory is allocated by the config
    model = _ragged(stock, config, dtype)
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    return model.eval()


def _ragged(stock: type[PreTrainedModel], config: PretrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model in the shapes of its config, without its weights."""
    with equal_layers(config):
        model = stock._from_config(config, dtype=dtype)
    resize(model)
    resize_head(model)
    return model


def _check_weights(folder: Path, model: PreTrainedModel) -> None:
    """Refuse files that lack weights of the model, or hold them in other shapes.

    Raises:
        ConfigError: names one.
    """
    shapes = model_folder.read_headers(folder, str(folder)).shapes
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    missing = wanted.keys() - shapes.keys() - set(model.all_tied_weights_keys)
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} weights, such as {min(missing)}. Export the model again.")
    other = next((name for name in wanted.keys() & shapes.keys() if wanted[name] != shapes[name]), None)
    if other is not None:
        raise ConfigError(
            f"{folder}: {other} is {shapes[other]} in its file and {wanted[other]} by config.json. Export the model"
            " again."
        )


@torch.no_grad()
def take_reference(folder: Path) -> Reference:
    """The answers of an exported folder."""
    model, tokenizer = load_exported(folder), AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    probe = take_probe(model, tokenizer, TEXTS, rows=ROWS, length=LENGTH)
    prompt = probe.prompt_ids[None]
    ids = model.generate(  # pyright: ignore[reportCallIssue]  (a mixin's method)
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        num_beams=1,
        pad_token_id=tokenizer.pad_token_id or 0,
        eos_token_id=None,  # always NEW_TOKENS tokens
    )
    spellings = tuple(_spelling(tokenizer, text) for text in (*TEXTS, *HARD_TEXTS))
    return Reference(probe, ids[0, prompt.shape[1] :].cpu(), folder, spellings)


def _spelling(tokenizer: PreTrainedTokenizerBase, text: str) -> Spelling:
    whole, bare = (tokenizer(text, add_special_tokens=added, verbose=False)["input_ids"] for added in (True, False))
    return Spelling(text, tuple(whole), tuple(bare))
