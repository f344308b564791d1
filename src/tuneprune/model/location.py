"""Where a model is: a folder, a hub id, or an adapter that names its base."""

from pathlib import Path
from typing import Any

from tuneprune.errors import ConfigError
from tuneprune.system import model_folder
from tuneprune.system.paths import expand_path


def expand_name(name: str) -> str:
    """The folder or hub id with `~` and environment variables expanded.

    Raises:
        ConfigError: a variable that is not set, or an unknown user.
    """
    if "$" not in name and not name.startswith("~"):
        return name
    try:
        return str(expand_path(Path(name)))
    except ValueError as error:
        raise ConfigError(f"{error}.") from error


def base_and_adapter(name: str) -> dict[str, Any]:
    """The `model` section for a single name: a model, or the folder of an adapter, which names its base.

    Raises:
        ConfigError: an adapter whose base is not named or not found.
    """
    section = split_adapter(name)
    base = section.get("base", "")
    if "adapter" in section and not (Path(base).is_dir() or is_hub_id(base)):
        where = f"its base, {base}, is not on this machine" if base else "it does not name its base"
        raise ConfigError(
            f"model: {name} is an adapter, and {where}. Write `model: {{base: FOLDER, adapter: {name}}}`, with the"
            " folder or hub id of its base."
        )
    return section


def split_adapter(name: str) -> dict[str, Any]:
    """The name as `base`, or as `adapter` if it is the folder of one, together with the base that it names, if any.

    Raises:
        ConfigError: an adapter whose settings cannot be read.
    """
    name = expand_name(name)
    if not model_folder.is_adapter(Path(name)):
        return {"base": name}
    base = model_folder.adapter_base(Path(name))
    return ({"base": base} if base else {}) | {"adapter": str(Path(name))}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))
