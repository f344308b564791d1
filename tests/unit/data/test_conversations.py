"""Conversations in common formats with templates of real models: all is written, or a message says what is not."""

import copy
import json
import logging

import pytest
from helpers import toy_templates as templates
from helpers.conversations import ANSWER, SYSTEM, TOOL, USER, turns

from tuneprune.data import DataConfig, SourceConfig, load, read_source
from tuneprune.data.bad_records import LeftOut
from tuneprune.errors import ConfigError, DataError

ASSISTANT = "<s>assistant\n"


def test_a_system_text_is_put_into_the_first_user_turn_if_the_template_refuses_the_role(read, caplog):
    example = read({"messages": turns(SYSTEM, USER, ANSWER, USER, ANSWER)}, templates.NO_SYSTEM)
    assert example.prompt == (
        "<s>user\nYou are a nurse.\n\nWhat is a fever?</s>\n<s>assistant\nAbove 38.</s>\n"
        f"<s>user\nWhat is a fever?</s>\n{ASSISTANT}"
    )
    assert example.completion == "Above 38.</s>"
    assert example.notes == ("system_folded",)
    assert "1 with the system text in the user's turn, because the chat template has no role for it" in caplog.text


def test_a_system_text_is_put_into_the_first_user_turn_if_the_template_silently_omits_it(read):
    folded = read({"messages": turns(SYSTEM, USER, ANSWER)}, templates.DROPS_OTHER_ROLES)
    assert folded.prompt == f"<s>user\nYou are a nurse.\n\nWhat is a fever?</s>\n{ASSISTANT}"
    # Its words do not show whether it is there, because the user may say them too.
    said = read({"messages": turns(("system", "fever"), USER, ANSWER)}, templates.DROPS_OTHER_ROLES)
    assert said.prompt == f"<s>user\nfever\n\nWhat is a fever?</s>\n{ASSISTANT}"


def test_a_template_with_a_system_role_is_left_alone(read):
    example = read({"messages": turns(SYSTEM, USER, ANSWER)})
    assert example.prompt == f"<s>system\nYou are a nurse.</s>\n<s>user\nWhat is a fever?</s>\n{ASSISTANT}"
    assert example.notes == ()


@pytest.mark.parametrize("template", [templates.NO_SYSTEM, templates.DROPS_OTHER_ROLES])
def test_folding_can_be_refused(read, template):
    with pytest.raises(DataError, match=r"chat template .*ystem.* set data\.system_role: fold to put the system text"):
        read({"messages": turns(SYSTEM, USER, ANSWER)}, template, system_role="refuse")
    assert read({"messages": turns(USER, ANSWER)}, template, system_role="refuse").notes == ()


def test_the_template_may_refuse_a_record_for_another_reason_than_the_system_role(read):
    with pytest.raises(DataError, match="refuses these messages: System role not supported"):
        read({"messages": turns(SYSTEM, ANSWER, USER, ANSWER)}, templates.NO_SYSTEM)
    with pytest.raises(DataError, match="refuses these messages: Conversation roles must alternate"):
        read({"messages": turns(USER, USER, ANSWER)}, templates.NO_SYSTEM)
    with pytest.raises(DataError, match="refuses these messages: Conversation roles must alternate"):
        read({"messages": turns(ANSWER, USER, ANSWER)}, templates.NO_SYSTEM)


def test_an_empty_system_text_leaves_no_trace(read):
    example = read({"messages": turns(("system", ""), USER, ANSWER)}, templates.NO_SYSTEM)
    assert example.prompt == f"<s>user\nWhat is a fever?</s>\n{ASSISTANT}"


