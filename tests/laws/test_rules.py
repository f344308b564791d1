"""Rules of the source code: sizes, depth of inheritance, imports that are allowed."""

import ast
import importlib
import pkgutil
import re
from functools import cache
from pathlib import Path

import pytest

from tuneprune import methods
from tuneprune.families import registry
from tuneprune.methods.base import Method, Search
from tuneprune.structure.spaces import SPACES

SOURCE = Path(__file__).parents[2] / "src" / "tuneprune"
FAMILIES, METHODS = SOURCE / "families", SOURCE / "methods"
FUNCTIONS = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def trees():
    """The syntax tree of every source file."""
    return {path: ast.parse(path.read_text(encoding="utf8")) for path in sorted(SOURCE.rglob("*.py"))}


def nodes(*kinds):
    """Every node of these kinds with its file and line."""
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, kinds):
                yield path, f"{path.relative_to(SOURCE)}:{node.lineno}", node


def imports(path):
    """Full names of all modules that a file imports, and of the names imported from them."""
    for node in ast.walk(trees()[path]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def all_methods():
    for module in pkgutil.iter_modules(methods.__path__):
        importlib.import_module(f"tuneprune.methods.{module.name}")
    return tuple(Method.__subclasses__())


def test_files_stay_small():
    lengths = {path.relative_to(SOURCE): len(path.read_text(encoding="utf8").splitlines()) for path in trees()}
    shipped = Path("compress", "modeling_pruned.py")  # ships with checkpoints as one file
    assert lengths.pop(shipped) <= 500
    assert {str(path): length for path, length in lengths.items() if length > 300} == {}


def test_functions_stay_small():
    lengths = {f"{where} {node.name}": node.end_lineno - node.lineno + 1 for _, where, node in nodes(FUNCTIONS)}
    assert {name: length for name, length in lengths.items() if length > 60} == {}
    assert sorted(lengths.values())[int(0.9 * len(lengths))] <= 40


def test_every_file_has_a_docstring_and_a_telling_name():
    for path, tree in trees().items():
        assert path.name not in ("utils.py", "helpers.py", "common.py", "misc.py"), path
        assert ast.get_docstring(tree) or not tree.body, f"{path} has no docstring"


def test_annotations_are_not_postponed_and_imports_not_relative():
    for _, where, node in nodes(ast.ImportFrom):
        assert node.module != "__future__", where
        assert node.level == 0, where


def test_only_family_files_tell_families_apart():
    for path, where, node in nodes(ast.Compare, ast.MatchValue):
        if FAMILIES not in path.parents:
            constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
            assert not constants & registry().keys(), f"{where} names a family"


def test_no_file_tells_methods_apart_by_name():
    names = {method.name for method in all_methods()}
    assert names
    for _, where, node in nodes(ast.Compare, ast.MatchValue):
        constants = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
        assert not constants & names, f"{where} names a method"


@pytest.mark.parametrize("parent", [Method, Search])
def test_inheritance_is_one_deep(parent):
    all_methods()
    children = parent.__subclasses__()
    assert children
    for child in children:
        assert child.__bases__ == (parent,), f"{child.__name__} has several bases"
        assert not child.__subclasses__(), f"{child.__name__} has subclasses"


def test_one_method_a_file_with_its_description_paper_and_spaces():
    found = all_methods()
    assert len({method.__module__ for method in found}) == len({method.name for method in found}) == len(found)
    for method in found:
        assert method.__doc__, method
        assert method.paper.startswith("https://"), method
        assert method.spaces, method
        assert set(method.spaces) <= SPACES.keys(), method


def test_families_know_nothing_but_the_vocabulary():
    allowed = (
        "tuneprune.structure",
        "tuneprune.errors",
        "tuneprune.families.base",
    )
    for path in sorted(FAMILIES.glob("[!_]*.py")):
        for name in imports(path):
            assert name.startswith(allowed) or not name.startswith("tuneprune"), f"{path.name} imports {name}"


def test_methods_know_neither_each_other_nor_the_loop():
    homes = {method.__module__ for method in all_methods()}
    for path in sorted(METHODS.rglob("[!_]*.py")):
        own = path.relative_to(METHODS).parts[0].removesuffix(".py")
        others = tuple(home for home in homes if home.split(".")[2] != own)
        for name in imports(path):
            assert not name.startswith(("tuneprune.train", "tuneprune.export", "tuneprune.pipeline", *others)), (
                f"{path.name} imports {name}"
            )


def test_the_shipped_modelling_file_stands_alone():
    roots = {name.partition(".")[0] for name in imports(SOURCE / "compress" / "modeling_pruned.py")}
    assert roots <= {"collections", "contextlib", "typing", "torch", "transformers", "math"}


def test_only_the_vocabulary_knows_how_peft_wraps_a_linear():
    for path, where, node in nodes(ast.Attribute):
        if path != SOURCE / "structure" / "weights.py":
            assert node.attr not in ("lora_A", "lora_B"), where


def test_public_names_keep_to_the_vocabulary():
    for _, where, node in nodes(FUNCTIONS, ast.ClassDef):
        words = {word.lower() for word in re.findall(r"[a-z]+|[A-Z][a-z]*", node.name)}
        assert not words & {"ratio", "sparsity", "utils"}, f"{where} {node.name}"


CODE = {"eval", "exec", "compile", "__import__"}
PICKLES = {"pickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
READERS = {("torch", "load"), ("yaml", "load"), ("yaml", "full_load"), ("yaml", "unsafe_load"), ("numpy", "load")}
LIBRARIES = ("AutoConfig", "AutoTokenizer", "AutoModelForCausalLM", "AutoModel")
WEIGHTS = ("AutoModelForCausalLM", "AutoModel", "stock")


def calls():
    """Every call with its file and line, the name before its last dot (empty for a plain name) and the last one."""
    for _, where, node in nodes(ast.Call):
        if isinstance(node.func, ast.Name):
            yield where, "", node.func.id, node
        elif isinstance(node.func, ast.Attribute):
            yield where, getattr(node.func.value, "id", "?"), node.func.attr, node


def test_no_file_is_unpickled_and_no_text_runs():
    for path in trees():
        assert not PICKLES & {name.partition(".")[0] for name in imports(path)}, path
    for where, owner, name, _ in calls():
        assert owner or name not in CODE, where
        assert (owner, name) not in READERS, where


def test_transformers_is_told_what_to_trust():
    """Otherwise it asks at the terminal when a folder names code, and loads pickles when there is nothing else."""
    told = 0
    for where, owner, name, call in calls():
        given = {keyword.arg for keyword in call.keywords}  # None stands for some that are unpacked
        if name == "from_pretrained" and owner in LIBRARIES:
            assert given & {"trust_remote_code", None}, where
            told += 1
        if name == "from_pretrained" and owner in WEIGHTS:
            assert given & {"use_safetensors", None}, where
    assert told >= 10
