"""The templates beside this module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined


def open_templates(*, html: bool = True, **filters: Callable[..., Any]) -> Environment:
    """Return the templates with `filters`; those for `html` escape what they show, and what is not given is an error."""
    environment = Environment(
        loader=PackageLoader("medsynth.reporting", "."),
        autoescape=html,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=not html,
    )
    environment.filters |= filters
    return environment
