"""Checks of a model folder or hub id before any library reads it, because its files are untrusted."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME
from transformers.utils.hub import cached_file

from tuneprune.errors import ConfigError, wrap_errors

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
CONVERT = (
    "Convert them if you trust their origin: load them with transformers, save_pretrained() into a new folder, and name"
    " that folder"
)
POINTER = b"version https://git-lfs"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_JSON = 2**24
"""Bytes of a config or index: a thousand times the size of those of the largest models."""
FLOATS = ("F64", "F32", "F16", "BF16")
PACKED = 16
"""Parameters in one integer, at 2 bits each."""
MOST_LAYERS = 2**10
MOST_UNITS = 2**24
"""The most units of a width or vocabulary; the largest vocabularies have 2**18 tokens."""
MOST_PARAMETERS = 2**43
WIDTHS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "moe_intermediate_size",
    "head_dim",
    "num_attention_heads",
    "num_key_value_heads",
)
ABSENT_IS_NONE: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
COUNTS = ("num_hidden_layers", *WIDTHS, "max_position_embeddings")
"""Entries of a config that have to be 1 or more."""


@dataclass(frozen=True)
class TensorHeaders:
    """Type and shape of every tensor in a folder's safetensors files, by name."""

    types: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def room(self) -> int:
        """The most parameters they can hold: a floating-point number is one, an integer may pack several."""
        return sum(prod(shape) * (1 if self.types[name] in FLOATS else PACKED) for name, shape in self.shapes.items())


def read_headers(folder: Path, key: str) -> TensorHeaders:
    """The headers of a folder's safetensors files; their data is not read.

    Raises:
        ConfigError: a file that is not safetensors, damaged, or shorter than its header says.
    """
    types: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with wrap_errors(f"{key}: cannot load {path}"), safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                view = file.get_slice(name)
                types[name], shapes[name] = view.get_dtype(), tuple(view.get_shape())
    return TensorHeaders(types, shapes)


def check_files(folder: Path, key: str) -> None:
    """Refuse a folder whose weights are not safetensors, or whose files are not what their names say.

    Links are followed, because the hub's own cache consists of them.

    Raises:
        ConfigError: names the file, and says what to do.
    """
    special = next((file for file in sorted(folder.iterdir()) if not (file.is_file() or file.is_dir())), None)
    if special is not None:
        raise ConfigError(f"{key}: {special} is not a regular file. Move it out of the folder.")
    _refuse_pointers(folder, key)
    if any(folder.glob("*.safetensors")):
        check_index(str(folder), key)
        return
    pickles = next((file.name for pattern in PICKLES for file in sorted(folder.glob(pattern))), None)
    if pickles is not None:
        raise ConfigError(
            f"{key}: the weights in {folder} are pickles ({pickles}), which can run code when they are read, so only"
            f" *.safetensors are supported. {CONVERT}."
        )
    raise ConfigError(f"{key}: {folder} holds no weights (*.safetensors). Download them into this folder.")


def check_names(folder: Path, key: str) -> None:
    """Refuse weight files whose names transformers does not look for.

    Raises:
        ConfigError: names one, and the names that are looked for.
    """
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        file = min(folder.glob("*.safetensors")).name
        raise ConfigError(
            f"{key}: {folder} holds {file}, but neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}, where"
            " transformers looks for weights. Download what is missing, or convert the weights."
        )


def _refuse_pointers(folder: Path, key: str) -> None:
    """Refuse the pointer files that a clone without Git LFS has instead of the large files."""
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            is_pointer = stream.read(len(POINTER)) == POINTER
        if is_pointer:
            raise ConfigError(
                f"{key}: {path} is a Git LFS pointer, not the file itself. Run `git lfs pull` there, or download the"
                " folder with `hf download`."
            )


def check_index(model: str, key: str) -> None:
    """Refuse an index of weight files that points outside its folder or to files of another kind.

    Raises:
        ConfigError: names the file that it points to.
    """
    found = find_file(model, SAFE_WEIGHTS_INDEX_NAME, key)
    if found is None:
        return
    with wrap_errors(f"{key}: cannot read {SAFE_WEIGHTS_INDEX_NAME} of {model}"):
        names = set(read_json(found, key)["weight_map"].values())
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{key}: {SAFE_WEIGHTS_INDEX_NAME} of {model} points to {name!r:.100}, but weights have to be"
                " *.safetensors in the same folder. Fix the file name in the index, or save the model again."
            )
    absent = [name for name in sorted(names) if Path(model).is_dir() and not (Path(model) / name).is_file()]
    if absent:
        raise ConfigError(
            f"{key}: {model} lacks {len(absent)} of its {len(names)} weight files, such as {absent[0]}. Download the"
            " missing ones."
        )


