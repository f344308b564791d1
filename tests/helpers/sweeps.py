"""Sweeps over many cases, of which some belong to the quick suite."""

from collections.abc import Callable, Iterable

import pytest


def quick_where(is_quick: Callable[..., bool], cases: Iterable) -> list:
    """All cases, those slow for which `is_quick` says no; it is called with the parts of a case."""
    found = []
    for case in cases:
        parts = case if isinstance(case, tuple) else (case,)
        found.append(pytest.param(*parts, marks=[] if is_quick(*parts) else [pytest.mark.slow]))
    return found
