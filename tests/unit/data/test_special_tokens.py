"""The tokens before and after those of an example are the ones that the tokenizer or the chat template adds."""

import pytest
from helpers.toy_bytes import byte_level_tokenizer
from tokenizers import processors

from tuneprune.data import Example, encode, encode_all, encode_choices, encode_prompt, windows

PAD, BOS, EOS = 0, 1, 2
NAMES = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
CHAT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"


def with_ends():
    """Puts BOS before and EOS after every text."""
    tokenizer = byte_level_tokenizer(**NAMES)
    ends = [("<s>", BOS), ("</s>", EOS)]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=ends
    )
    return tokenizer


TOKENIZERS = {
    "BOS is known and added": (lambda: byte_level_tokenizer(BOS, **NAMES), [BOS]),
    "BOS is known, but not added, as GPT-2's and SmolLM2's": (lambda: byte_level_tokenizer(**NAMES), []),
    "no BOS, as Qwen's": (lambda: byte_level_tokenizer(pad_token="<pad>", eos_token="</s>"), []),
    "two tokens, as GLM's": (lambda: byte_level_tokenizer(PAD, BOS, **NAMES), [PAD, BOS]),
    "BOS and EOS": (with_ends, [BOS]),
}


@pytest.mark.parametrize("what", TOKENIZERS)
def test_every_kind_of_example_starts_as_the_tokenizer_starts_a_text(what):
    make, front = TOKENIZERS[what]
    tokenizer = make()
    bare = tokenizer("ab", add_special_tokens=False)["input_ids"]
    task = Example("ab", " yes", choices=(" yes", " no"))
    assert tokenizer("ab")["input_ids"][: len(front) + 2] == front + bare
    assert windows(Example("", "ab"), tokenizer, 32)[0].input_ids == [*front, *bare, EOS]
    assert encode(Example("", "ab"), tokenizer, 32).input_ids == [*front, *bare, EOS]
    assert encode(task, tokenizer, 32).input_ids[: len(front) + 2] == front + bare
    assert encode_choices(task, tokenizer, 32)[0] == front + bare
    assert encode_prompt(task, tokenizer, 32, reserve=8)[0] == front + bare


@pytest.mark.parametrize("what", TOKENIZERS)
def test_every_window_and_a_shortened_prompt_start_in_the_same_way(what):
    make, front = TOKENIZERS[what]
    tokenizer, room = make(), 10 - len(TOKENIZERS[what][1])
    parts = windows(Example("", "x" * room * 3), tokenizer, 10)
    assert all(part.input_ids[: len(front)] == front for part in parts)
    assert all(len(part.input_ids) <= 10 for part in parts)
    short = encode(Example("p" * 50, " yes"), tokenizer, 16)
    assert short.input_ids[: len(front)] == front
    assert (len(short.input_ids), short.num_given) == (16, 11)


@pytest.mark.parametrize("what", TOKENIZERS)
def test_what_the_tokenizer_adds_is_not_counted_as_a_control_token_of_the_text(what):
    tokenizer = TOKENIZERS[what][0]()
    assert encode_all([Example("", "plain")], tokenizer, 32).num_control == 0
    assert encode_all([Example("", "pl</s>ain")], tokenizer, 32).num_control == 1


@pytest.mark.parametrize("what", TOKENIZERS)
@pytest.mark.parametrize("opening", ["", "<s>"])
def test_templated_text_is_exactly_what_the_template_writes(what, opening):
    tokenizer = TOKENIZERS[what][0]()
    tokenizer.chat_template = opening + CHAT
    turns = [{"role": "user", "content": "hi" * 20}, {"role": "assistant", "content": "ho"}]
    whole = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    example = Example(opening + f"[user]{'hi' * 20}</s>", "[assistant]ho</s>", is_templated=True)
    assert encode(example, tokenizer, 64).input_ids == whole
    short = encode(example, tokenizer, 40).input_ids
    assert (short[0] == BOS) == (bool(opening) and tokenizer.bos_token_id == BOS)
    assert short[-18:] == whole[-18:]


def test_an_answer_gets_no_space_that_is_not_in_the_whole_conversation(spaced_tokenizer):
    example = Example("<s>a</s>", "yes</s>", is_templated=True)
    whole = spaced_tokenizer("<s>a</s>yes</s>", add_special_tokens=False)["input_ids"]
    assert encode(example, spaced_tokenizer, 32).input_ids == whole


def test_a_prefix_in_the_text_is_not_added_twice(tokenizer):
    for example in (Example("<s>Q:", " A"), Example("", "<s>Q: A")):
        assert encode(example, tokenizer, 32).input_ids.count(BOS) == 1
    assert windows(Example("", "<s>Q: A"), tokenizer, 32)[0].input_ids.count(BOS) == 1
