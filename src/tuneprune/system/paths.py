"""Data paths with `~` and environment variables."""

import os
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


def expand_path(path: Path) -> Path:
    """The path with `~`, `$VAR` and `${VAR}` expanded; a path that exists as written is kept.

    Raises:
        ValueError: a variable that is not set, or an unknown user.
    """
    if os.path.exists(path):
        return path

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if not os.environ.get(name):
            raise ValueError(f"the variable `${name}` in the path {path} is not set. Set it, or write the full path")
        return os.environ[name]

    try:
        return Path(_VARIABLE.sub(value, str(path))).expanduser()
    except RuntimeError:
        raise ValueError(f"the home folder in the path {path} is unknown. Write the full path") from None


DataPath = Annotated[Path, AfterValidator(expand_path)]
"""A path in a run file, expanded when the file is read."""
