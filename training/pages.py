"""What do all pages have in common? How templates are read, rows of charts, and how dates and signs are written."""

import re
from datetime import UTC, datetime
from typing import NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, Template


class Bar(NamedTuple):
    """A row of a chart: where its dot and its interval lie, in percent of the width."""

    label: str
    said: str
    note: str
    at: float
    low: float
    high: float
    tone: str


def template(name: str, *, of: str = "training") -> Template:
    """Return a template of a package. The style of the house is in `training`, for the others too."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in dict.fromkeys((of, "training"))]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    return environment.get_template(name)


def unbroken(text: str) -> str:
    """Keep a sign on the line of its number: browsers break after it otherwise."""
    return re.sub(r"([+\N{MINUS SIGN}])(?=\S)", "\\1\N{WORD JOINER}", text)


def date(at: float) -> str:
    """Return the day of a moment.

    >>> date(1_767_225_600.0)
    '1 January 2026'
    """
    return f"{datetime.fromtimestamp(at, UTC):%-d %B %Y}"
