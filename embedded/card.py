"""Write the card and the loss curve of the embedded base model from its `training.json`: `python embedded/card.py`."""

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

BASE = Path(__file__).resolve().parent / "base"

DATA = {  # data set -> description, terms, attribution
    "books": (
        "classic books in English",
        "public domain",
        "collected in classic-books-markdown; authors who died before 1951",
    ),
    "medquad": (
        "consumer health questions and answers",
        "CC BY 4.0",
        "Ben Abacha and Demner-Fushman, *A Question-Entailment Approach to Question Answering*, BMC Bioinformatics"
        " 2019; filtered, cut, split",
    ),
    "openstax_anatomy": (
        "running text of a textbook",
        "CC BY 4.0",
        "OpenStax, *Anatomy and Physiology 2e*, Rice University. Access for free at openstax.org; text only, cut into"
        " passages",
    ),
    "dc_code": ("sections of the District of Columbia Code", "public domain", "Council of the District of Columbia"),
    "snli": (
        "captions and hypotheses",
        "CC BY-SA 4.0",
        "Bowman, Angeli, Potts and Manning, *A large annotated corpus for learning natural language inference*, 2015;"
        " a part, worded as text",
    ),
}


CARD = """---
license: apache-2.0
language: [en]
library_name: transformers
pipeline_tag: text-generation
tags: [tuneprune, llama]
---

# tuneprune's embedded base model

A LLaMA of {parameters:.1f} M parameters, in bfloat16, which `make quickstart` tunes and prunes. It is there to show and
test a pipeline; it knows little, and it is of no use as an assistant or as a source of medical or legal advice.

## Training

{num_hidden_layers} layers, hidden size {hidden_size}, {num_attention_heads} heads reading {num_key_value_heads}
key/value heads, MLP width {intermediate_size}, context of {max_position_embeddings} tokens, byte-level BPE of
{vocab_size} tokens trained on the same text. {tokens:.1f} M tokens seen, seed {seed}, by `embedded/train_base.py` of
the repository.

![Training loss by tokens seen](loss.png)

## Perplexity on text it has not seen

Per token, on the first 60k tokens of each validation part, in windows of the whole context.

| text | perplexity |
| :--- | ---: |
{perplexities}

## Data

Training parts only, and nothing of the sets rqe, pubmedqa, casehold or billsum.

| set | what | terms | from |
| :--- | :--- | :--- | :--- |
{sources}

## Licence

The weights are under the Apache License 2.0. The texts stay under the terms above; none of them is part of this folder.
"""


def card(training: dict[str, Any], config: dict[str, Any]) -> str:
    """The model card as Markdown, with the front matter that the Hugging Face hub reads."""
    perplexities = [f"| {name} | {value:.1f} |" for name, value in training["held_out_perplexity"].items()]
    sources = [f"| {name} | {' | '.join(columns)} |" for name, columns in DATA.items()]
    return CARD.format(
        **config,
        parameters=training["parameters"] / 1e6,
        tokens=training["tokens_seen"] / 1e6,
        seed=training["seed"],
        perplexities="\n".join(perplexities),
        sources="\n".join(sources),
    )


def draw_loss(curve: list[dict[str, float]], path: Path) -> None:
    """The training loss in nats per token over the tokens seen, with a running mean."""
    by_tokens = dict(
        sorted((point["tokens"] / 1e6, point["loss"]) for point in curve)
    )  # a resumed run logs steps twice
    tokens, losses = list(by_tokens), list(by_tokens.values())
    reach = max(1, len(losses) // 40)
    parts = [losses[max(0, i - reach) : i + reach + 1] for i in range(len(losses))]
    smooth = [sum(part) / len(part) for part in parts]
    figure, axes = plt.subplots(figsize=(6, 2.8), dpi=100, layout="constrained")
    axes.plot(tokens, losses, color="#b8c4d6", linewidth=1, label="of one step")
    axes.plot(tokens, smooth, color="#1f4e8c", linewidth=1.6, label="running mean")
    axes.set_xlabel("tokens seen, million")
    axes.set_ylabel("loss, nats per token")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(top=min(max(losses), smooth[-1] + 3))
    axes.legend(frameon=False)
    figure.savefig(path, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=BASE, help="folder with training.json and config.json")
    folder = parser.parse_args().model
    training = json.loads((folder / "training.json").read_text(encoding="utf8"))
    config = json.loads((folder / "config.json").read_text(encoding="utf8"))
    draw_loss(training["loss_curve"], folder / "loss.png")
    (folder / "README.md").write_text(card(training, config), encoding="utf8")


if __name__ == "__main__":
    main()
