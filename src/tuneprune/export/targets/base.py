"""What an export target is: frozen options that turn an exported Hugging Face folder into files of another kind."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from pydantic import BaseModel

from tuneprune.compress.shape import Shape
from tuneprune.errors import UnsupportedExport
from tuneprune.export.reference import Reference


class Target(BaseModel, frozen=True, extra="forbid"):
    """One kind of file or runtime; subclasses are found in the `target.py` of a folder beside this file."""

    name: ClassVar[str]
    title: ClassVar[str]
    """What it is for, in one line."""
    extra: ClassVar[str]
    """The extra of tuneprune that installs all its packages; empty where it takes none."""
    packages: ClassVar[tuple[str, ...]] = ()
    """Modules that writing imports."""
    runtime: ClassVar[tuple[str, ...]] = ()
    """Modules that running the result imports; without them the result is checked structurally only."""

    def refuse(self, shape: Shape) -> None:  # noqa: ARG002  (a hook's signature)
        """Refuse a shape that the target cannot hold; asked before any training and again of the finished model.

        Raises:
            UnsupportedExport: what was asked, why it cannot be, and which option would make it possible.
        """
        return

    def write(self, source: Path, folder: Path, shape: Shape) -> Mapping[str, Any] | None:
        """Write the files to the empty `folder`, which appears under its name only when this returns.

        Args:
            source: an exported Hugging Face folder.

        Returns:
            What to say about the files in `export.json`, such as what differs from what was asked for.
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
