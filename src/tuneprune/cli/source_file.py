"""What files of this package define, read instead of imported: importing most of them means importing torch.

Read are docstrings of files, classes and functions, and constants: literals, other constants by their name, dicts of
constants, and the default of a pydantic `Field`. A name that is imported from this package means what it means there.
"""

import ast
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeAlias

PACKAGE = Path(__file__).parents[1]
Value: TypeAlias = Any
"""A constant, a class that has its docstring and its constants, or a stand-in for a function that has its docstring."""


class Imported(NamedTuple):
    """A name of another file."""

    module: str
    name: str


Meaning: TypeAlias = ast.expr | ast.ClassDef | ast.FunctionDef | Imported


class SourceFile:
    """One file: its docstring, and the values of its names."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text(encoding="utf8"))
        self.__doc__ = ast.get_docstring(tree)
        self.names = dict(_names(tree.body))
        self._values: dict[str, Value] = {}

    def __getitem__(self, name: str) -> Value:
        """The value of a name.

        Raises:
            ValueError: the file has no such name, or has to be imported to know.
        """
        if name not in self.names:
            raise ValueError(f"no `{name}`")
        if name not in self._values:  # once, so that all subclasses of a class have the same one
            self._values[name] = self._value(self.names[name])
        return self._values[name]

    def classes(self) -> list[type]:
        """The classes that are written here."""
        return [self[name] for name, meaning in self.names.items() if isinstance(meaning, ast.ClassDef)]

    def _value(self, meaning: Meaning | None) -> Value:
        match meaning:
            case Imported(module, name):
                return source_of(module)[name]
            case ast.ClassDef():
                return self._class(meaning)
            case ast.FunctionDef():
                return SimpleNamespace(__doc__=ast.get_docstring(meaning))
            case ast.Name(name):
                return self[name]
            case ast.Dict(keys, values):
                return {self._value(key): self._value(value) for key, value in zip(keys, values, strict=True)}
            case ast.Call(ast.Name("Field"), _, [ast.keyword("default", default), *_]):
                return self._value(default)
            case ast.expr():
                return ast.literal_eval(meaning)
            case None:
                raise ValueError("a dict is unpacked")

    def _class(self, node: ast.ClassDef) -> type:
        """The class without its functions; `model_fields` has its defaults, like that of a pydantic model."""
        bases = (self[base.id] for base in node.bases if isinstance(base, ast.Name) and base.id in self.names)
        constants: dict[str, Value] = {}
        for name, meaning in _names(node.body):
            with suppress(ValueError):
                constants[name] = self._value(meaning)
        fields = {name: SimpleNamespace(default=value) for name, value in constants.items()}
        return type(node.name, tuple(bases), {"__doc__": ast.get_docstring(node), "model_fields": fields, **constants})


def _names(body: Sequence[ast.stmt]) -> Iterator[tuple[str, Meaning]]:
    """What a file or a class defines, and what it imports from this package."""
    for statement in body:
        match statement:
            case ast.Assign([ast.Name(name)], value) | ast.AnnAssign(ast.Name(name), _, ast.expr() as value):
                yield name, value
            case ast.ClassDef(name) | ast.FunctionDef(name):
                yield name, statement
            case ast.ImportFrom(str(module), aliases) if module.startswith(f"{PACKAGE.name}."):
                yield from ((alias.asname or alias.name, Imported(module, alias.name)) for alias in aliases)


@cache
def read(path: Path) -> SourceFile:
    """A file; the same object every time."""
    return SourceFile(path)


def source_of(module: str) -> SourceFile:
    """The file of a module of this package, by its full name."""
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return read(path / "__init__.py" if path.is_dir() else path.with_suffix(".py"))


def named_classes(folder: str, base: str) -> dict[str, Value]:
    """The classes in and below a folder that derive from the `base` of its `base.py` and have a name, by name."""
    parent = read(PACKAGE / folder / "base.py")[base]
    classes = [kind for path in (PACKAGE / folder).rglob("*.py") for kind in read(path).classes()]
    named = {vars(kind)["name"]: kind for kind in classes if issubclass(kind, parent) and "name" in vars(kind)}
    return dict(sorted(named.items()))