def check_adapter(adapter: str, key: str) -> None:
    """Refuse an adapter whose weights peft would not read as safetensors.

    Raises:
        ConfigError: says how to convert them.
    """
    if find_file(adapter, ADAPTER_WEIGHTS, key) is None:
        raise ConfigError(
            f"{key}: {adapter} has no {ADAPTER_WEIGHTS}, and weights in other formats (*.bin) can run code when they"
            f" are read. {CONVERT.replace('transformers', 'peft')}."
        )


def find_file(model: str, name: str, key: str) -> Path | None:
    """A file of a folder or hub id, downloaded if it is on the hub; None where there is no file of that name."""
    with wrap_errors(f"{key}: cannot read {name} of {model}"):
        found = cached_file(model, name, **ABSENT_IS_NONE)
    return None if found is None else Path(found)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_base(folder: Path) -> str:
    """The base model named in an adapter's settings; empty where none is named.

    Raises:
        ConfigError: settings that cannot be read.
    """
    with wrap_errors(f"model.adapter: cannot read the settings of {folder}"):
        return str(read_json(folder / ADAPTER_CONFIG, "model.adapter").get("base_model_name_or_path") or "")


def adapter_alone_error(model: str, base: str, key: str) -> ConfigError:
    """The error for an adapter that was named where a model is expected."""
    base = base or "BASE"
    return ConfigError(
        f"{key}: {model} is an adapter ({ADAPTER_CONFIG}), not a whole model. Name both: `model: {{base: {base},"
        f" adapter: {model}}}` in a run file, `{base} --adapter {model}` for compress; for other commands, merge them"
        " with merge_and_unload() of peft and name the result."
    )


def refuse_adapter(model: str, key: str) -> None:
    """Refuse a model with an adapter in its folder: transformers would load it too, or replace the model by its base.

    Raises:
        ConfigError: says how to name both.
    """
    found = find_file(model, ADAPTER_CONFIG, key)
    if found is None:
        return
    if find_file(model, "config.json", key) is None:
        raise adapter_alone_error(model, adapter_base(found.parent), key)
    raise ConfigError(
        f"{key}: {model} holds both a model and an adapter ({ADAPTER_CONFIG}). Name a folder without the adapter as"
        " model.base, and the adapter as model.adapter; or merge them with peft."
    )


def read_json(path: Path, key: str) -> dict[str, Any]:
    """The JSON object in a file of a reasonable size.

    Raises:
        ConfigError: it is larger, or not an object.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ConfigError(f"{key}: {path} has {size:,} bytes, but at most {LARGEST_JSON:,} are read. Fix it.")
    content = json.loads(path.read_text(encoding="utf8"))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{key}: {path} holds a {type(content).__name__}, not a JSON object. Fix it, or name another."
        )
    return content


def check_numbers(config: Mapping[str, Any], model: str, key: str) -> None:
    """Refuse sizes in config.json that no model has, before a model of such sizes is built.

    Raises:
        ConfigError: names the entry and what it may be.
    """
    folder = Path(model)  # every layer has at least one tensor
    most_layers = min(MOST_LAYERS, len(read_headers(folder, key).shapes)) if folder.is_dir() else MOST_LAYERS
    for name, value in config.items():
        if isinstance(value, int) and name in LAYERS:
            limit = most_layers
        elif isinstance(value, int) and name in COUNTS:
            limit = 2**31 if name == "max_position_embeddings" else MOST_UNITS
        else:
            continue
        if value > limit or (name in COUNTS and value < 1):
            raise ConfigError(
                f"{key}: config.json of {model} says {name}={value:.4g}, but it has to be from 1 to {limit}. Fix it, or"
                " name another model."
            )


def check_precision(config: Mapping[str, Any], model: str, key: str) -> None:
    """Refuse a precision in config.json that PyTorch does not have, such as `auto`: transformers fails on it.

    Raises:
        ConfigError: says that it can be removed.
    """
    for name in ("dtype", "torch_dtype"):
        said = config.get(name)
        if isinstance(said, str) and not isinstance(getattr(torch, said, None), torch.dtype):
            raise ConfigError(
                f"{key}: config.json of {model} says {name}={said!r:.40}, which is not a precision. Remove the entry;"
                " the precision of the weight files is used."
            )


def check_sizes(parameters: int, model: str, key: str) -> None:
    """Refuse a config with far more parameters than the folder's weight files hold.

    Loading finds any difference; this protects commands that do not load the weights from building a huge model.

    Raises:
        ConfigError: says both numbers.
    """
    folder = Path(model)
    room = read_headers(folder, key).room if folder.is_dir() else MOST_PARAMETERS
    if parameters > 2 * room:
        raise ConfigError(
            f"{key}: config.json of {model} describes {parameters:.3g} parameters, but its weight files hold at most"
            f" {room:.3g}: they are of different models, or files are missing. Name a folder whose files belong"
            " together."
        )
