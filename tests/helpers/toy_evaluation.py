"""A byte-level tokenizer without merges and a tiny model of the same vocabulary."""

import torch

from helpers.tiny import tiny_model
from helpers.toy_bytes import byte_level_tokenizer


def byte_tokenizer(*, bos=True):
    if not bos:
        return byte_level_tokenizer(pad_token="<pad>", eos_token="</s>")
    return byte_level_tokenizer(1, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def toy_model(variant="llama", **changes):
    settings = {"vocab_size": 259, "max_position_embeddings": 128, "dtype": torch.float32, "seed": 3}
    return tiny_model(variant, **settings | changes)
