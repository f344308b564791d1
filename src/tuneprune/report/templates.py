"""The HTML and SVG templates of this package; everything that comes from data or model names is escaped."""

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
    environment.filters.update(percent=numbers.percent_text, counted=numbers.counted_text)
    return environment


def render(name: str, /, **values: object) -> Markup:
    """The template `name` filled with `values`; strings are escaped, `Markup` is not."""
    return Markup(_environment().get_template(name).render(**values))


def source(name: str) -> Markup:
    """The text of a file in the template folder that needs no escaping, such as the style sheet."""
    loader = _environment().loader
    assert loader is not None
    return Markup(loader.get_source(_environment(), name)[0])
