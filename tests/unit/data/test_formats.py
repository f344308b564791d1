"""Records in common formats become the right conversation or prompt, and nothing is lost."""

import json

import pytest

from tuneprune.data import DataConfig, SourceConfig, load, load_task, overlaps, read_source
from tuneprune.data.suites import TaskSpec
from tuneprune.errors import ConfigError, DataError

FEVER, ANSWER, NURSE = "What is a fever?", "A temperature above 38 degrees.", "You are a nurse."
CHAT = [{"role": "user", "content": FEVER}, {"role": "assistant", "content": ANSWER}]
SYSTEM = {"role": "system", "content": NURSE}
ALPACA = {"instruction": "Answer the question.", "input": FEVER, "output": ANSWER}


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def examples(tmp_path, tokenizer, *records, **options):
    return read_source(SourceConfig(path=write(tmp_path / "a.jsonl", *records), **options), tokenizer, "train")


def one(tmp_path, tokenizer, record, **options):
    (example,) = examples(tmp_path, tokenizer, record, **options)
    return example.prompt, example.completion


@pytest.fixture
def templated(tmp_path, chat_tokenizer):
    """Prompt and completion of messages as the chat template writes them."""
    return lambda *turns: one(tmp_path, chat_tokenizer, {"messages": turns})


HUMAN, GPT = {"from": "human", "value": FEVER}, {"from": "gpt", "value": ANSWER}
SAME = {  # records that all hold one question and its answer
    "ShareGPT": {"conversations": [HUMAN, GPT], "id": "a1"},
    "ShareGPT of other speakers": {"conversations": [HUMAN | {"from": "User"}, GPT | {"from": "chatgpt"}]},
    "ShareGPT under messages": {"messages": [HUMAN, GPT]},
    "conversations with roles": {"conversations": CHAT},
    "one conversation": {"conversation": CHAT},
    "a dialogue of texts": {"dialogue": [FEVER, ANSWER]},
    "pairs of input and output": {"conversation": [{"input": FEVER, "output": ANSWER}]},
    "one list a key": {"conversations": {"from": ["human", "gpt"], "value": [FEVER, ANSWER]}},
    "JSON in a table": {"conversations": json.dumps([HUMAN, GPT])},
    "nulls in a table": {"conversations": [HUMAN | {"weight": None}, GPT | {"weight": None}], "instruction": None},
    "a turn after the answer": {"conversations": [HUMAN, GPT, {"from": "human", "value": "Thanks."}]},
    "Gemma's role": {"messages": [CHAT[0], {"role": "model", "content": ANSWER}]},
    "Alpaca without input": {"instruction": FEVER, "input": "", "output": ANSWER},
    "Alpaca without instruction": {"instruction": " ", "input": FEVER, "output": ANSWER},
    "Alpaca with a null": {"instruction": FEVER, "input": None, "output": ANSWER},
    "question and answer": {"question": FEVER, "answer": ANSWER},
    "capitals and spaces": {"Question ": FEVER, " ANSWER": ANSWER},
    "query and response": {"query": FEVER, "response": ANSWER, "type": "x"},
    "prompt and response": {"prompt": FEVER, "response": ANSWER},
    "input and output": {"input": FEVER, "output": ANSWER},
    "inputs and targets": {"inputs": FEVER, "targets": ANSWER},
    "instruction and response": {"instruction": FEVER, "response": ANSWER},
    "preference of texts": {"prompt": FEVER, "chosen": ANSWER, "rejected": "No."},
    "preference of messages": {"chosen": CHAT, "rejected": CHAT[:1]},
    "preference with the prompt twice": {"prompt": FEVER, "chosen": CHAT, "rejected": CHAT},
    "preference of a conversation": {"conversations": [HUMAN], "chosen": GPT, "rejected": GPT},
    "prompt and completion as messages": {"prompt": CHAT[:1], "completion": CHAT[1:]},
}


@pytest.mark.parametrize("record", SAME.values(), ids=SAME)
def test_every_form_of_a_question_and_its_answer(record, tmp_path, chat_tokenizer, templated):
    assert one(tmp_path, chat_tokenizer, record) == templated(*CHAT)


