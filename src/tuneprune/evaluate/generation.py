"""Greedy decoding in left-padded batches."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn

from tuneprune.evaluate.forward import last_logits
from tuneprune.model.inference import device_of

LOST = -1
"""Represents a token where the model gave NaN."""


def decode_greedily(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    stop_ids: Collection[int],
    pad_id: int,
) -> list[list[int]]:
    """The continuation of every prompt by the most likely token, up to a stop token (left out) or the limit.

    It ends where the model gives NaN, so that no token is the most likely one.

    Own loop instead of `generate`, whose settings (repetition penalty and others) come with each checkpoint.
    """
    length = max(len(prompt) for prompt in prompts)
    device = device_of(model)
    ids = torch.tensor([[*[pad_id] * (length - len(prompt)), *prompt] for prompt in prompts], device=device)
    padding = torch.tensor([length - len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(length, device=device) >= padding[:, None]).long()
    stops = torch.tensor(sorted(stop_ids), device=device)
    finished, lost = torch.zeros(2, len(prompts), dtype=torch.bool, device=device)
    cache, chosen, options = None, [], last_logits(model, 1)
    while len(chosen) < max_new_tokens and not finished.all():
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        output = model(**inputs, **options, use_cache=True)
        cache = output.past_key_values
        scores = output.logits[:, -1:]
        lost |= scores.isnan().any(-1)[:, 0]
        ids = scores.argmax(-1)
        finished |= torch.isin(ids[:, 0], stops) | lost
        chosen.append(torch.where(lost, LOST, ids[:, 0]))
        mask = torch.cat([mask, mask.new_ones(len(prompts), 1)], dim=1)
    return _until_stop(torch.stack(chosen, dim=1), {*stop_ids, LOST})


def _until_stop(chosen: Tensor, stop_ids: Collection[int]) -> list[list[int]]:
    rows = []
    for row in chosen.tolist():
        stop = next((index for index, token in enumerate(row) if token in stop_ids), len(row))
        rows.append(row[:stop])
    return rows
