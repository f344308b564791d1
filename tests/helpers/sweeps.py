"""Parametrisation over many cases, of which only some belong to the quick suite."""

from collections.abc import Callable, Iterable

import pytest


def quick_where(is_quick: Callable[..., bool], cases: Iterable) -> list:
    """All cases; those are marked slow for which `is_quick`, called with the parts of a case, is false."""
    found = []
    for case in cases:
        parts = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*parts, marks=[] if is_quick(*parts) else [pytest.mark.slow]))
    return found