WITH_SYSTEM = {
    "ShareGPT": {"conversations": [{"from": "system", "value": NURSE}, HUMAN, GPT]},
    "ShareGPT with a column": {"conversations": [HUMAN, GPT], "system": NURSE},
    "messages with a column": {"messages": CHAT, "system": NURSE},
    "both alike": {"messages": [SYSTEM, *CHAT], "system": NURSE},
    "OpenOrca": {"id": "x", "system_prompt": NURSE, "question": FEVER, "response": ANSWER},
    "Alpaca": {"instruction": FEVER, "output": ANSWER, "system": NURSE},
}


@pytest.mark.parametrize("record", WITH_SYSTEM.values(), ids=WITH_SYSTEM)
def test_a_system_text_comes_first(record, tmp_path, chat_tokenizer, templated):
    assert one(tmp_path, chat_tokenizer, record) == templated(SYSTEM, *CHAT)


@pytest.mark.parametrize("passage", ["input", "context"])
def test_a_passage_follows_what_is_asked(passage, tmp_path, chat_tokenizer, templated):
    record = {"instruction": "Name it.", passage: FEVER, "output": ANSWER}
    assert one(tmp_path, chat_tokenizer, record) == templated(
        {"role": "user", "content": f"Name it.\n\n{FEVER}"}, CHAT[1]
    )


def test_history_comes_first(tmp_path, chat_tokenizer, templated):
    record = {"instruction": FEVER, "input": "", "output": ANSWER, "history": [["Hello?", "Hi."]]}
    before = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}]
    assert one(tmp_path, chat_tokenizer, record) == templated(*before, *CHAT)


def test_without_a_template_alpaca_keeps_its_headings(tmp_path, tokenizer):
    prompt = f"### Instruction:\nAnswer the question.\n\n### Input:\n{FEVER}\n\n### Response:\n"
    assert one(tmp_path, tokenizer, ALPACA) == (prompt, ANSWER)
    prompt = f"### Instruction:\n{FEVER}\n\n### Response:\n"
    assert one(tmp_path, tokenizer, ALPACA | {"instruction": FEVER, "input": ""}) == (prompt, ANSWER)
    more = {"system": NURSE, "history": [["Hello?", "Hi."]], "instruction": FEVER, "output": ANSWER}
    hello = "### Instruction:\nHello?\n\n### Response:\nHi."
    assert one(tmp_path, tokenizer, more) == (f"{NURSE}\n\n{hello}\n\n{prompt}", ANSWER)


def test_tools_reach_the_template_in_its_format(tmp_path, chat_tokenizer):
    from tuneprune.data.formats import recognise

    tool = {"name": "weather", "description": "Tells it.", "parameters": {"type": "object"}}
    call = {"name": "weather", "arguments": {"city": "Bern"}}
    turns = [
        HUMAN,
        {"from": "function_call", "value": json.dumps(call)},
        {"from": "observation", "value": "Sun."},
        GPT,
    ]
    found = recognise({"conversations": turns, "tools": json.dumps([tool])}, True)
    assert found.record["tools"] == [{"type": "function", "function": tool}]
    assert found.record["messages"] == [
        CHAT[0],
        {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]},
        {"role": "tool", "content": "Sun."},
        CHAT[1],
    ]
    assert found.read == ("conversations", "tools")
    own = {"messages": CHAT, "tools": [{"type": "function", "function": tool}], "chat_template_kwargs": {"a": 1}}
    assert recognise(own, True).record == own
    assert "tools" not in recognise({"messages": CHAT, "tools": "[]"}, True).record


