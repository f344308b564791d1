"""What a model folder or hub id holds, looked at before any library reads it: whoever made it may be a stranger."""

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
    "Convert them where you trust their origin: load them with transformers, save_pretrained() into a new folder, and"
    " name that one"
)
POINTER = b"version https://git-lfs"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LARGEST_JSON = 2**24
"""Bytes of a config or index: a thousand times what the largest models take."""
FLOATS = ("F64", "F32", "F16", "BF16")
PACKED = 16
"""Parameters in one integer, at 2 bits each."""
MOST_LAYERS = 2**10
MOST_UNITS = 2**24
"""Of a width or vocabulary; the largest vocabularies have 2**18 tokens."""
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
"""Entries of a config that are 1 or more."""


@dataclass(frozen=True)
class TensorHeaders:
    """Type and shape of every tensor in a folder's safetensors files, by name."""

    types: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def room(self) -> int:
        """The most parameters that can be in them: numbers of floating point count once, in others many are packed."""
        return sum(prod(shape) * (1 if self.types[name] in FLOATS else PACKED) for name, shape in self.shapes.items())


def read_headers(folder: Path, key: str) -> TensorHeaders:
    """What the headers of a folder's safetensors files say; their data is not read.

    Raises:
        ConfigError: a file that is no safetensors, damaged, or shorter than it says.
    """
    types: dict[str, str] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with wrap_errors(f"{key}: cannot load {path}"), safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118  (no mapping)
                view = file.get_slice(name)
                types[name], shapes[name] = view.get_dtype(), tuple(view.get_shape())
    return TensorHeaders(types, shapes)


