"""Tools and their calls in conversations: the template writes all of them, or a message says what it leaves out."""

import json

import pytest
from helpers import toy_templates as templates
from helpers.conversations import ANSWER, TOOL, USER, turns

from tuneprune.errors import DataError

CALL = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}},
}


@pytest.mark.parametrize("are_text", [False, True])
def test_tools_reach_the_template_as_a_list_or_as_json(read, are_text):
    tools = json.dumps([TOOL]) if are_text else [TOOL]
    example = read({"messages": turns(USER, ANSWER), "tools": tools}, templates.TOOLS)
    assert example.prompt.startswith(f"<s>tools\n{json.dumps(TOOL)}\n</s>\n<s>user")
    for none in (None, [], "[]", ""):
        assert read({"messages": turns(USER, ANSWER), "tools": none}, templates.TOOLS).prompt.startswith("<s>user")


def test_tools_that_the_template_leaves_out_are_refused(read):
    with pytest.raises(DataError, match="chat template does not write `tools`"):
        read({"messages": turns(USER, ANSWER), "tools": [TOOL]})
    with pytest.raises(DataError, match="`tools` has to be a list of objects, got 'weather'"):
        read({"messages": turns(USER, ANSWER), "tools": "weather"}, templates.TOOLS)


CONTENTS = {"null": {"content": None}, "missing": {}, "blank": {"content": ""}}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("template", ["TOOLS", "ARGUMENTS_AS_TEXT", "ARGUMENTS_PRINTED"])
@pytest.mark.parametrize("are_text", [False, True])
def test_an_answer_that_only_calls_a_tool_is_an_answer(read, content, template, are_text):
    arguments = json.dumps(CALL["function"]["arguments"]) if are_text else CALL["function"]["arguments"]
    call = CALL | {"function": {"name": "weather", "arguments": arguments}}
    answer = {"role": "assistant", "tool_calls": [call]} | CONTENTS[content]
    example = read({"messages": [*turns(USER), answer], "tools": [TOOL]}, getattr(templates, template))
    assert example.completion == (
        '<tool_call>{"name": "weather", "arguments": {"city": "Köln", "days": 2}}</tool_call></s>'
    )


@pytest.mark.parametrize(
    "calls",
    [
        [{"name": "weather", "arguments": {"city": "Köln", "days": 2}}],
        json.dumps([CALL]),
        None,
    ],
    ids=["flat", "as JSON", "a function call"],
)
def test_tool_calls_are_read_in_other_formats(read, calls):
    call = {"tool_calls": calls} if calls else {"function_call": CALL["function"]}
    answer = {"role": "assistant", "content": None} | call
    assert '"arguments": {"city": "Köln"' in read({"messages": [*turns(USER), answer]}, templates.TOOLS).completion


def test_earlier_tool_calls_and_their_results_are_part_of_the_prompt(read):
    call = {"role": "assistant", "content": None, "tool_calls": [CALL]}
    result = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": '{"sky": "blue"}'}
    example = read({"messages": [*turns(USER), call, result, *turns(ANSWER)]}, templates.TOOLS)
    assert '<tool_call>{"name": "weather"' in example.prompt
    assert '<s>tool weather\n{"sky": "blue"}</s>' in example.prompt
    assert example.completion == "Above 38.</s>"


def test_tool_calls_that_the_template_leaves_out_are_refused(read):
    other = CALL | {"function": {"name": "weather", "arguments": {"city": "Bonn"}}}
    answer = {"role": "assistant", "content": "Let me see.", "tool_calls": [CALL, other]}
    record = {"messages": [*turns(USER), answer]}
    with pytest.raises(DataError, match="does not write the call of the tool 'weather'"):
        read(record)
    with pytest.raises(DataError, match="does not write the call of the tool 'weather'"):
        read(record, templates.FIRST_CALL_ONLY)
    assert read(record, templates.TOOLS).completion.count("<tool_call>") == 2