def test_folded_turns_are_counted_in_the_summary_and_the_option_is_recorded(tmp_path, tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = templates.NO_SYSTEM
    path = tmp_path / "a.jsonl"
    records = ({"messages": turns(SYSTEM, ("user", f"Question {number}"), ANSWER)} for number in range(40))
    path.write_text("\n".join(map(json.dumps, records)))
    data = load(DataConfig(train=[SourceConfig(path=path)]), chat, 128)
    summary = data.summary()
    assert summary["train"]["system_folded"] + summary["calibration"]["system_folded"] == 40
    assert summary["system_role"] == "fold"
    assert "40 with the system text in the user's turn" in data.words()
    with pytest.raises(DataError, match=r"a\.jsonl:1: .*System role not supported"):
        load(DataConfig(train=[SourceConfig(path=path)], system_role="refuse"), chat, 128)


def test_a_developer_turn_becomes_a_system_turn_if_the_template_has_no_developer_role(read):
    conversation = {"messages": turns(("developer", "You are a nurse."), USER, ANSWER)}
    known = read(conversation)
    assert known.prompt.startswith("<s>developer\nYou are a nurse.")
    assert known.notes == ()
    example = read(conversation, templates.SYSTEM_ONLY)
    assert example.prompt.startswith("<s>system\nYou are a nurse.</s>")
    assert example.notes == ("developer_as_system",)
    assert read(conversation, templates.NO_SYSTEM).notes == ("system_folded",)


def test_a_turn_that_the_template_leaves_out_is_refused_and_can_be_dropped(read):
    record = {"messages": turns(USER, ("tool", "38.5"), ANSWER)}
    with pytest.raises(DataError, match=r"does not write the turn of the role `tool`\. Use a tokenizer whose template"):
        read(record, templates.DROPS_OTHER_ROLES)
    assert "<s>tool\n38.5</s>" in read(record).prompt


def test_a_record_can_hold_arguments_of_the_template(read):
    record = {"messages": turns(USER, ANSWER)}
    assert read(record, templates.THINKING).completion == "<think>\n\n</think>\n\nAbove 38.</s>"
    for further in ({"enable_thinking": False}, {"chat_template_kwargs": {"enable_thinking": False}}):
        example = read(record | further, templates.THINKING)
        assert example.prompt.endswith("<think>\n\n</think>\n\n")
        assert example.completion == "Above 38.</s>"
    documents = [{"title": "Fever", "text": "A high temperature."}]
    example = read(record | {"documents": documents}, templates.DOCUMENTS)
    assert example.prompt.startswith("<s>Fever: A high temperature.</s>")
    with pytest.raises(DataError, match="does not write `documents`"):
        read(record | {"documents": documents})


@pytest.mark.parametrize("name", ["tokenize", "chat_template", "add_generation_prompt", "messages"])
def test_a_record_cannot_change_how_the_template_is_called(read, name):
    with pytest.raises(DataError, match="`chat_template_kwargs` has to be an object with arguments"):
        read({"messages": turns(USER, ANSWER), "chat_template_kwargs": {name: "x"}})


def test_text_parts_are_joined_and_other_parts_refused(read):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a fever?", "image_url": None}]
    example = read({"messages": [{"role": "user", "content": parts}, *turns(ANSWER)]})
    assert example.prompt == f"<s>user\nWhat is\na fever?</s>\n{ASSISTANT}"
    for part in ({"type": "image_url", "image_url": {"url": "x"}}, {"type": "audio", "text": "x"}, {"text": None}, 3):
        with pytest.raises(DataError, match=r"has a part that is not text .*, and only texts are learned"):
            read({"messages": [{"role": "user", "content": [*parts, part]}, *turns(ANSWER)]})


@pytest.mark.parametrize("completion", [turns(ANSWER), "Above 38."], ids=["messages", "a text"])
def test_prompt_and_completion_may_be_messages(read, completion):
    example = read({"prompt": turns(SYSTEM, USER), "completion": completion})
    assert example == read({"messages": turns(SYSTEM, USER, ANSWER)})


def test_prompts_and_completions_of_other_shapes_are_refused(read):
    with pytest.raises(DataError, match="field `completion` has to be a text"):
        read({"prompt": "What is a fever?", "completion": turns(ANSWER)})
    with pytest.raises(DataError, match="needs an answer"):
        read({"prompt": turns(USER), "completion": turns(("user", "Above 38."))})
    with pytest.raises(DataError, match="`prompt` ends with a turn of the assistant"):
        read({"prompt": turns(USER, ANSWER), "completion": " Or so."})
    with pytest.raises(DataError, match="`prompt` has to be a list of objects"):
        read({"prompt": ["What?"], "completion": "Above 38."})


def test_the_template_decides_on_the_thinking_of_earlier_turns_and_that_of_the_answer_is_kept(read):
    thought = ("assistant", "<think>\nhot?\n</think>\n\nAbove 38.")
    example = read({"messages": turns(USER, thought, USER, thought)}, templates.THINKING)
    assert example.prompt.count("hot?") == 0
    assert example.completion == "<think>\nhot?\n</think>\n\nAbove 38.</s>"


def test_a_template_that_cuts_the_thinking_of_the_answer_is_not_used_on_it(read):
    with pytest.raises(DataError, match=r"does not write the whole last answer .some leave out its thinking."):
        read({"messages": turns(USER, ("assistant", "<think>hot?</think>Above 38."))}, templates.THINKING_CUT)
    answer = {"role": "assistant", "content": "Above 38.", "reasoning_content": "hot?"}
    with pytest.raises(DataError, match="does not write the field `reasoning_content` of the last answer"):
        read({"messages": [*turns(USER), answer]})
    # Without thinking, the template opens the turn differently than it writes it.
    plain = read({"messages": turns(USER, ANSWER)}, templates.THINKING_CUT)
    assert (plain.prompt, plain.completion) == ("<s>user\nWhat is a fever?</s>\n", "<s>assistant\nAbove 38.</s>")


def test_turns_that_are_written_differently_once_answered_are_read_as_in_the_prompt(read):
    example = read({"messages": turns(SYSTEM, USER, ANSWER)}, templates.SYSTEM_IN_LAST_TURN)
    assert example.prompt == "<s>[INST] You are a nurse.\n\nWhat is a fever?[/INST]"
    assert example.completion == " Above 38.</s>"
    rewrites = templates.CHATML.replace("{{ m.content }}", "{{ m.content }}{% if loop.last %}!{% endif %}")
    other = read({"messages": turns(USER, ANSWER)}, rewrites)
    assert other.prompt == f"<s>user\nWhat is a fever?!</s>\n{ASSISTANT}"
    assert other.completion == "Above 38.!</s>"


def test_a_template_that_asks_for_the_date_always_gets_the_same_one(read, caplog):
    example = read({"messages": turns(USER, ANSWER)}, templates.DATED)
    assert example.prompt == f"<s>Today is 01 Jan 2025, 1/01.</s>\n<s>user\nWhat is a fever?</s>\n{ASSISTANT}"
    assert example.notes == ("fixed_date",)
    assert "1 with 1 January 2025 as the current date in the chat template" in caplog.text


def test_a_template_that_does_not_write_the_answer_is_not_used(read):
    for template in ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "hello"):
        with pytest.raises(DataError, match="does not write the whole last answer"):
            read({"messages": turns(USER, ANSWER)}, template)


