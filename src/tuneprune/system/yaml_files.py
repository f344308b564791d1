"""YAML as a person writes it: read without code, bounded in size, and refused where it would be taken otherwise."""

import codecs
import re
from pathlib import Path
from typing import Any

import yaml
from yaml.events import AliasEvent

from tuneprune.errors import ConfigError, first_line

LARGEST = 2**18
"""Characters of a document; a run file has some thousand."""
DEEPEST = 40
MOST_NODES = 20_000
"""Values in a document once its aliases are written out."""
TEXT, MERGE = "tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """Builds plain values, as many and as deep as they stand there, with every key once."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = 0
        self.sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:  # noqa: ANN401
        """One node with all below it.

        Raises:
            MarkedYAMLError: nested too deep, or too large with its aliases.
        """
        is_alias, mark = self.check_event(AliasEvent), self.peek_event().start_mark
        self.depth += 1
        if self.depth > DEEPEST:
            raise _refused(f"it is nested more than {DEEPEST} deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if is_alias and id(node) not in self.sizes:
            raise _refused("an alias stands inside of what it stands for", mark)
        if isinstance(node, yaml.ScalarNode) and not _is_unicode(node.value):
            raise _refused("a text has half of a character, which no file can hold", mark)
        if not is_alias:
            self.sizes[id(node)] = 1 + sum(self.sizes[id(part)] for part in _parts(node))
        if self.sizes[id(node)] > MOST_NODES:
            raise _refused(f"it has more than {MOST_NODES} values, aliases written out", mark)
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:  # noqa: ANN401
        """A mapping whose keys are texts, each there once.

        Raises:
            MarkedYAMLError: names the key.
        """
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag not in (TEXT, MERGE):
                what = f"the key `{key.value}`" if isinstance(key, yaml.ScalarNode) else "a key"
                raise _refused(f"{what} is no text; write it in quotes", key.start_mark)
            if key.value in seen:
                raise _refused(f"the key `{key.value}` is there twice; keep one of them", key.start_mark)
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(  # YAML 1.1 takes 1e-4 and 1.5e3 for texts
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_text(path: Path) -> str:
    """The text of a file that a person wrote.

    Raises:
        ConfigError: it cannot be read, is neither UTF-8 nor UTF-16, or longer than any such file.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(4 * LARGEST + 4)  # bytes of a character, at most
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))  # what a Windows shell writes
        text = _decoded(data, "utf-16" if is_utf16 else "utf-8-sig")
    except OSError as error:
        reason = error.strerror or first_line(error)
        raise ConfigError(f"Cannot read the run file {path}: {reason}. Name a run file that can be read.") from error
    except ValueError as error:
        raise ConfigError(f"The run file {path} is neither UTF-8 nor UTF-16. Save it as UTF-8.") from error
    if len(text) > LARGEST:
        raise ConfigError(f"{path} is longer than {LARGEST} characters, which no run file is. Name a run file.")
    return text


def _decoded(data: bytes, encoding: str) -> str:
    """The text that bytes hold; one that goes on behind them is longer than any that is read."""
    text = codecs.getincrementaldecoder(encoding)().decode(data, final=len(data) < 4 * LARGEST + 4)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def load(text: str, place: str) -> Any:  # noqa: ANN401  (plain YAML)
    """The plain values of a YAML document.

    Args:
        place: where it stands; the message begins with it.

    Raises:
        ConfigError: malformed, too deep or too large with its aliases written out, a key that is there twice or no
            text, or a value that Python cannot hold.
    """
    try:
        return _load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "it is not YAML"
        if "\\t" in problem:
            problem += "; a tab, where YAML takes spaces alone"
        raise ConfigError(f"{place}{line}: malformed YAML: {problem}. Fix it.") from error
    except Exception as error:  # dates that do not exist, numbers of thousands of digits
        reason = first_line(error).partition(";")[0]  # behind it Python tells programmers what to call
        raise ConfigError(f"{place}: a value cannot be read: {reason}. Fix it, or put it in quotes.") from error


def _load(text: str) -> Any:  # noqa: ANN401
    if len(text) > LARGEST:
        raise _refused(f"it is longer than {LARGEST} characters", None)
    if text.lstrip().startswith("{"):  # JSON may be indented with tabs, and holds none at the start of a line otherwise
        text = re.sub(r"^[ \t]+", lambda found: " " * len(found[0]), text, flags=re.MULTILINE)
    loader = _Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _parts(node: yaml.Node | None) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return node.value if isinstance(node, yaml.SequenceNode) else []


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf8")
    except UnicodeEncodeError:
        return False
    return True


def _refused(problem: str, mark: yaml.Mark | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
