"""Values → one self-contained HTML page: no external resource, and nothing in it runs.

Every value that a template prints is shown as text: Jinja escapes it, and `visible` shows the characters that hide. A page that
is done has no script, and its policy forbids any. A live one has a single script of ours, allowed by a nonce, which puts in the
body that Metaflow's viewer brings.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steps.plain_text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def body(template: str, view: Mapping[str, Any]) -> str:
    """The part of a page that changes: `train.html` or `evaluate.html` filled with `view`."""
    return _environment().get_template(template).render(view)


def page(title: str, content: str, *, reload_token: str = "", reload_every_s: int = 0) -> str:
    """A whole page around `content` (of `body`).

    While a step is at work: with a token the open page is renewed by Metaflow's viewer, with seconds by the browser itself.
    """
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            content=_safe(content),
            reload_token=reload_token,
            reload_every_s=reload_every_s,
            nonce=secrets.token_urlsafe(16),
        )
    )


def _safe(content: str) -> Any:
    from markupsafe import Markup

    return Markup(content)  # made by a template of ours, which has escaped every value


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,  # not Markup: that is ours already
    )
