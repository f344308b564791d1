"""Where a model is: a folder as people write it, a hub id, or an adapter that names its base."""

from pathlib import Path
from typing import Any

from tuneprune.errors import ConfigError
from tuneprune.system import model_folder
from tuneprune.system.paths import expand_path


def expand_name(name: str) -> str:
    """The folder or hub id with `~` and variables of the environment replaced.

    Raises:
        ConfigError: a variable that is not set, or a user that is not known.
    """
    if "$" not in name and not name.startswith("~"):
        return name
    try:
        return str(expand_path(Path(name)))
    except ValueError as error:
        raise ConfigError(f"{error}.") from error


def base_and_adapter(name: str) -> dict[str, Any]:
    """What a run file says with one name: a model, or an adapter's folder, which names its base.

    Raises:
        ConfigError: an adapter whose base cannot be found by the name that it gives.
    """
    named = split_adapter(name)
    base = named.get("base", "")
    if "adapter" in named and not (Path(base).is_dir() or is_hub_id(base)):
        where = f"its base, {base}, is not on this machine" if base else "it does not say of which base"
        raise ConfigError(
            f"model: {name} is an adapter, and {where}. Write `model: {{base: FOLDER, adapter: {name}}}`, with the"
            " folder or hub id of its base."
        )
    return named


def split_adapter(name: str) -> dict[str, Any]:
    """The base, and the adapter where the name is one's folder, whose base is left out where it does not name any.

    Raises:
        ConfigError: an adapter whose settings cannot be read.
    """
    folder = Path(expand_name(name))
    if not model_folder.is_adapter(folder):
        return {"base": expand_name(name)}
    base = model_folder.adapter_base(folder)
    return {"base": base, "adapter": str(folder)} if base else {"adapter": str(folder)}


def is_hub_id(name: str) -> bool:
    """Whether a name has the form owner/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))
