"""Malicious model folders: each tries to create a file outside of itself."""

import json
import pickle
import shutil
from pathlib import Path

CODE = """
from pathlib import Path

Path({mark!r}).write_text("code of the folder ran")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


class EvilConfig(LlamaConfig):
    model_type = "evil"


class Evil(LlamaForCausalLM):
    config_class = EvilConfig


class EvilTokenizer(PreTrainedTokenizerFast):
    pass


def generate(model, *args, **options):
    return None
"""


class Payload:
    """An object that creates the file `mark` when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (Path(self.mark),))


def hostile_model(folder: Path, model: Path, mark: Path, **config) -> Path:
    """A copy of a model whose config, tokenizer and generation settings all name code in the folder."""
    shutil.copytree(model, folder)
    code = CODE.format(mark=str(mark))
    for name in ("modeling_evil.py", "modeling_pruned.py", "configuration_evil.py", "tokenization_evil.py"):
        (folder / name).write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    auto_map = {"AutoModelForCausalLM": "modeling_evil.Evil", "AutoConfig": "modeling_evil.EvilConfig"}
    change(folder / "config.json", auto_map=auto_map, **config)
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "tokenization_evil.EvilTokenizer"]})
    change(folder / "generation_config.json", custom_generate=str(folder), trust_remote_code=True)
    return folder


def change(path: Path, **entries) -> None:
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(content | entries))


def pickled(path: Path, mark: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(mark)))
