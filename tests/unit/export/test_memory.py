"""Memory of a model in a fresh process."""

import pytest
import torch
from helpers.tiny import random_masks, tiny_model
from helpers.tiny_runs import save_model
from helpers.toy_tokenizer import tiny_tokenizer

from tuneprune import export, families
from tuneprune.compress import compress
from tuneprune.errors import TunePruneError
from tuneprune.structure import spaces
from tuneprune.structure.plan import Plan

OPTIONS = {"device": torch.device("cpu"), "prompt_tokens": 5, "new_tokens": 3, "batch_sizes": (1, 2)}


def test_a_stock_model_by_its_shapes(tmp_path):
    folder = save_model(tmp_path / "dense", "mistral", sliding_window=4)
    config = tiny_model("mistral").config
    found = export.memory_use(str(folder), needs_remote_code=False, dtype=torch.bfloat16, **OPTIONS)
    parameters = sum(parameter.numel() for parameter in tiny_model("mistral").parameters())
    assert found["weight_bytes"] == 2 * parameters
    head = config.head_dim
    assert found["cache_bytes_per_token"] == 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * head
    assert [peak["batch_size"] for peak in found["peaks"]] == [1, 2]
    peaks = [found["libraries_bytes"], found["loaded_bytes"], *(peak["bytes"] for peak in found["peaks"])]
    assert peaks == sorted(peaks)
    assert peaks[0] > 50e6


def test_a_ragged_model_has_the_cache_of_the_heads_it_kept(tmp_path):
    model = tiny_model("llama", dtype=torch.float32)
    architecture = families.describe(model)
    space = spaces.build("width", architecture, model)
    plan = Plan.from_masks(random_masks(space), space)
    small = compress(model, architecture, space, plan)
    assert hasattr(small.config, "pruned")
    export.write(small, tiny_tokenizer(), tmp_path / "model")
    found = export.memory_use(str(tmp_path / "model"), needs_remote_code=True, dtype=torch.float32, **OPTIONS)
    assert found["weight_bytes"] == 4 * sum(parameter.numel() for parameter in small.parameters())
    groups = sum(kept for name, kept in plan.widths(space).items() if name.endswith("self_attn"))
    assert found["cache_bytes_per_token"] == 4 * 2 * groups * architecture.blocks[0].attention.head_dim


def test_a_model_that_does_not_load_is_said_in_one_sentence(tmp_path):
    with pytest.raises(TunePruneError, match="does not run in a fresh process"):
        export.memory_use(str(tmp_path), needs_remote_code=False, dtype=torch.float32, **OPTIONS)
