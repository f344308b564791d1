import math
from dataclasses import replace

import pytest
import torch
from helpers.toy_evaluation import byte_tokenizer, toy_model

from tuneprune.data import Example
from tuneprune.errors import ConfigError
from tuneprune.evaluate import LoadedTask, evaluate

TEXTS = ("The pulse is fast.", "Été à 40 °C; " * 8, "No cough.", "x" * 300)
CHOICES = (" yes", " no", " maybe")
READ = LoadedTask("text", "perplexity", tuple(Example("", text) for text in TEXTS))
ASKED = LoadedTask(
    "asked",
    "qa",
    tuple(
        Example(f'Text: "{"ab " * n}"\nAnswer:', CHOICES[n % 3], choices=CHOICES, body="ab " * n)
        for n in (1, 2, 3, 5, 8, 13, 21, 60)
    ),
)
INFERRED = replace(ASKED, name="inferred", kind="nli")
TOLD = LoadedTask(
    "told",
    "summary",
    tuple(Example(f"Text: {'word ' * n}\nSummary:", " a word", body="word " * n) for n in (1, 3, 30)),
    max_new_tokens=12,
)
EVERYTHING = [READ, ASKED, INFERRED, TOLD]


def close(scores, others):
    return all(
        math.isclose(value, others[task][metric], rel_tol=1e-4)
        for task, metrics in scores.items()
        for metric, value in metrics.items()
    )


@pytest.mark.parametrize("variant", ["llama3", "mistral", "qwen3", "phi3"])
def test_scores_do_not_depend_on_the_batch_size_and_repeat_exactly(variant):
    model, tokenizer = toy_model(variant), byte_tokenizer()
    scores = evaluate(model, tokenizer, EVERYTHING, batch_size=3)
    assert scores == evaluate(model, tokenizer, EVERYTHING, batch_size=3)
    assert close(scores, evaluate(model, tokenizer, EVERYTHING, batch_size=1))
    assert close(scores, evaluate(model, tokenizer, EVERYTHING, batch_size=16))
    assert {task: set(metrics) for task, metrics in scores.items()} == {
        "text": {"perplexity", "nats_per_byte"},
        "asked": {"macro_f1", "accuracy"},
        "inferred": {"accuracy"},
        "told": {"rouge1", "rouge2", "rougeL"},
    }


@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_is_the_token_weighted_mean_over_windows(bos):
    model, tokenizer = toy_model(), byte_tokenizer(bos=bos)
    room = 64 - bos
    loss, num_tokens, num_bytes = 0.0, 0, 0
    for text in TEXTS:
        ids = [*(byte + 0 for byte in tokenizer(text, add_special_tokens=False)["input_ids"]), 2]
        for start in range(0, len(ids), room):
            window = torch.tensor([[1] * bos + ids[start : start + room]])
            logits = model(input_ids=window).logits[0, :-1].log_softmax(-1)
            loss -= logits.gather(-1, window[0, 1:, None]).sum().item()
            num_tokens += window.shape[1] - 1
        num_bytes += len(text.encode())
        num_bytes -= 0 if bos else math.ceil((len(ids)) / room)
    scores = evaluate(model, tokenizer, [READ], max_length=64)["text"]
    assert scores["perplexity"] == pytest.approx(math.exp(loss / num_tokens), rel=1e-5)
    assert scores["nats_per_byte"] == pytest.approx(loss / num_bytes, rel=0.01)


def test_the_answer_is_the_choice_with_the_largest_summed_likelihood():
    model, tokenizer = toy_model(), byte_tokenizer()

    def likelihood(example, choice):
        prompt = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
        completion = [*tokenizer(choice, add_special_tokens=False)["input_ids"], 2]
        ids = torch.tensor([[1, *prompt, *completion]])
        scores = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
        return scores[-len(completion) :].sum().item()

    short = [example for example in ASKED.examples if len(example.prompt) < 100]
    best = [max(CHOICES, key=lambda choice: likelihood(example, choice)) for example in short]
    right = tuple(replace(example, completion=choice) for example, choice in zip(short, best, strict=True))
    wrong = tuple(replace(e, completion=CHOICES[CHOICES.index(e.completion) - 1]) for e in right)
    assert evaluate(model, tokenizer, [replace(ASKED, examples=right)])["asked"]["accuracy"] == 1
    assert evaluate(model, tokenizer, [replace(ASKED, examples=wrong)])["asked"]["accuracy"] == 0


def test_the_first_choice_wins_a_tie():
    model, tokenizer = toy_model(), byte_tokenizer()
    model.lm_head.weight.data.zero_()
    same_length = (" b", " a", " c")
    for completion, expected in ((" b", 1.0), (" a", 0.0)):
        example = Example("Which?", completion, choices=same_length)
        task = LoadedTask("tie", "multiple_choice", (example,))
        assert evaluate(model, tokenizer, [task])["tie"]["accuracy"] == expected


def test_dropout_is_off_and_training_mode_comes_back():
    model, tokenizer = toy_model(attention_dropout=0.9), byte_tokenizer()
    quiet = evaluate(model, tokenizer, [READ])
    model.train()
    model.model.layers[0].eval()
    assert evaluate(model, tokenizer, [READ]) == quiet
    assert model.training
    assert not model.model.layers[0].mlp.training
    assert torch.is_grad_enabled()


def test_progress_ends_at_the_number_of_items_of_every_task():
    told = []
    tokenizer = byte_tokenizer()
    evaluate(
        toy_model(),
        tokenizer,
        EVERYTHING,
        batch_size=2,
        progress=lambda name, done, total: told.append((name, done, total)),
    )
    for task in EVERYTHING:
        steps = [done for name, done, _ in told if name == task.name]
        assert steps == sorted(steps)
        assert steps[-1] == len(task.examples)
        assert all(total == len(task.examples) for name, _, total in told if name == task.name)


def test_summaries_longer_than_the_context_are_refused():
    with pytest.raises(ConfigError, match="max_new_tokens"):
        evaluate(toy_model(), byte_tokenizer(), [replace(TOLD, max_new_tokens=500)])


def test_a_model_that_fell_apart_gets_an_infinite_perplexity():
    model = toy_model()
    model.lm_head.weight.data.fill_(float("nan"))
    assert evaluate(model, byte_tokenizer(), [READ])["text"]["perplexity"] == math.inf


def test_a_model_that_gives_no_numbers_answers_nothing_right():
    model = toy_model()
    model.lm_head.weight.data.fill_(float("nan"))
    found = evaluate(model, byte_tokenizer(), [ASKED, TOLD])
    assert found[ASKED.name]["accuracy"] == 0
    assert found[TOLD.name]["rouge1"] == 0
