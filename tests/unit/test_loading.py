import torch
from tiny import logits, tiny_model

from tuneprune.loading import cast_weights


def test_a_way_through_the_stored_precision_changes_nothing_that_the_weights_can_hold():
    model = tiny_model("llama3", dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    before = logits(model)
    assert {parameter.dtype for parameter in cast_weights(model, torch.bfloat16).parameters()} == {torch.bfloat16}
    assert torch.equal(logits(cast_weights(model, torch.float32)), before)  # RoPE's frequencies were not rounded
    assert model.lm_head.weight is model.model.embed_tokens.weight
