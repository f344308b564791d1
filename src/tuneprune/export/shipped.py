"""The Python file that travels with a ragged checkpoint, so that it loads without tuneprune."""

from pathlib import Path

from transformers import MODEL_MAPPING, PretrainedConfig

from tuneprune import families
from tuneprune.compress import modeling_pruned

MODULE = "modeling_pruned"

_TAIL = '''

# What follows is written for one model family; all of the above is the same for every one.
from transformers import {causal}, {inner}  # noqa: E402


class Pruned{inner}({inner}):
    """The decoder of a `{model_type}` with the shapes in `config.pruned`."""

    _can_record_outputs = {{
        **{inner}._can_record_outputs,
        "attentions": [{inner}._can_record_outputs["attentions"], PrunedAttention],
    }}

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        super().__init__(config)
        resize(self, config.pruned, prefix="{prefix}.")


class Pruned{causal}({causal}):
    """The causal language model around `Pruned{inner}`; weights are named as in `{causal}`."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        super().__init__(config)
        self.{prefix} = Pruned{inner}(config)
        self.post_init()
'''


def classes(config: PretrainedConfig) -> dict[str, str]:
    """The shipped file's class for each `AutoClass` that a ragged model of this family loads through."""
    stock = {"AutoModel": MODEL_MAPPING[type(config)], "AutoModelForCausalLM": families.stock_class(config)}
    return {auto: f"Pruned{model.__name__}" for auto, model in stock.items()}


def source(config: PretrainedConfig) -> str:
    """The text of the modelling file for a ragged model of this family; needs nothing but torch and transformers."""
    causal = families.stock_class(config)
    tail = _TAIL.format(
        causal=causal.__name__,
        inner=MODEL_MAPPING[type(config)].__name__,
        model_type=config.model_type,
        prefix=causal.base_model_prefix,
    )
    return Path(modeling_pruned.__file__).read_text(encoding="utf8") + tail
