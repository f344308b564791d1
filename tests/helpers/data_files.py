"""Data files as users have them, and what is read from them."""

from tuneprune.data import SourceConfig, read_source

ROWS = [{"text": "one"}, {"text": "zwölf"}, {"text": 'three "3", x'}]
TEXTS = [row["text"] for row in ROWS]


def file(folder, name, content):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, tokenizer, split="train", left_out=None):
    return [example.completion for example in read_source(SourceConfig(path=path), tokenizer, split, left_out)]
