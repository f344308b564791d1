"""Complete runs in miniature: a saved model, data files, and a run file."""

import json
import random
from pathlib import Path

import torch
import yaml
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from helpers.tiny import logits, tiny_model
from helpers.toy_tokenizer import WORDS

NAMES = {"gpt_neox": {"embed_tokens": "embed_in", "lm_head": "embed_out", "norm": "final_layer_norm"}}
METHOD = {"name": "atp", "prior_batches": 2, "generator_size": 8, "generator_heads": 2, "generator_blocks": 1}
TUNE = {
    "steps": 6,
    "batch_size": 4,
    "max_length": 32,
    "learning_rate": 0.01,
    "lora": {"rank": 2},
    "log_every": 1,
    "checkpoint_every": 2,
}


def save_model(folder: Path, variant: str = "llama", **changes) -> Path:
    model = tiny_model(variant, dtype=torch.float32, **changes)
    model.generation_config.pad_token_id = 0
    model.save_pretrained(folder)
    letter_tokenizer().save_pretrained(folder)
    return folder


def make_adapter(folder: Path, variant: str = "llama", changes: dict | None = None, **options) -> torch.Tensor:
    """Save an adapter as another training tool writes it, for such a model; returns the adapted model's logits."""
    model = tiny_model(variant, dtype=torch.float32, **changes or {})
    options = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"} | options
    options["modules_to_save"] = [NAMES.get(variant, {}).get(n, n) for n in options.get("modules_to_save", ())] or None
    adapted = get_peft_model(model, LoraConfig(**options)).eval()
    torch.manual_seed(3)
    for name, parameter in adapted.named_parameters():
        if any(part in name for part in ("lora_", "modules_to_save", "trainable_tokens")):
            parameter.data += 0.1 * torch.randn_like(parameter)
    expected = logits(adapted)
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return expected


def letter_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, like the families' own: one token per letter, and at most 64 tokens."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", *"abcdefghijklmnopqrstuvwxyzĠ"])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def sentences(seed: int, count: int, length: int = 8) -> list[str]:
    """Made-up sentences with some regularity: every word is followed by one of two others."""
    draw = random.Random(seed)
    texts = []
    for _ in range(count):
        index = draw.randrange(len(WORDS))
        words = []
        for _ in range(length):
            words.append(WORDS[index])
            index = (3 * index + draw.choice((1, 2))) % len(WORDS)
        texts.append(" ".join(words))
    return texts


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf8")
    return path


def run_content(folder: Path, model: Path) -> dict:
    """A run file as data, with data files of its own in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    train = write_texts(folder / "train.jsonl", sentences(1, 40))
    calibration = write_texts(folder / "calibration.jsonl", sentences(2, 16))
    test = write_texts(folder / "test.jsonl", sentences(3, 6))
    return {
        "model": str(model),
        "space": "width",
        "budget": {"keep": 0.6},
        "method": dict(METHOD),
        "data": {"train": [{"path": str(train)}], "calibration": [{"path": str(calibration)}]},
        "tune": {**TUNE, "lora": dict(TUNE["lora"])},
        "evaluate": {"tasks": [{"kind": "perplexity", "path": str(test)}]},
        "speed": False,
    }


def write_run(folder: Path, model: Path, /, **sections) -> Path:
    """A run file; sections given as mappings are merged into the default ones, options of the same method too."""
    content = run_content(folder, model)
    for key, value in sections.items():
        old = content.get(key)
        if isinstance(old, dict) and isinstance(value, dict) and old.get("name") != value.get("name", old.get("name")):
            old = None
        content[key] = {**old, **value} if isinstance(value, dict) and isinstance(old, dict) else value
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf8")
    return path
