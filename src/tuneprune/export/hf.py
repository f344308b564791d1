"""A pruned model as a Hugging Face folder that `from_pretrained` loads without tuneprune."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneprune.compress import Streamed, shipped_code
from tuneprune.errors import TunePruneError
from tuneprune.export.export_folder import placed, sizes, write_record
from tuneprune.export.shards import write_shards
from tuneprune.system.progress import Progress, remark

CONFIG, TOKENIZER_CONFIG = "config.json", "tokenizer_config.json"
CODE = "auto_map"
"""The entry that names the code which `trust_remote_code=True` runs."""


@dataclass(frozen=True)
class Loader:
    """What it takes to load an exported folder."""

    class_name: str
    needs_remote_code: bool
    host_model_type: str


def write(
    model: PreTrainedModel | Streamed,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    max_shard_size: str = "5GB",
    progress: Progress | None = None,
) -> Loader:
    """Write the model, its tokenizer and generation settings to `folder`, and return what loads them.

    Everything is written to a sibling folder first and moved into place in one step; an earlier export in `folder` is
    replaced only then, so a failing disk leaves it as it was.

    Args:
        model: with its weights, or streamed; the files are the same.
        max_shard_size: largest size of one weight file, as Hugging Face writes sizes.
        progress: shows the tensors of a streamed model as they are written.

    Raises:
        ConfigError: `folder` is a file, or holds something that is not an export.
        TunePruneError: the files could not be written.
    """
    _stop_at_end(model.model if isinstance(model, Streamed) else model, tokenizer)
    try:
        with placed(folder) as partial:
            if isinstance(model, Streamed):
                model.model.save_pretrained(partial, state_dict={})  # first, as it would remove the weight files
                write_shards(model, partial, max_shard_size, progress or Progress())
                model = model.model
            else:
                # Hugging Face renames some families' tensors on disk, and for shipped code does not rename them back.
                original = not _is_ragged(model)
                model.save_pretrained(partial, max_shard_size=max_shard_size, save_original_format=original)
            tokenizer.save_pretrained(partial)
            loader = _finish(model, partial)
            write_record(partial, {"schema": 1, "target": "hf", "files": sizes(partial)})
            return loader
    except (OSError, SafetensorError) as error:
        raise TunePruneError(
            f"{folder.resolve()}: the model could not be written ({error}). Free space on the disk or choose another"
            " folder; what was there before is untouched."
        ) from error


def _stop_at_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Let the model also stop at its tokenizer's end of text, with which training texts end; in place."""
    settings: Any = model.generation_config
    end, said = tokenizer.eos_token_id, settings.eos_token_id
    stops = said if isinstance(said, list) else [token for token in [said] if token is not None]
    if not isinstance(end, int) or end in stops or end >= model.config.get_text_config().vocab_size:
        return
    settings.eos_token_id = [*stops, end] if stops else end
    remark(
        f"The model's generation settings have eos_token_id={said}, but its tokenizer ends texts with"
        f" {tokenizer.eos_token} (token {end}): the exported model stops at either."
    )


def weight_bytes(folder: Path) -> int:
    """Size of the safetensors files of a folder, in bytes."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def _is_ragged(model: PreTrainedModel) -> bool:
    """Whether the model needs the shipped modelling file."""
    return hasattr(model.config, "pruned")


def _finish(model: PreTrainedModel, folder: Path) -> Loader:
    """Add to the saved folder what Hugging Face's own saving leaves out."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf8"))
    config |= _legacy_rope(config)
    config.pop(CODE, None)  # of the base model, whose code is not exported
    if _is_ragged(model):
        config |= shipped_code.entries(model.config)
        (folder / f"{shipped_code.MODULE}.py").write_text(shipped_code.source(model.config), encoding="utf8")
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf8")
    _settle_tokenizer(folder / TOKENIZER_CONFIG)
    return Loader(config["architectures"][0], _is_ragged(model), config["model_type"])


def _settle_tokenizer(path: Path) -> None:
    """Remove references to code of the base model, and rename a class that transformers 4 does not know."""
    settings = json.loads(path.read_text(encoding="utf8"))
    settled = {key: value for key, value in settings.items() if key != CODE}
    if settled.get("tokenizer_class") == "TokenizersBackend":
        settled["tokenizer_class"] = "PreTrainedTokenizerFast"  # the same class in transformers 5
    if settled != settings:
        path.write_text(json.dumps(settled, indent=2, ensure_ascii=False) + "\n", encoding="utf8")


def _legacy_rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE settings under the names that readers older than transformers 5 know, such as mlx-lm.

    Without them such readers assume theta 10000 and no scaling, and compute wrong logits without an error.
    """
    rope = config.get("rope_parameters") or {}
    local = rope.get("sliding_attention") or {}
    rope = rope.get("full_attention", rope)  # some families have other RoPE in sliding layers
    if "rope_theta" not in rope:
        return {}
    legacy: dict[str, Any] = {"rope_theta": rope["rope_theta"]}
    if "rope_theta" in local:
        legacy["rope_local_base_freq"] = local["rope_theta"]
    if "partial_rotary_factor" in rope:
        legacy["partial_rotary_factor"] = rope["partial_rotary_factor"]
    if rope.get("rope_type", "default") != "default":
        legacy["rope_scaling"] = rope  # complete: transformers 5 reads it instead of `rope_parameters`
    return legacy