def check_files(folder: Path, key: str) -> None:
    """Refuse a folder whose weights are no safetensors, or whose files are not what they pass for.

    Links are followed, as the hub's own cache consists of them.

    Raises:
        ConfigError: says which file, and what to do.
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
            f"{key}: the weights in {folder} are pickles ({pickles}), which can run code when they are read; only"
            f" *.safetensors are read here. {CONVERT}."
        )
    raise ConfigError(f"{key}: {folder} holds no weights (*.safetensors). Download them beside its config.")


def check_names(folder: Path, key: str) -> None:
    """Refuse a model's weight files that transformers does not find by their names.

    Raises:
        ConfigError: names one, and what has to be there.
    """
    if not any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        file = min(folder.glob("*.safetensors")).name
        raise ConfigError(
            f"{key}: {folder} holds {file}, but neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}, by which"
            " weights in the format of transformers are found. Download what is missing, or convert them."
        )


def _refuse_pointers(folder: Path, key: str) -> None:
    """Refuse files that a clone without Git LFS left in the place of the large ones.

    Raises:
        ConfigError: names the first, and how to get the file itself.
    """
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        with path.open("rb") as stream:
            is_pointer = stream.read(len(POINTER)) == POINTER
        if is_pointer:
            raise ConfigError(
                f"{key}: {path} is a pointer of Git LFS, not the file itself. Run `git lfs pull` there, or download the"
                " folder with `hf download`."
            )


def check_index(model: str, key: str) -> None:
    """Refuse an index of weight files that leads out of its folder or to files of another kind.

    Raises:
        ConfigError: names the file that it leads to.
    """
    with wrap_errors(f"{key}: cannot read {SAFE_WEIGHTS_INDEX_NAME} of {model}"):
        found = cached_file(model, SAFE_WEIGHTS_INDEX_NAME, **ABSENT_IS_NONE)
        if found is None:
            return
        index = read_json(Path(found), key)
        names = set(index["weight_map"].values())
    for name in sorted(names, key=str):
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise ConfigError(
                f"{key}: {SAFE_WEIGHTS_INDEX_NAME} of {model} leads to {name!r:.100}, but weights are *.safetensors"
                " beside it. Correct the file's name in the index, or save the model again."
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
    with wrap_errors(f"{key}: cannot read {adapter}"):
        found = cached_file(adapter, ADAPTER_WEIGHTS, **ABSENT_IS_NONE)
    if found is None:
        raise ConfigError(
            f"{key}: {adapter} has no {ADAPTER_WEIGHTS}, and weights of other kinds (*.bin) can run code when they are"
            f" read. {CONVERT.replace('transformers', 'peft')}."
        )


def has_file(model: str, file: str) -> bool:
    """Whether a folder or hub id has a file of that name."""
    with wrap_errors(f"{model} cannot be read"):
        return cached_file(model, file, **ABSENT_IS_NONE) is not None


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter alone, and no model beside it."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_base(folder: Path) -> str:
    """The name of the base in an adapter's settings; empty where there is none.

    Raises:
        ConfigError: settings that cannot be read.
    """
    with wrap_errors(f"model.adapter: cannot read the settings of {folder}"):
        return str(read_json(folder / ADAPTER_CONFIG, "model.adapter").get("base_model_name_or_path") or "")


def adapter_alone_error(model: str, base: str, key: str) -> ConfigError:
    """What is said of an adapter that was named where a model belongs."""
    base = base or "BASE"
    return ConfigError(
        f"{key}: {model} is an adapter ({ADAPTER_CONFIG}), not a whole model. Name both: `model: {{base: {base},"
        f" adapter: {model}}}` in a run file, `{base} --adapter {model}` for compress; other commands take the model"
        " that merge_and_unload() of peft makes of them."
    )


def refuse_adapter(model: str, key: str) -> None:
    """Refuse a model with an adapter beside it, which transformers would load too, or another base in its place.

    Raises:
        ConfigError: says how to name both.
    """
    with wrap_errors(f"{key}: cannot read {model}"):
        found = cached_file(model, ADAPTER_CONFIG, **ABSENT_IS_NONE)
        is_model = found is None or cached_file(model, "config.json", **ABSENT_IS_NONE) is not None
    if found is not None and not is_model:
        raise adapter_alone_error(model, adapter_base(Path(found).parent), key)
    if found is not None:
        raise ConfigError(
            f"{key}: {model} holds an adapter ({ADAPTER_CONFIG}) beside its model. Name a folder without it as"
            " model.base, and the adapter as model.adapter; or merge them with peft."
        )


def read_json(path: Path, key: str) -> dict[str, Any]:
    """The JSON object in a file of a sane size.

    Raises:
        ConfigError: it is larger, or no object.
    """
    size = path.stat().st_size
    if size > LARGEST_JSON:
        raise ConfigError(f"{key}: {path} has {size:,} bytes, more than any such file ({LARGEST_JSON:,}). Correct it.")
    content = json.loads(path.read_text(encoding="utf8"))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{key}: {path} holds a {type(content).__name__}, not a JSON object. Correct it, or name another."
        )
    return content


def check_numbers(config: Mapping[str, Any], model: str, key: str) -> None:
    """Refuse sizes that no model has, before anything is built of such sizes.

    Args:
        config: what config.json says.

    Raises:
        ConfigError: names the entry and what it may be.
    """
    folder = Path(model)  # whose every layer has a tensor at least
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
                f"{key}: config.json of {model} says {name}={value:.4g}, where 1 to {limit} can be. Correct"
                " it, or name another model."
            )


def check_precision(config: Mapping[str, Any], model: str, key: str) -> None:
    """Refuse a precision that PyTorch does not know, such as `auto`, on which transformers fails.

    Args:
        config: what config.json says.

    Raises:
        ConfigError: says that it may be left out.
    """
    for name in ("dtype", "torch_dtype"):
        said = config.get(name)
        if isinstance(said, str) and not isinstance(getattr(torch, said, None), torch.dtype):
            raise ConfigError(
                f"{key}: config.json of {model} says {name}={said!r:.40}, which is not a precision. Take the entry out:"
                " that of the weight files counts."
            )


def check_sizes(parameters: int, model: str, key: str) -> None:
    """Refuse a config of far more parameters than the folder's weight files hold.

    Loading finds any difference; this keeps whoever does not load from building models that do not exist.

    Raises:
        ConfigError: both numbers.
    """
    folder = Path(model)
    room = read_headers(folder, key).room if folder.is_dir() else MOST_PARAMETERS
    if parameters > 2 * room:
        raise ConfigError(
            f"{key}: config.json of {model} describes {parameters:.3g} parameters, but there is room for {room:.3g} in"
            " its weight files: one is of another model, or files are missing. Name a folder whose files"
            " belong together."
        )
