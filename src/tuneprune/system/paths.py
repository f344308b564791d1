"""Paths of data as people write them, with `~` and variables of the environment."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand_path(path: Path) -> Path:
    """The path with `~`, `$VAR` and `${VAR}` replaced; a path that exists as it is written stays as it is.

    Raises:
        ValueError: a variable that is not set, or a user that is not known.
    """
    if os.path.exists(path):
        return path

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ValueError(f"the variable `${name}` in the path {path} is not set. Set it, or write the path out")
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(value, str(path))).expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder in the path {path} is not known. Write the path out") from None


DataPath = Annotated[Path, AfterValidator(expand_path)]
"""A path in a run file, expanded when the file is read."""
