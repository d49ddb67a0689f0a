"""The Jinja templates beside this module, and the scripts that pages carry."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def open_templates(*, html: bool = True, **filters: Callable[..., Any]) -> Environment:
    """Return the templates with `filters`. Those for `html` escape every value; an undefined value is an error."""
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


def page_script(*path: str) -> tuple[Markup, str]:
    """Return a script that ships beside this module as markup, and its hash for the page's content security policy.

    Scripts are the same in every page: what comes from cohorts goes into escaped JSON beside them.
    """
    text = files("medsynth.reporting").joinpath(*path).read_text(encoding="utf-8")
    return Markup(text), base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
