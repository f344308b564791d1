"""StarCoder2: LayerNorms, biases everywhere, an ungated MLP."""

from dataclasses import replace

from tuneprune.families.base import HfConfig, plain_block, plain_decoder, reshaped, ungated_mlp
from tuneprune.structure.architecture import Architecture, Block, NormStyle

MODEL_TYPES = ("starcoder2",)


def describe(config: HfConfig) -> Architecture:
    """LLaMA's attention; the MLP is one activation between `c_fc` and `c_proj`."""

    def block(path: str) -> Block:
        return replace(plain_block(config, path), feed_forward=ungated_mlp(config, f"{path}.mlp", "c_fc", "c_proj"))

    return plain_decoder(config, block, NormStyle(is_centred=True))


uniform = reshaped
