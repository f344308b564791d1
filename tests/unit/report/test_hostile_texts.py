"""Hostile names of models, tasks and files in cards, tables, pages and messages."""

import io
import re

import pytest
import yaml
from helpers.html_pages import parsed
from helpers.report_samples import proof, proof_data, record
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.progress import Progress as Bars

from tuneprune.cli.display import print_error, print_sections
from tuneprune.cli.progress_bars import ConsoleProgress
from tuneprune.errors import RunsFailed, printable
from tuneprune.report import markdown_table, model_card, rich_table
from tuneprune.report.recover import RecoverRecord, recover_card, recover_table
from tuneprune.report.run.page import render_page
from tuneprune.report.text_table import code_span

PIECES = (
    *(
        "[/red]",
        "[bold]",
        "[link=file:///x]",
        "\\[",
        "\\",
        "'",
        "`",
        "``` ",
        "|",
        "\n",
        "\r\n",
        "---\n",
        "# ",
        ": ",
        "a",
        "é",
    ),
    *("<script>", "</style>", "</title>", '"><img src=x onerror=y>', "&lt;", "{{ 1 + 1 }}", "{% raw %}", "../..", "/"),
    *(
        "![x](http://a/b)",
        "[x](javascript:y)",
        "\x1b[2J",
        "\x1b]8;;http://a\x07",
        "\x9b31m",
        "\x00",
        "\u202e",
        "\u2028",
    ),
)
HOSTILE = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2028\u2029]")


def run_of(text):
    score = {text: {"accuracy": 0.5}, "b": {text: 0.5}}
    return record(
        model={"id": text, "family": text, "parameters": 1, "adapter": text},
        label=text,
        space=text,
        scores={"dense": score, "dense_tuned": score, "pruned": score},
        relative_performance={"mean": 0.9, "tasks": {text: 0.9}},
        data={text: {"sources": [{"source": text}], text: text}},
        environment={"cpu": text},
        widths={f"layers.0.{text}": {"kind": text, "kept": 1, "size": 2}},
    )


def proof_of(text):
    sample = {"prompt": text, "text": text, "cached_equals_uncached": True}
    return proof(generation=sample, loader={"class": text, "needs_remote_code": False, "host_model_type": text})


def tuning_of(text):
    score = {text: {text: 0.5}}
    content = {"seed": 0, "model": {"id": text, "family": text, "parameters": 1}, "proof": proof_data()}
    return RecoverRecord.from_data({"schema": 1, **content, "scores": {"before": score, "after": score}}, "sample")


def shown(*renderables):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    for renderable in renderables:
        console.print(renderable)
    return console.file.getvalue()


def assert_card(card):
    """One mapping as front matter, only our headings, tables with equal rows, closed fences, no links."""
    front, body = card.removeprefix("---\n").split("\n---", 1)
    assert isinstance(yaml.safe_load(front), dict)
    outside = "".join(body.split("```python\n")[0] + body.split("```python\n")[1].split("\n```\n", 1)[1])
    assert outside.count("\n# ") == 1
    assert "<script" not in outside.replace("`<script", "")
    prose = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", outside)  # without code
    assert not re.search(r"(?<!\\)\]\(|<img|<script", prose)
    for block in re.findall(r"(?:^\|.*\n)+", outside, re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in block.splitlines()}) == 1, block
    assert not CONTROL.search(card)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(HOSTILE)
def test_cards_tables_and_pages_hold_texts_as_texts(text):
    run, tuned = run_of(text), tuning_of(text)
    assert_card(model_card(run, proof_of(text), base_licence=text))
    assert_card(recover_card(tuned))
    assert not CONTROL.search(markdown_table([run]))
    said = shown(rich_table([run]), recover_table(tuned))
    assert not CONTROL.search(said)
    tags = parsed(render_page(run, proof_of(text), [], text))
    assert not {"script", "img", "a"} & {tag for tag, _ in tags}
    assert not [attrs for _, attrs in tags if any(name.startswith("on") for name in attrs)]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(HOSTILE)
def test_progress_shows_texts_as_texts(text):
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    with ConsoleProgress(console) as progress:
        progress.stage(text)
        progress.note(text)
        progress.item(text, 1, 2)
        console.print(Bars.get_renderable(progress.bars))
    assert "\x1b[2J" not in console.file.getvalue()
    assert "\x1b]8" not in console.file.getvalue()
    assert printable(text)[:20].strip() in console.file.getvalue()


@pytest.mark.parametrize("piece", PIECES)
def test_sentences_and_sections_cannot_move_the_cursor(piece, capsys):
    print_error(f"model: {piece} is no model")
    print_sections({piece: {piece: piece}})
    print_error(str(RunsFailed({piece: piece}, "out")))
    assert not CONTROL.search("".join(capsys.readouterr()))


@given(HOSTILE)
def test_a_code_span_ends_where_it_ends(text):
    span = code_span(text)
    fence = re.match("`+", span).group()
    inner = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert fence not in re.findall("`+", inner)
