"""The table of docs/bad-input.md: the answer to every bad input, and whether a person has read it and found it correct.

An answer that changes has to be read again. `python -m pytest tests/e2e/bad_input --write-messages` writes new answers
into the table without a verdict; once you have read one, write `yes` into its last column, and the test passes.
"""

import re
from pathlib import Path

PAGE = Path(__file__).parents[3] / "docs" / "bad-input.md"
BEGIN, END = "<!-- answers -->", "<!-- /answers -->"
HEADER = "| bad input | answer | is it true, and does it help |\n|---|---|---|\n"
CELL = re.compile(r"(?<!\\)\|")


def read():
    """Answer and verdict of every bad input, by its name."""
    table = PAGE.read_text(encoding="utf8").partition(BEGIN)[2].partition(END)[0]
    rows = [[cell.strip().replace("\\|", "|") for cell in CELL.split(line)[1:-1]] for line in table.splitlines()]
    return {name: (answer, verdict) for name, answer, verdict in filter(None, rows[3:])}


def write(answers):
    """Write the table with these answers, by name; a verdict stays if its answer has not changed."""
    known = read()
    rows = []
    for name, answer in sorted(answers.items()):
        read_answer, verdict = known.get(name, ("", ""))
        cells = (name, answer, verdict if read_answer == answer else "not read yet")
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    before, _, rest = PAGE.read_text(encoding="utf8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{HEADER}{''.join(rows)}{END}{rest.partition(END)[2]}", encoding="utf8")


def without_places(sentence, folder, model):
    """The answer without the folders of the test."""
    for place, name in ((str(model), "MODEL"), (str(folder / "in" / "out"), "OUT"), (str(folder / "in"), "FOLDER")):
        sentence = sentence.replace(place, name)
    return " ".join(sentence.replace(str(folder), "FOLDER").removeprefix("tuneprune: ").split())
