"""Pages for people: one file that opens offline, from a template that extends `page.html`.

`page.html` holds what all pages share: the head, colours in light and dark, panels, facts, pictures with their tiles
and boxes. `parts.html` holds their macros. Everything that is not markup of a template is escaped, because names,
questions and predictions are untrusted text; and the page may load nothing and run nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

COLOURS = 8
"""Colours that tell tasks or stages apart (classes `c0`, `c1`, ... of the stylesheet); more share them."""


def render_page(template: Path, values: Mapping[str, Any], filters: Mapping[str, Callable[..., Any]]) -> str:
    """Fills a template.

    Args:
      template: its file.
      values: by name; a name that is missing is an error.
      filters: of the template, by name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters)
    environment.globals["colours"] = COLOURS
    return environment.get_template(template.name).render(values)
