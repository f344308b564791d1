"""Models and tokenizers that are missing, incomplete, or of a kind that cannot be pruned."""

from e2e.refusals import Row, all_of, holding, set_to
from helpers.gguf_files import rewrite, tiny, write_gguf
from safetensors.torch import load_file, save_file
from transformers import GPT2Config


def without(*patterns):
    def change(case):
        folder = case.model()
        for pattern in patterns:
            for file in folder.glob(pattern):
                file.unlink()

    return change


def holds(name, content):
    """Replace a file in the model's folder."""

    def change(case):
        (case.model() / name).write_bytes(content)

    return change


def incomplete(case):
    weights = case.model() / "model.safetensors"
    tensors = load_file(weights)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, weights, metadata={"format": "pt"})


def few_tokens(case):
    """A model with fewer embeddings than its tokenizer has tokens."""
    weights = case.model(vocab_size=20) / "model.safetensors"
    ends = ("embed_tokens.weight", "lm_head.weight")
    tensors = {name: t[:20].clone() if name.endswith(ends) else t for name, t in load_file(weights).items()}
    save_file(tensors, weights, metadata={"format": "pt"})


def not_a_number(case):
    weights = case.model() / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, weights, metadata={"format": "pt"})


def gguf(variant="llama", content=None, **changes):
    """The run's model is a GGUF file, or a file of that name with other content."""

    def change(case):
        file = case.folder / "m.gguf"
        if content is None:
            write_gguf(file, tiny(variant))
            rewrite(file, **changes)
        else:
            file.write_bytes(content)
        case.content["model"] = str(file)

    return change


def cut_off(case):
    gguf()(case)
    file = case.folder / "m.gguf"
    file.write_bytes(file.read_bytes()[:-1000])


def alone_in_a_folder(case):
    gguf()(case)
    case.content["model"] = str(case.folder)


ROWS = {
    "too long for the model": Row(["tune.max_length=4096", "context of 128"], set_to("tune.max_length", 4096)),
    "no model folder": Row(["no folder ./nowhere", "hub id"], set_to("model", "./nowhere")),
    "model that is a file": Row(
        ["is a file", "Name the folder"],
        all_of(holding("weights", "x"), lambda c: c.content.update(model=f"{c.folder}/weights")),
    ),
    "no adapter": Row(["no folder ./nowhere"], set_to("model", {"base": "", "adapter": "./nowhere"})),
    "unknown key of the model": Row(["`model.lora`", "adapter"], set_to("model", {"base": "", "lora": "./nowhere"})),
    "model without weights": Row(["holds no weights", "*.safetensors"], without("*.safetensors")),
    "model without config": Row(["no config.json"], without("config.json")),
    "model without tokenizer": Row(["holds no tokenizer"], without("tokenizer*")),
    "config that is no JSON": Row(["config"], holds("config.json", b"{")),
    "config that is a list": Row(["holds a list, not a JSON object"], holds("config.json", b"[1]")),
    "unsupported family": Row(["`gpt2`", "llama", "qwen3"], lambda case: GPT2Config().save_pretrained(case.model())),
    "uneven model": Row(
        ["pruned", "dense model", "`tuneprune recover`"], lambda case: case.model(pruned={"layers": []})
    ),
    "tokenizer of another model": Row(["in the data", "tokenizer", "20 embeddings"], few_tokens),
    "other number of tokens": Row(["64 x 32 in the files", "20 x 32"], lambda case: case.model(vocab_size=20)),
    "incomplete weights": Row(["incomplete", "model.layers.1.mlp.up_proj.weight"], incomplete),
    "weights that are not finite": Row(["`model.layers.1.mlp.up_proj.weight`", "NaN"], not_a_number),
    "damaged weights": Row(["model.safetensors"], holds("model.safetensors", b"\x00" * 100)),
    "weights of other shapes": Row(["model"], lambda case: case.model(intermediate_size=8)),
    "no GGUF file": Row(["no file ./nowhere.gguf"], set_to("model", "./nowhere.gguf")),
    "GGUF file that is none": Row(["m.gguf is not a GGUF file"], gguf(content=b"PK")),
    "GGUF file that is a pointer": Row(
        ["Git LFS pointer"], gguf(content=b"version https://git-lfs.github.com/spec/v1")
    ),
    "GGUF file that is cut off": Row(["damaged, or its end is missing", "Download it again"], cut_off),
    "GGUF file of another architecture": Row(["`granite`", "llama, qwen2"], gguf("granite")),
    "GGUF file that is a part": Row(["one of 3 parts", "--merge"], gguf(split__count=3)),
    "GGUF file with a setting of its own": Row(["`llama.logit_scale`"], gguf(llama__logit_scale=2.0)),
    "GGUF file without a tensor": Row(["20 tensors", "has 21"], gguf(drop=1)),
    "GGUF file without a tokenizer": Row(["no tokenizer"], gguf(tokenizer__ggml__model="none")),
    "GGUF file without the package": Row(
        ["package gguf", "pip install gguf"], gguf(), replaced={"tuneprune.model.gguf_files.find_spec": lambda _: None}
    ),
    "GGUF file in a folder": Row(["has no config.json", "Name {folder}/m.gguf itself"], alone_in_a_folder),
    "inspect: GGUF file that is none": Row(["not a GGUF file"], gguf(content=b"PK"), "inspect {model}"),
    "evaluate: GGUF file that is none": Row(
        ["not a GGUF file"], gguf(content=b"PK"), "evaluate {model} --suite clinic"
    ),
    "recover: GGUF file that is none": Row(
        ["not a GGUF file"], gguf(content=b"PK"), "recover {model} {run} --out {out}"
    ),
    "compress: GGUF file that is none": Row(
        ["not a GGUF file"], gguf(content=b"PK"), "compress {model} --plan {folder} --out {out}"
    ),
    "export: GGUF file that is none": Row(
        ["not a GGUF file"], gguf(content=b"PK"), "export {model} --to onnx --out {out}"
    ),
}
