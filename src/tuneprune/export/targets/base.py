"""Base class of export targets: frozen options that turn an exported Hugging Face folder into files of another kind."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from pydantic import BaseModel
from transformers import AutoTokenizer

from tuneprune.compress.shape import Shape
from tuneprune.errors import UnsupportedExport
from tuneprune.export.reference import Reference

HfConfig: TypeAlias = Any
"""A config of Hugging Face; every family has its own class with its own attributes."""


class Target(BaseModel, frozen=True, extra="forbid"):
    """One kind of file or runtime; subclasses are found in the `target.py` of each folder next to this file."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What it is for, in one line."""
    extra: ClassVar[str] = ""
    """The extra of tuneprune that installs all its packages; empty where it needs none."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that writing imports."""
    runtime: ClassVar[tuple[str, ...]] = ()
    """Modules that running the result imports; without them only the structure of the result is checked."""

    def refuse(self, shape: Shape) -> None:  # noqa: ARG002  (a hook's signature)
        """Refuse a shape that the target cannot hold; called before any training and again for the finished model.

        Raises:
            UnsupportedExport: what was asked, why it is not possible, and which option would make it possible.
        """
        return

    def write(self, source: Path, folder: Path, shape: Shape) -> Mapping[str, Any] | None:
        """Write the files to the empty `folder`, which gets its final name only when this returns.

        Args:
            source: an exported Hugging Face folder.

        Returns:
            Details of the files for `export.json`, such as what differs from what was asked for.
        """
        raise NotImplementedError

    def prove(self, folder: Path, reference: Reference, shape: Shape) -> dict[str, Any]:
        """Run the written files and compare; at least {status, why}, see `conversion.convert`."""
        raise NotImplementedError

    def require(self) -> None:
        """Refuse to start without the packages that writing needs.

        Raises:
            UnsupportedExport: names the extra to install.
        """
        missing = [package for package in self.packages if find_spec(package) is None]
        if missing:
            raise UnsupportedExport(
                f"Export `{self.name}` needs {', '.join(missing)}, which is not installed. Install it with"
                f' pip install "tuneprune[{self.extra}]".'
            )

    def not_run(self) -> str | None:
        """Why the runtime cannot run here, or None where it can."""
        missing = [package for package in self.runtime if find_spec(package) is None]
        return f"{', '.join(missing)} is not installed (extra `{self.extra}`)" if missing else None


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Save the tokenizer of `source` to `folder`, and copy its generation settings where it has any."""
    AutoTokenizer.from_pretrained(source, trust_remote_code=False).save_pretrained(folder)
    if (source / "generation_config.json").is_file():
        shutil.copy2(source / "generation_config.json", folder)


def sliding_window(config: HfConfig) -> int | None:
    """How many tokens back layers with a window see; None where no layer has a window."""
    kinds = getattr(config, "layer_types", None)
    return None if kinds is not None and "sliding_attention" not in kinds else getattr(config, "sliding_window", None)
