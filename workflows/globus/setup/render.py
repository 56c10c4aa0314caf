"""Rendering of the templates in this folder.

Their delimiters are ``[= value =]``, ``[% statement %]`` and ``[# comment #]``: what is rendered is in part a Jinja
template itself, which the endpoint's agent renders with ``{{ }}``.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render(template: str, **values: Any) -> str:
    """Return a template of this folder rendered with values.

    Args:
        template: file name.
        values: the variables of the template; a missing one is an error.
    """
    environment = Environment(
        block_start_string="[%",
        block_end_string="%]",
        variable_start_string="[=",
        variable_end_string="=]",
        comment_start_string="[#",
        comment_end_string="#]",
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
        loader=FileSystemLoader(Path(__file__).parent),
    )
    environment.filters |= {"json": json.dumps, "shell": lambda value: shlex.quote(str(value))}
    return environment.get_template(template).render(values)
