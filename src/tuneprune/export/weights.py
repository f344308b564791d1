"""The tensors of an exported folder, one at a time."""

from pathlib import Path

from safetensors import safe_open
from torch import Tensor


class Weights:
    """The tensors of a folder's safetensors files, read one at a time.

    A file is opened for each read and then closed: while it is open, everything that was read from it counts as memory
    of this process.
    """

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, Path] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118  (not a mapping)
                    self._files[name] = path
                    self._shapes[name] = tuple(stored.get_slice(name).get_shape())

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self._files[name], framework="pt") as stored:
            return stored.get_slice(name)[:]

    def shape(self, name: str) -> tuple[int, ...]:
        """Its dims, outputs first."""
        return self._shapes[name]