REFUSED = {
    "two conversations": ({"conversations": CHAT, "dialog": CHAT}, r"\(conversations, dialog\)\. Say which"),
    "conversation and question": ({"conversations": CHAT, "question": "a", "answer": "b"}, "could be meant"),
    "two questions": ({"instruction": "a", "question": "b", "output": "c"}, r"\(instruction, question\)"),
    "two answers": ({"question": "b", "output": "c", "answer": "d"}, r"\(output, answer\)"),
    "two passages": ({"question": "b", "input": "c", "context": "d", "answer": "d"}, r"\(input, context\)"),
    "two systems": (
        {"messages": [SYSTEM, *CHAT], "system": "Another."},
        "both the column `system` and the messages",
    ),
    "names that differ in capitals": ({"Text": "a", "TEXT": "b"}, "differ only in capitalisation"),
    "an unknown speaker": ({"conversations": [HUMAN | {"from": "moon"}, GPT]}, "by 'moon'. Possible: user, human"),
    "turns of another shape": ({"conversations": [{"who": "a", "says": "b"}]}, "has to be a list of objects with"),
    "a transcript": ({"conversation": "Human: hi"}, "has to be a list, or a list as JSON text, got 'Human: hi'"),
    "a call that is not JSON": (
        {"conversations": [HUMAN, {"from": "function_call", "value": "weather()"}]},
        "`function_call` has to be a list, or a list as JSON text",
    ),
    "an answer that is a number": ({"question": "2+2", "answer": 4}, "`answer` has to be a text, got 4"),
    "history of another shape": (ALPACA | {"history": ["a"]}, "`history` has to be a list of pairs"),
    "tools of another shape": ({"messages": CHAT, "tools": "weather"}, "`tools` has to be a list"),
    "choices": ({"question": "a", "choices": ["x", "y"], "answer": "x"}, "Set `kind: multiple_choice`"),
    "an unwanted answer": ({"prompt": "a", "completion": "b", "label": False}, "marks an unwanted answer"),
    "columns of a table": (
        {"question": ["a", "b"], "answer": ["c", "d"]},
        r"`question` has to be a text, got \['a', 'b'\]",
    ),
    "preferences without a prompt": ({"chosen": "Human: hi", "rejected": "b"}, "Add a column `prompt`"),
    "no form at all": ({"body": "a"}, r"no usable fields \(found: body\)\. Possible: text \| prompt"),
}


@pytest.mark.parametrize(("record", "message"), REFUSED.values(), ids=REFUSED)
def test_ambiguous_records_are_refused(record, message, tmp_path, chat_tokenizer):
    with pytest.raises((DataError, ConfigError), match=rf"a\.jsonl:1: .*{message}") as refused:
        one(tmp_path, chat_tokenizer, record)
    assert str(refused.value).isprintable()


def test_a_record_without_an_answer_is_blank(tmp_path, chat_tokenizer, caplog):
    blank = [
        ALPACA | {"output": None},
        ALPACA | {"output": ""},
        {"conversations": None},
        {"question": " ", "answer": "a"},
    ]
    assert len(examples(tmp_path, chat_tokenizer, *[ALPACA] * 4, *blank)) == 4
    assert "left out: 4 blank: records 5, 6, 7, 8" in caplog.text


def test_conversions_and_unread_columns_are_reported_once(tmp_path, chat_tokenizer, tokenizer, caplog):
    records = [ALPACA | {"id": 1}] * 3 + [{"conversations": [HUMAN, GPT], "source": "x"}]
    examples(tmp_path, chat_tokenizer, *records)
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "3 records: instruction, input, output read as messages; 1 record: conversations read as messages;"
        " columns not read: id, source"
    ]
    caplog.clear()
    examples(tmp_path, tokenizer, ALPACA)
    assert "1 record: instruction, input, output read under Alpaca's headings" in caplog.text
    assert "because the tokenizer has no chat template" in caplog.text
    caplog.clear()
    examples(tmp_path, chat_tokenizer, {"text": "plain"}, {"messages": CHAT}, {"prompt": "a", "completion": "b"})
    assert not caplog.text
    examples(tmp_path, chat_tokenizer, {"messages": CHAT, "system": "", "tools": []})
    assert not caplog.text
    examples(tmp_path, chat_tokenizer, {"": 0, "text": "of a table with an index"})
    assert "columns not read: (without a name)" in caplog.text
    examples(tmp_path, chat_tokenizer, {"prompt": FEVER, "chosen": ANSWER, "rejected": "No."})
    assert "prompt, chosen read as messages; columns not read: rejected" in caplog.text


