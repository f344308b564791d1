import pytest

from tuneprune.data import Example, encode, encode_all, encode_choices, encode_prompt, padding_id, windows
from tuneprune.errors import ConfigError

BOS, EOS = 1, 2


def text_of(tokenizer, ids):
    return tokenizer.decode(ids)


def task(body="one two three four", completion=" yes", **more):
    return Example(prompt=f'"{body}" Q? A:', completion=completion, body=body, **more)


def test_prompt_and_completion_between_bos_and_eos(tokenizer):
    encoded = encode(Example("Q:", " A"), tokenizer, 32)
    assert encoded.input_ids[0] == BOS
    assert encoded.input_ids[-1] == EOS
    assert text_of(tokenizer, encoded.input_ids) == "<s>Q: A</s>"
    assert encoded.labels == [-100] * 3 + encoded.input_ids[3:]
    assert not encoded.is_shortened


def test_labels_cover_everything_for_text_and_on_request(tokenizer):
    text = encode(Example("", "abc"), tokenizer, 32)
    assert text.labels == text.input_ids
    both = encode(Example("Q:", " A"), tokenizer, 32, completion_only=False)
    assert both.labels == both.input_ids


def test_a_tokenizer_without_bos_gets_none(bare_tokenizer):
    assert text_of(bare_tokenizer, encode(Example("Q:", " A"), bare_tokenizer, 32).input_ids) == "Q: A</s>"


def test_special_tokens_of_a_chat_template_are_not_doubled(chat_tokenizer):
    encoded = encode(Example("<s>[user] hi\n[assistant] ", "yo</s>"), chat_tokenizer, 64)
    assert encoded.input_ids.count(BOS) == 1
    assert encoded.input_ids.count(EOS) == 1


def test_a_tokenizer_that_adds_spaces_gets_none_from_us(spaced_tokenizer):
    apart = encode(Example("Q A:", " yes"), spaced_tokenizer, 32).input_ids
    whole = spaced_tokenizer("Q A: yes", add_special_tokens=False)["input_ids"]
    assert apart == [BOS, *whole, EOS]


def test_the_body_is_shortened_first_at_a_word(tokenizer):
    encoded = encode(task(), tokenizer, 24)
    assert text_of(tokenizer, encoded.input_ids) == '<s>"one two" Q? A: yes</s>'
    assert encoded.is_shortened
    assert encoded.labels.count(-100) == len(encoded.labels) - 5


def test_a_body_can_keep_its_end(tokenizer):
    ids = encode(task(body_keeps="end"), tokenizer, 24).input_ids
    assert text_of(tokenizer, ids) == '<s>"three four" Q? A: yes</s>'


def test_the_prompt_loses_its_start_after_the_body(tokenizer):
    assert text_of(tokenizer, encode(task(), tokenizer, 10).input_ids) == "<s>? A: yes</s>"


def test_a_long_completion_leaves_half_to_the_prompt(tokenizer):
    encoded = encode(task(body="b " * 40, completion=" " + "c" * 90), tokenizer, 41)
    assert len(encoded.input_ids) == 41
    assert encoded.input_ids[-1] != EOS
    assert text_of(tokenizer, encoded.input_ids).count("c") == 20
    short_prompt = encode(Example("Q:", " " + "c" * 90), tokenizer, 41)
    assert text_of(tokenizer, short_prompt.input_ids) == "<s>Q: " + "c" * 37


@pytest.mark.parametrize("length", range(8, 60))
def test_nothing_is_ever_longer_than_asked(tokenizer, bare_tokenizer, length):
    for tok in (tokenizer, bare_tokenizer):
        for completion in (" yes", " " + "c" * 50):
            encoded = encode(task(completion=completion), tok, length)
            assert len(encoded.input_ids) == len(encoded.labels) <= length
            assert any(label >= 0 for label in encoded.labels)


def test_choices_share_one_prompt(tokenizer):
    example = task(choices=(" yes", " no", " perhaps"))
    prompt, choices = encode_choices(example, tokenizer, 26)
    assert [text_of(tokenizer, ids) for ids in choices] == [" yes</s>", " no</s>", " perhaps</s>"]
    assert len(prompt) + max(map(len, choices)) <= 26
    whole, _ = encode_choices(example, tokenizer, 100)
    assert whole + choices[0] == encode(example, tokenizer, 100).input_ids


def test_a_prompt_leaves_room_for_what_follows(tokenizer):
    prompt, is_shortened = encode_prompt(task(), tokenizer, 30, reserve=10)
    assert len(prompt) <= 20
    assert is_shortened
    with pytest.raises(ConfigError, match="30 tokens of answer leave no room"):
        encode_prompt(task(), tokenizer, 30, reserve=30)


def test_long_text_becomes_windows_that_hold_every_token_once(tokenizer):
    text = "abcdefghij" * 3
    parts = windows(Example("", text), tokenizer, 11)
    assert [text_of(tokenizer, part.input_ids) for part in parts] == ["<s>abcdefghij"] * 3
    parts = windows(Example("", text + "k"), tokenizer, 11)
    assert [text_of(tokenizer, part.input_ids) for part in parts] == [*["<s>abcdefghij"] * 3, "<s>k</s>"]


def test_counts_of_what_was_shortened_and_split(tokenizer):
    result = encode_all([Example("", "x" * 40), task(), Example("", "short")], tokenizer, 20)
    assert (result.num_shortened, result.num_split) == (1, 1)
    assert result.owners == [0, 0, 0, 1, 2]
    assert result.num_tokens == sum(len(document.input_ids) for document in result.documents)


def test_too_short_a_length_is_refused(tokenizer):
    with pytest.raises(ConfigError, match="max_length is 4"):
        encode(task(), tokenizer, 4)


def test_padding_needs_no_pad_token(tokenizer, spaced_tokenizer):
    assert padding_id(tokenizer) == 0
    assert padding_id(spaced_tokenizer) == EOS
