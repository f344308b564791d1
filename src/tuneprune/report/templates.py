"""The HTML templates of this package, with escaping of everything that comes from data or model names."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from tuneprune.report import numbers


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tuneprune.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=numbers.percent_text,
        counted=numbers.counted_text,
        count=numbers.count_text,
        bytes=numbers.bytes_text,
        seconds=numbers.seconds_text,
        scientific=numbers.scientific_text,
    )
    return environment


def render(name: str, /, **values: object) -> Markup:
    """The template `name` filled with `values`; strings are escaped, `Markup` is not."""
    return Markup(_environment().get_template(name).render(**values))


def source(name: str) -> Markup:
    """The text of a file of the template folder that is ours and holds no values, such as the style sheet."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])
