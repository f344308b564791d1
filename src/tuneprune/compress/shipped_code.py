"""The Python file that is shipped with a ragged checkpoint, so that it loads without tuneprune."""

from pathlib import Path
from typing import Any

from transformers import MODEL_MAPPING, PretrainedConfig

from tuneprune import families
from tuneprune.compress import modeling_pruned

MODULE = "modeling_pruned"

_TAIL = '''

# The rest is generated for one model family; everything above is the same for all.
from transformers import {causal}, {inner}  # noqa: E402


class Pruned{inner}({inner}):
    """The decoder of a `{model_type}` with the shapes in its config."""

    _can_record_outputs = {{
        **{inner}._can_record_outputs,
        "hidden_states": [{inner}._can_record_outputs["hidden_states"], RotatedBlock],
        "attentions": [{inner}._can_record_outputs["attentions"], PrunedAttention, PartAttention],
    }}

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        with equal_layers(config):
            super().__init__(config)
        resize(self, prefix="{prefix}.")


class Pruned{causal}({causal}):
    """The causal language model around `Pruned{inner}`; weights are named as in `{causal}`."""

    def __init__(self, config: Any) -> None:  # noqa: ANN401
        with equal_layers(config):
            super().__init__(config)
        self.{prefix} = Pruned{inner}(config)
        resize_head(self)
        self.post_init()
'''


def classes(config: PretrainedConfig) -> dict[str, str]:
    """The shipped file's class for each `AutoClass` that a ragged model of this family loads through."""
    causal, inner = _stock_names(config)
    return {"AutoModel": f"Pruned{inner}", "AutoModelForCausalLM": f"Pruned{causal}"}


def entries(config: PretrainedConfig) -> dict[str, Any]:
    """The entries about the shipped file in the config.json of a ragged model of this family.

    The architecture is a name that no library knows, so that none uses its own class of the family, which has other
    shapes.
    """
    named = classes(config)
    auto_map = {auto: f"{MODULE}.{name}" for auto, name in named.items()}
    return {"architectures": [named["AutoModelForCausalLM"]], "auto_map": auto_map}


def source(config: PretrainedConfig) -> str:
    """The text of the modelling file for a ragged model of this family; it needs only torch and transformers."""
    causal, inner = _stock_names(config)
    prefix = families.stock_class(config).base_model_prefix
    tail = _TAIL.format(causal=causal, inner=inner, model_type=config.model_type, prefix=prefix)
    return Path(modeling_pruned.__file__).read_text(encoding="utf8") + tail


def _stock_names(config: PretrainedConfig) -> tuple[str, str]:
    """Class names of the family's causal language model and of the decoder inside it."""
    inner: Any = MODEL_MAPPING[type(config)]
    return families.stock_class(config).__name__, inner.__name__
