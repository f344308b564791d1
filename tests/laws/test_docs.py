"""The documents keep up with the code: methods, options, suites and sources are described, links lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import run_file_keys
import yaml
from helpers.tiny import VARIANTS, random_masks, tiny_model

from tuneprune.config import RunConfig
from tuneprune.data import SUITES, TASKS
from tuneprune.errors import UnsupportedModel
from tuneprune.families import describe, uniform_config
from tuneprune.families import registry as families
from tuneprune.methods import registry as methods
from tuneprune.structure.spaces import SPACES, build

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
METRICS = {"perplexity": "perplexity", "accuracy": "accuracy", "macro_f1": "macro-F1", "rougeL": "ROUGE-L"}


def read(path: Path) -> str:
    return path.read_text(encoding="utf8")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("name", sorted(methods()))
def test_method_has_a_page_with_every_option(name):
    page = read(DOCS / "methods" / f"{name}.md")
    method = methods()[name]
    assert method.paper.rpartition("/")[2] in page, "the page names the paper"
    for option in method.model_fields:
        assert f"`method.{option}`" in page, f"docs/methods/{name}.md lacks the option {option}"


@pytest.mark.parametrize("name", sorted(methods()))
def test_page_invents_no_option_and_states_true_defaults(name):
    page, fields = read(DOCS / "methods" / f"{name}.md"), methods()[name].model_fields
    for row in re.findall(r"^\|.*`method\..*\|$", page, re.MULTILINE):
        options = re.findall(r"`method\.(\w+)`", row)
        assert set(options) <= fields.keys(), row
        for option in options:
            default = fields[option].default
            assert any(form in row for form in forms(default)), f"{option}: the default is {default!r}, not in: {row}"


@pytest.mark.parametrize("name", sorted(methods()))
def test_pages_of_methods_have_one_shape(name):
    sections = re.findall(r"^## (.*)$", read(DOCS / "methods" / f"{name}.md"), re.MULTILINE)
    for expected in ("The idea", r"(Symbols and o|O)ptions", "What differs, and why", "What it costs.*"):
        assert any(re.fullmatch(expected, section) for section in sections), f"{expected}: {sections}"
    assert sections[0] == "The idea"


def forms(default: object) -> list[str]:
    """The ways a page may write a default."""
    if isinstance(default, bool):
        return [f"| {str(default).lower()} |"]
    if isinstance(default, int | float):
        return [str(default), f"{default:g}", f"{default:.0e}".replace("e+0", "e").replace("e-0", "e-")]
    return [f"`{default}`"]


def test_every_page_of_a_method_belongs_to_one():
    assert {page.stem.removesuffix("-evidence") for page in (DOCS / "methods").glob("*.md")} == methods().keys()


def test_suites_are_described_with_their_headline_metrics():
    page = read(DOCS / "data.md")
    for suite, tasks in SUITES.items():
        row = re.search(rf"^\| `{suite}` \|.*$", page, re.MULTILINE).group(0)
        for task in tasks:
            assert f"`{task.name}` ({METRICS[task.metrics[0]]}" in row, f"{suite}: {task.name}"


def test_sources_are_described_under_their_kind():
    table = re.search(r"<!-- sources -->(.*?)<!-- /sources -->", read(DOCS / "data.md"), re.DOTALL).group(1)
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", table, re.MULTILINE))
    for name, task in TASKS.items():
        assert name.startswith("clinic_") or f"`{name}`" in rows[task.kind], name


def offered(variant: str) -> tuple[str, list[str]]:
    """The family of a small model, and for every space: what loads half of it, or `-` where it is refused."""
    model = tiny_model(variant)
    architecture = describe(model)
    cells = []
    for name in SPACES:
        try:
            space = build(name, architecture, model)
        except UnsupportedModel:
            cells.append("-")
            continue
        widths = {group: int(mask.sum()) for group, mask in random_masks(space, uniform=True).items()}
        is_stock = uniform_config(model.config, architecture, space, widths) is not None
        cells.append("stock" if is_stock else "file")
    return architecture.family, cells


def test_spaces_are_described_as_families_offer_them():
    table = re.search(r"<!-- spaces -->(.*?)<!-- /spaces -->", read(DOCS / "spaces.md"), re.DOTALL).group(1)
    head, _, *rows = [[cell.strip() for cell in row.strip("| ").split("|")] for row in table.strip().splitlines()]
    assert head == ["family", *SPACES]
    assert [row[0] for row in rows] == sorted(families())
    described = {row[0]: row[1:] for row in rows}
    for variant in VARIANTS:
        family, cells = offered(variant)
        assert described[family] == cells, variant


def test_spaces_are_described_with_their_methods():
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", read(DOCS / "spaces.md"), re.MULTILINE))
    assert rows == {
        space: ", ".join(name for name, method in methods().items() if space in method.spaces) for space in SPACES
    }


def test_index_lists_every_page():
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)", read(DOCS / "index.md"))}
    assert {page for page in DOCS.rglob("*.md") if page.name != "index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)", read(page)):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents or page.stem.isupper()], ids=name_of)
def test_files_that_are_named_exist(page):
    package = ROOT / "src" / "tuneprune"
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)(?::[\w.]+)?`", read(page)):
        places = [ROOT / name, package / name, *package.rglob(name)]
        assert any(place.exists() for place in places), name


def test_yaml_in_the_documents_is_what_a_run_file_takes():
    for page in PAGES:
        for text in re.findall(r"```yaml\n(.*?)```", read(page), re.DOTALL):
            content = yaml.safe_load(text)
            if "path" in content:
                content = {"data": {"train": [content]}}
            needed = {
                "model": "base",
                "method": "random",
                "data": {"train": [{"path": "train.jsonl"}]},
                "evaluate": {"suite": "clinic"},
            }
            RunConfig.model_validate(needed | content)


def test_the_page_of_the_run_file_has_every_key_as_the_schema_has_it():
    page = read(run_file_keys.PAGE)
    assert run_file_keys.with_tables(page) == page, "run `python tests/run_file_keys.py`"
    for key in (
        "tune.lora.target_modules",
        "tune.epochs",
        "budget.protect",
        "data.train[].path",
        "evaluate.tasks[].kind",
    ):
        assert f"| `{key}` |" in page


def test_run_files_that_ship_are_valid(monkeypatch):
    monkeypatch.setenv("TUNEPRUNE_DATA", "data")  # paths may begin with it
    paths = sorted((ROOT / "runs").glob("*.yaml"))
    assert paths
    for path in paths:
        RunConfig.model_validate(yaml.safe_load(read(path)))


def test_committed_results_are_json():
    for path in (ROOT / "benchmarks").rglob("*.json"):
        assert json.loads(read(path))


def test_the_page_of_faults_shows_its_record():
    command = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0, "run `make faults`"
