import json
import math

import pytest
import torch
from helpers.toy_evaluation import byte_tokenizer, toy_model

from tuneprune.data import Example, TaskSpec
from tuneprune.evaluate import EvaluateConfig, LoadedTask, evaluate, load_tasks

EOS = 2
CHAT = (
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
ASKED = (Example("What is a fever?", " A temperature above 38 °C."), Example("Cough?", " No."))
TEXTS = (Example("", "The pulse is fast."), Example("", "Été à 40 °C; " * 12))


def loss_of(model, given, predicted):
    """Nats of the predicted tokens behind the given ones."""
    ids = torch.tensor([[*given, *predicted]])
    scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
    return -scores[-len(predicted) :].sum().item()


def measured(examples, *, bos=True, **options):
    task = LoadedTask("t", "perplexity", tuple(examples))
    return evaluate(toy_model(), byte_tokenizer(bos=bos), [task], **options)["t"]


@pytest.mark.parametrize("bos", [True, False])
def test_the_completions_are_predicted_and_the_prompts_only_read(bos):
    model, tokenizer = toy_model(), byte_tokenizer(bos=bos)
    loss, num_tokens, num_bytes = 0.0, 0, 0
    for example in ASKED:
        prompt, completion = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (example.prompt, example.completion)
        )
        loss += loss_of(model, [1] * bos + prompt, [*completion, EOS])
        num_tokens += len(completion) + 1
        num_bytes += len(example.completion.encode())
    scores = measured(ASKED, bos=bos)
    assert scores["perplexity"] == pytest.approx(math.exp(loss / num_tokens), rel=1e-5)
    assert scores["nats_per_byte"] == pytest.approx(loss / num_bytes, rel=1e-5)


def test_texts_and_completions_of_one_task_weigh_by_their_tokens():
    """One token a byte, and EOS behind each document: tokens are known, and sums of losses follow."""
    apart = [measured(examples, max_length=128) for examples in (ASKED, TEXTS)]
    both = measured((*ASKED, *TEXTS), max_length=128)
    sizes = [sum(len(example.completion.encode()) for example in examples) for examples in (ASKED, TEXTS)]
    counts = [sizes[0] + 2, sizes[1] + 2]
    losses = [math.log(score["perplexity"]) * count for score, count in zip(apart, counts, strict=True)]
    assert both["perplexity"] == pytest.approx(math.exp(sum(losses) / sum(counts)), rel=1e-5)
    assert both["nats_per_byte"] == pytest.approx(sum(losses) / sum(sizes), rel=1e-5)


def test_a_long_prompt_is_shortened_as_in_training_and_the_completion_stays():
    model, tokenizer = toy_model(), byte_tokenizer()
    prompt, completion = "p" * 500 + "Q:", " yes"
    kept = tokenizer(prompt, add_special_tokens=False)["input_ids"][-(32 - 1 - 5) :]
    predicted = [*tokenizer(completion, add_special_tokens=False)["input_ids"], EOS]
    scores = measured([Example(prompt, completion)], max_length=32)
    assert scores["nats_per_byte"] == pytest.approx(loss_of(model, [1, *kept], predicted) / 4, rel=1e-5)


def test_only_the_bytes_that_a_cut_completion_has_left_count():
    scores = measured([Example("Q:", " " + "c" * 500)], max_length=32)
    # 29 tokens of one byte each are predicted, so both metrics speak of the same mean.
    assert scores["nats_per_byte"] == pytest.approx(math.log(scores["perplexity"]), rel=1e-6)


def test_a_conversation_is_read_from_a_file_and_its_answer_predicted(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    turns = [{"role": "user", "content": "fever?"}, {"role": "assistant", "content": "38 °C"}]
    records = [{"messages": turns}, {"prompt": "Cough?", "completion": " No."}, {"text": "A note."}]
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    (task,) = load_tasks(EvaluateConfig(tasks=[TaskSpec(path=path, kind="perplexity")]), tokenizer)
    model = toy_model()
    parts = [
        ("<s>user: fever?</s><s>assistant: ", "38 °C</s>", 6),
        ("<s>Cough?", " No.</s>", 4),
        ("<s>", "A note.</s>", 7),
    ]
    ids = [[tokenizer(text, add_special_tokens=False)["input_ids"] for text in part[:2]] for part in parts]
    loss = sum(loss_of(model, given, predicted) for given, predicted in ids)
    scores = evaluate(model, tokenizer, [task])["test"]
    assert scores["perplexity"] == pytest.approx(math.exp(loss / sum(len(p) for _, p in ids)), rel=1e-5)
    assert scores["nats_per_byte"] == pytest.approx(loss / sum(size for *_, size in parts), rel=1e-5)