def test_generation_marks_change_nothing(read):
    example = read({"messages": turns(USER, ANSWER, USER, ANSWER)}, templates.GENERATION)
    assert example == read({"messages": turns(USER, ANSWER, USER, ANSWER)})


def test_the_right_one_of_several_templates_is_used(read):
    several = {"default": templates.CHATML, "tool_use": templates.TOOLS}
    assert read({"messages": turns(USER, ANSWER)}, several).prompt.startswith("<s>user")
    assert read({"messages": turns(USER, ANSWER), "tools": [TOOL]}, several).prompt.startswith("<s>tools")
    with pytest.raises(ConfigError, match=r"several chat templates \(rag\), but none called `default`"):
        read({"messages": turns(USER, ANSWER)}, {"rag": templates.CHATML})


def test_a_template_in_a_file_of_its_own_is_used(read, tmp_path, tokenizer):
    from transformers import AutoTokenizer

    chat = copy.deepcopy(tokenizer)
    chat.chat_template = templates.CHATML
    chat.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "chat_template.jinja").exists()
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    record = {"messages": turns(USER, ANSWER)}
    assert read(record, loaded.chat_template) == read(record)


def test_control_tokens_are_refused_wherever_a_template_may_write_them(read):
    bad = {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "a</s>"}}}]}
    for record in (
        {"messages": [*turns(USER), bad]},
        {"messages": turns(("user", "a</s>"), ANSWER)},
        {"messages": turns(("user</s>", "a"), ANSWER)},
        {"messages": turns(USER, ANSWER), "tools": [{"name": "</s>"}]},
    ):
        with pytest.raises(DataError, match="a message holds the control token '</s>'"):
            read(record, templates.TOOLS)


def test_answers_of_weight_0_are_not_learned(read):
    weighted = turns(USER, ANSWER, USER, ANSWER)
    weighted[1] |= {"weight": 1}
    weighted[3] |= {"weight": 0, "content": "No idea."}
    example = read({"messages": weighted})
    assert (example.completion, example.notes) == ("Above 38.</s>", ("later_turns",))
    assert "No idea." not in example.prompt
    weighted[1] |= {"weight": 0}
    with pytest.raises(DataError, match=r"needs an answer .* weight other than 0"):
        read({"messages": weighted})


def test_other_weights_are_refused(read):
    for weight in (0.5, "1", [1]):
        with pytest.raises(DataError, match="`weight` of a message has to be 0 or 1, got"):
            read({"messages": [*turns(USER), *turns(ANSWER, weight=weight)]})


def test_turns_after_the_last_answer_are_left_out_and_counted(read, caplog):
    with caplog.at_level(logging.WARNING):
        example = read({"messages": turns(USER, ANSWER, ("user", "Thanks"))})
    assert example.notes == ("later_turns",)
    assert "1 without the turns after the last answer" in caplog.text


def test_the_template_decides_on_spaces_around_texts(read):
    record = {"messages": turns(("user", "  hi "), ("assistant", " ho  "))}
    assert read(record).completion == " ho  </s>"
    assert read(record, templates.NO_SYSTEM).completion == "ho</s>"


def test_unusable_conversations_are_left_out_by_reason(tmp_path, tokenizer):
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = templates.NO_SYSTEM
    good = {"messages": turns(USER, ANSWER)}
    image = {"messages": [{"role": "user", "content": [{"type": "image"}]}, *turns(ANSWER)]}
    records = [good, image, good, good | {"tools": [TOOL]}, good, {"messages": turns(USER, USER, ANSWER)}, good]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(map(json.dumps, records)))
    left_out = LeftOut(drops=True)
    assert len(read_source(SourceConfig(path=path), chat, "train", left_out)) == 4
    assert left_out.counts == {
        "with a part that is not text": 1,
        "with something that the chat template leaves out": 1,
        "refused by the chat template": 1,
    }
