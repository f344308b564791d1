"""The config of a DeciLM: that of a Mistral, with a list of the settings of each block."""

from typing import Any, TypeAlias

from transformers import MistralConfig

Json: TypeAlias = Any
"""A value of config.json."""


class Settings(dict):
    """A dict whose entries are attributes too, as the classes that read it expect, and which JSON takes."""

    def __getattr__(self, name: str) -> Json:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class DeciConfig(MistralConfig):
    """`block_configs`: of every block `attention` {no_op, n_heads_in_group} and `ffn` {no_op, intermediate_size}."""

    model_type = "nemotron-nas"

    def __init__(self, block_configs: list[dict[str, dict[str, Any]]] | None = None, **settings: Json) -> None:
        super().__init__(**settings)
        self.block_configs = [
            Settings({part: Settings(values) for part, values in block.items()}) for block in block_configs or ()
        ]
