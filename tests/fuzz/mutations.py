"""Valid documents, changed in a few places, as by an attacker, a bad disk or an editor."""

import json
import struct

from hypothesis import strategies as st

DEEP = "deep"
VALUES = st.one_of(
    st.sampled_from(
        [None, True, False, -1, 0, 1, 2, 7, 2**31, 2**63, 10**30, -(10**18), 0.5, 1e308, float("inf"), float("nan")]
    ),
    st.sampled_from(["", " ", "x", "0", "[/red]", "../../x", "/etc/passwd", "\x1b[2J", "a\nb", "\u202e", "é" * 300]),
    st.sampled_from([[], [[]], {}, {"a": {}}, [0], [None], {"": 0}, ["x"] * 50, DEEP]),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
)


def places(document, here=()):
    """The path of every value in a document, including the document itself."""
    yield here
    if isinstance(document, dict):
        for key, value in document.items():
            yield from places(value, (*here, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from places(value, (*here, index))


def nested(depth):
    value = 0
    for _ in range(depth):
        value = [value]
    return value


def changed(document, path, kind, value, key):
    """A copy with one change at `path`."""
    if not path:
        return nested(900) if value == DEEP else value
    head, *rest = path
    if isinstance(document, list):
        copy = list(document)
        if rest:
            copy[head] = changed(document[head], rest, kind, value, key)
        elif kind == "drop":
            del copy[head]
        elif kind == "repeat":
            copy.append(copy[head])
        else:
            copy[head] = nested(900) if value == DEEP else [copy[head]] if kind == "wrap" else value
        return copy
    copy = dict(document)
    if rest:
        copy[head] = changed(document[head], rest, kind, value, key)
    elif kind == "drop":
        del copy[head]
    elif kind == "rename":
        copy[key] = copy.pop(head)
    elif kind == "repeat":
        copy[key] = copy[head]
    else:
        copy[head] = nested(900) if value == DEEP else [copy[head]] if kind == "wrap" else value
    return copy


@st.composite
def mutated(draw, document, most=2):
    """The document after one to `most` changes of values, keys, types and depth."""
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(places(document))[1:] or [()]))
        kind = draw(st.sampled_from(["value", "value", "value", "drop", "rename", "repeat", "wrap"]))
        document = changed(document, path, kind, draw(VALUES), draw(st.sampled_from(["x", "", "name", "../x"])))
        if not isinstance(document, dict | list):
            break
    return document


@st.composite
def damaged(draw, content: bytes):
    """The bytes after one damage, without regard to their meaning."""
    place = draw(st.integers(0, max(0, len(content) - 1)))
    kind = draw(st.sampled_from(["cut", "flip", "insert", "repeat", "zero", "empty"]))
    if kind == "cut":
        return content[:place]
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ (1 << draw(st.integers(0, 7)))]) + content[place + 1 :]
    if kind == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=20)) + content[place:]
    if kind == "repeat":
        return content[:place] + content[place:] * 2
    return content[:place] + bytes(len(content) - place) if kind == "zero" else b""


def json_bytes(document) -> bytes:
    return json.dumps(document).encode("utf8", "surrogatepass")


@st.composite
def json_file(draw, document):
    """A JSON file of a changed document, or a damaged one."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(json_bytes(document)))
    return json_bytes(draw(mutated(document)))


@st.composite
def tensor_file(draw, content: bytes):
    """A safetensors file with a changed header or damaged bytes."""
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged(content))
    size = struct.unpack("<Q", content[:8])[0]
    header = json_bytes(draw(mutated(json.loads(content[8 : 8 + size]))))
    declared = draw(st.sampled_from([len(header)] * 8 + [0, 2**60, len(header) + 1, len(content)]))
    return struct.pack("<Q", declared) + header + content[8 + size :]