@pytest.mark.parametrize("companion", ["input", "context", "system", "history"])
def test_a_mapping_never_loses_a_column_silently(companion, tmp_path, tokenizer, chat_tokenizer, caplog, templated):
    value = [["a", "b"]] if companion == "history" else NURSE
    record = {"instruction": FEVER, companion: value, "output": ANSWER, "id": 1}
    fields = {"prompt": "instruction", "completion": "output"}
    with pytest.raises(
        ConfigError, match=rf"a\.jsonl:1: the column `{companion}` is not blank.*Map the columns to `instr"
    ):
        one(tmp_path, tokenizer, record, fields=fields)
    assert one(tmp_path, tokenizer, record, fields=fields | {"unused": companion}) == (FEVER, ANSWER)
    assert f"columns not read: {companion}, id" in caplog.text
    assert one(tmp_path, tokenizer, record | {companion: ""}, fields=fields) == (FEVER, ANSWER)
    inside = {"prompt": f"{NURSE} {FEVER}", "completion": ANSWER, "system": NURSE}
    assert one(tmp_path, tokenizer, inside) == (f"{NURSE} {FEVER}", ANSWER)


def test_columns_of_other_names_are_mapped_to_a_form(tmp_path, chat_tokenizer, templated):
    fields = {"instruction": "Aufgabe", "input": "Stoff", "output": "Antwort"}
    records = [{"Aufgabe": "Say it.", "Stoff": FEVER, "Antwort": ANSWER}, {"Aufgabe": FEVER, "Antwort": ANSWER}]
    found = examples(tmp_path, chat_tokenizer, *records, fields=fields)
    said = {"role": "user", "content": f"Say it.\n\n{FEVER}"}
    assert [(e.prompt, e.completion) for e in found] == [templated(said, CHAT[1]), templated(*CHAT)]
    with pytest.raises(DataError, match="no column `Stof`"):
        examples(tmp_path, chat_tokenizer, *records, fields=fields | {"input": "Stof"})


def test_a_mapping_decides_between_forms(tmp_path, chat_tokenizer, templated):
    everything = ALPACA | {"text": "whole", "messages": CHAT, "prompt": "p", "completion": "c", "alt": "Other."}

    def read(**fields):
        return one(tmp_path, chat_tokenizer, everything, fields=fields)

    assert read() == templated(*CHAT)
    assert read(text="alt") == ("", "Other.")
    assert read(prompt="alt", completion="output", unused="input") == ("Other.", ANSWER)
    wanted = templated({"role": "user", "content": f"Answer the question.\n\n{FEVER}"}, CHAT[1] | {"content": "Other."})
    assert read(instruction="instruction", output="alt") == wanted


def test_leaks_are_found_under_another_wording(tmp_path, chat_tokenizer, tokenizer):
    training = examples(
        tmp_path, chat_tokenizer, ALPACA, {"conversations": [HUMAN, GPT]}, {"question": "x", "answer": "y"}
    )
    items = [
        ({"question": FEVER, "answer": ANSWER}, 2),
        ({"prompt": FEVER, "completion": " 38"}, 2),
        ({"text": f"{FEVER}\n{ANSWER}"}, 1),
    ]
    for record, count in items:
        test = examples(tmp_path, chat_tokenizer, record)
        with pytest.raises(DataError, match=rf"{count} of 3 training examples are test items"):
            overlaps(training, [], test)
    headed = examples(tmp_path, tokenizer, {"question": FEVER, "answer": ANSWER})
    with pytest.raises(DataError, match="2 of 3 training examples"):
        overlaps(training, [], headed)
    note = {"text": FEVER, "summary": "About fever."}
    summaries = load_task(TaskSpec(path=write(tmp_path / "b.jsonl", note), kind="summary"), tokenizer)
    with pytest.raises(DataError, match=r"2 of 3 training examples"):
        overlaps(training, [], summaries)
    other = examples(tmp_path, chat_tokenizer, ALPACA | {"instruction": "Translate it."})
    report = overlaps(training[:1], [], other)
    assert (report.train_test.items, report.train_test.passages) == (0, 1)


def test_repeats_are_found_between_forms(tmp_path, chat_tokenizer):
    records = [{"question": FEVER, "answer": ANSWER}, {"conversations": [HUMAN, GPT]}, {"id": 7, "messages": CHAT}]
    more = [{"question": f"What is {n}?", "answer": str(n)} for n in range(9)]
    config = DataConfig(train=[SourceConfig(path=write(tmp_path / "a.jsonl", *records, *more))], duplicates="drop")
    summary = load(config, chat_tokenizer, 128).summary()
    assert summary["train"]["sources"][0]["duplicates"] == 2
