"""YAML files and values written by hand: read without running code, bounded in size, and refused where ambiguous."""

import codecs
import re
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from yaml.events import AliasEvent

from tuneprune.errors import ConfigError, first_line, has_surrogates

LARGEST = 2**18
"""Characters of a document; a run file has a few thousand."""
DEEPEST = 40
MOST_NODES = 20_000
"""Values in a document once its aliases are expanded."""
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"
RawYaml: TypeAlias = Any
"""Whatever YAML can hold. Callers find out what it is, so that pyright has nothing to check."""


class _Loader(yaml.SafeLoader):
    """Builds plain values, with limits on their number and depth, and without duplicate keys."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: RawYaml) -> yaml.Node | None:
        """One node with everything below it, within the limits of depth and size."""
        is_alias, mark = self.check_event(AliasEvent), self.peek_event().start_mark
        self.depth += 1
        if self.depth > DEEPEST:
            raise _error(f"it is nested more than {DEEPEST} levels deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.sizes:
            raise _error("an alias refers to the value that contains it", mark)
        if isinstance(node, yaml.ScalarNode) and has_surrogates(node.value):
            raise _error("a text contains half of a surrogate pair, which is not a character", mark)
        if not is_alias:
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in _parts(node))
        if self.sizes[id(node)] > MOST_NODES:
            raise _error(f"it has more than {MOST_NODES} values once its aliases are expanded", mark)
        return node

    def compose_mapping_node(self, anchor: RawYaml) -> yaml.MappingNode:
        """A mapping whose keys are texts that all differ."""
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (TEXT, MERGE):
                what = f"the key `{key.value}`" if isinstance(key, yaml.ScalarNode) else "a key"
                raise _error(f"{what} is not a text; write it in quotes", key.start_mark)
            if key.value in seen:
                raise _error(f"the key `{key.value}` appears twice; keep one of them", key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(  # YAML 1.1 reads 1e-4 and 1.5e3 as texts
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def load_file(path: Path) -> RawYaml:
    """The plain values of a YAML file.

    Raises:
        ConfigError: it cannot be read, is neither UTF-8 nor UTF-16, is too long, or fails in `load`.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(4 * LARGEST + 1)  # a character takes 4 bytes at most
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # written by Windows shells
        is_whole = len(data) <= 4 * LARGEST
        text = codecs.getincrementaldecoder("utf-16" if is_utf16 else "utf-8-sig")().decode(data, final=is_whole)
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ConfigError(f"Cannot read the run file {path}: {reason}. Name a run file that can be read.") from error
    except ValueError as error:
        raise ConfigError(f"The run file {path} is neither UTF-8 nor UTF-16. Save it as UTF-8.") from error
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > LARGEST or not is_whole:
        raise ConfigError(f"{path} is longer than {LARGEST} characters, so it is not a run file. Name a run file.")
    return load(text, str(path))


def load(text: str, place: str) -> RawYaml:
    """The plain values of a YAML document.

    Args:
        place: where the text comes from; the message begins with it.

    Raises:
        ConfigError: malformed, nested too deeply or too large once its aliases are expanded, a key that is not a text
            or appears twice, or a value that Python cannot represent.
    """
    if text.lstrip().startswith("{"):  # JSON may be indented with tabs, and has no other tabs at the start of a line
        text = re.sub(r"^[ \t]+", lambda found: " " * len(found[0]), text, flags=re.MULTILINE)
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is not YAML"
        if "\\t" in problem:
            problem += "; it is a tab, and YAML is indented with spaces"
        raise ConfigError(f"{place}{line}: malformed YAML: {problem}. Fix it.") from error
    except Exception as error:  # dates that do not exist, numbers of thousands of digits
        reason = first_line(error).partition(";")[0]  # Python's advice to programmers follows the semicolon
        raise ConfigError(f"{place}: a value cannot be read: {reason}. Fix it, or put it in quotes.") from error


def _parts(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _error(problem: str, mark: yaml.Mark) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
