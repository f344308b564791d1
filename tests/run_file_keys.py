"""The tables of docs/run-file.md from the schema; `python tests/run_file_keys.py` writes them into the page."""

import re
from pathlib import Path

from pydantic import BaseModel

from tuneprune.config import RunConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "run-file.md"
TABLE = re.compile(r"(<!-- keys: (\w+) -->\n).*?(<!-- /keys -->)", re.DOTALL)


def section_of(annotation):
    """The model behind an annotation, and what a key below it is written after."""
    if isinstance(annotation, type) and not getattr(annotation, "__args__", ()) and issubclass(annotation, BaseModel):
        return annotation, ""
    for part in getattr(annotation, "__args__", ()):
        found, above = section_of(part)
        if found is not None:
            return found, above or ("[]" if getattr(annotation, "__origin__", None) is list else "")
    return None, ""


def default_of(field):
    if field.is_required():
        return "needed"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ([], {}) or isinstance(value, BaseModel):
        return ""
    text = str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`"


def rows(schema, above):
    for name, field in schema.model_fields.items():
        inner, entry = section_of(field.annotation)
        place = f"{above}{name}"
        if inner is None or name == "method" or field.description:
            said = (field.description or "").replace("|", "\\|")
            yield f"| `{place}` | {default_of(field)} | {said} |"
        if inner is not None and name not in ("method", "recover"):
            yield from rows(inner, f"{place}{entry}.")


def table(section):
    head = "| key | default | what |\n|---|---|---|\n"
    if section == "run":
        lines = [
            row
            for name, field in RunConfig.model_fields.items()
            for row in rows(type("Part", (), {"model_fields": {name: field}}), "")
            if row.startswith(f"| `{name}`")
        ]
    else:
        schema, _ = section_of(RunConfig.model_fields[section].annotation)
        lines = list(rows(schema, f"{section}."))
    return head + "\n".join(lines) + "\n"


def with_tables(page):
    return TABLE.sub(lambda found: f"{found[1]}{table(found[2])}{found[3]}", page)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf8")), encoding="utf8")
