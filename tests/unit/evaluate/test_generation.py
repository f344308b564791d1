import pytest
import torch
from helpers.toy_evaluation import toy_model

from tuneprune.evaluate.generation import decode_greedily
from tuneprune.model.inference import evaluation_mode

PROMPTS = [[1, 40, 41, 42], [1, 90], [1, *range(50, 80)]]


def one_by_one(model, prompt, steps):
    ids = list(prompt)
    for _ in range(steps):
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("variant", ["llama", "llama3", "mistral", "qwen2", "qwen3", "phi3"])
def test_batched_cached_decoding_equals_one_by_one_without_cache(variant):
    model = toy_model(variant)
    with evaluation_mode(model):
        expected = [one_by_one(model, prompt, 20) for prompt in PROMPTS]
        found = decode_greedily(model, PROMPTS, max_new_tokens=20, stop_ids=set(), pad_id=0)
    assert found == expected


def test_decoding_stops_before_a_stop_token():
    model = toy_model()
    with evaluation_mode(model):
        free = decode_greedily(model, PROMPTS, max_new_tokens=20, stop_ids=set(), pad_id=0)
        stop = free[0][3]
        stopped = decode_greedily(model, PROMPTS, max_new_tokens=20, stop_ids={stop}, pad_id=0)
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert stopped == expected
    assert len(stopped[0]) <= 3
