"""Models and tokenizers that are missing, incomplete, or of a kind that cannot be pruned."""

from e2e.refusals import Row, all_of, holding, set_to
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
}
