"""What people read: a report, a comparison's table, a model card. Their words stand in the templates beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def filled(template: str, **values: Any) -> str:
    """A template with its values; in HTML they are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(values)
