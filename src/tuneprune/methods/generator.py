"""The pruning-decision generator: a small transformer over the layers whose output scores every unit of the model."""

import torch
from torch import Tensor, nn

from tuneprune.structure.space import PruningSpace

KEY = "/"  # parameter names may not hold the dots of group names


class TransformerGenerator(nn.Module):
    """Logits of all units from one token per layer (ATP's generator of the paper era, docs/methods/atp.md).

    Frozen orthogonal inputs, a transformer encoder that attends across layers, LayerNorm, and one
    bias-free head per group. Differs from the official code: no dropout (a second source of noise beside Gumbel), and
    heads start small, so that all logits start near zero.
    """

    inputs: Tensor

    def __init__(self, space: PruningSpace, *, size: int, blocks: int, heads: int, random: torch.Generator) -> None:
        super().__init__()
        self.layers = {group.name: group.layer for group in space.groups}
        num_layers = max(self.layers.values()) + 1
        with torch.random.fork_rng(devices=[]):  # modules draw their initial weights from the global stream
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            rows = max(num_layers, size)
            basis = nn.init.orthogonal_(torch.empty(rows, size))[:num_layers]
            self.register_buffer("inputs", basis)
            layer = nn.TransformerEncoderLayer(size, heads, 4 * size, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)
            self.norm = nn.LayerNorm(size)
            heads_by_key = {
                group.name.replace(".", KEY): nn.Linear(size, group.size, bias=False) for group in space.groups
            }
            for head in heads_by_key.values():
                nn.init.normal_(head.weight, std=0.01 / size**0.5)
            self.heads = nn.ModuleDict(heads_by_key)

    def forward(self) -> dict[str, Tensor]:
        """Logits of every unit, by group name."""
        tokens = self.norm(self.encoder(self.inputs[None]))[0]
        return {name: self.heads[name.replace(".", KEY)](tokens[layer]) for name, layer in self.layers.items()}


class FreeGenerator(nn.Module):
    """Plain logits, one trainable number a unit: the ablation of the generator."""

    def __init__(self, space: PruningSpace) -> None:
        super().__init__()
        self.logits = nn.ParameterDict(
            {group.name.replace(".", KEY): nn.Parameter(torch.zeros(group.size)) for group in space.groups}
        )

    def forward(self) -> dict[str, Tensor]:
        """Logits of every unit, by group name."""
        return {name.replace(KEY, "."): logits + 0.0 for name, logits in self.logits.items()}
