"""Jinja templates of this package, with their filters and tests."""

from __future__ import annotations

import math
import re
from base64 import b64encode
from collections.abc import Iterable
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape

from pets_core.storage.markdown import escape_markdown

if TYPE_CHECKING:
    from pets_core.evaluation.gallery import Picture

__all__ = ["load_template"]


_ABBREVIATIONS = {"f1", "mae", "rmse", "r2", "p95"}


@cache
def load_template(name: str) -> Template:
    """Return a template of `pets_core/evaluation`; HTML templates escape their values."""
    environment = Environment(
        loader=PackageLoader("pets_core", "evaluation"),
        autoescape=name.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        by_group=_by_group,
        capitalize_first=_capitalize_first,
        data_uri=_data_uri,
        decimal=_decimal,
        duration=_duration,
        keep_flags=_keep_flags,
        markdown=escape_markdown,
        number=_number,
        percent=_percent,
        points=_points,
    )
    environment.tests["missing"] = _is_missing
    return environment.get_template(name)


def _breakable(name: str) -> Markup:
    """Return the escaped name with a line break opportunity after each underscore."""
    return escape(name).replace("_", Markup("_<wbr>"))


def _keep_flags(text: str) -> Markup:
    """Return the escaped text without line breaks inside flags such as --source.url."""
    flags = r'<span class="flag">\1</span>'
    return Markup(re.sub(r"(--[\w.]*\w)", flags, str(escape(text))))  # noqa: S704 - escaped


def _capitalize_first(text: str) -> str:
    """Capitalize the first letter; abbreviations become upper case, mAP stays mAP."""
    words = [word.upper() if word in _ABBREVIATIONS else word for word in text.split(" ")]
    if not words[0][1:2].isupper():
        words[0] = words[0][:1].upper() + words[0][1:]
    return " ".join(words)


def _by_group(pictures: Iterable[Picture]) -> list[tuple[str, list[Picture]]]:
    """Return the pictures of each group, in order."""
    return [(group, list(own)) for group, own in groupby(pictures, key=lambda each: each.group)]


def _is_missing(value: Any) -> bool:
    """Whether a cell of a table is None, NaN or NA."""
    import pandas as pd

    return pd.isna(value) is True


def _number(value: float | None) -> str:
    """Format a float with four significant digits, and an int with all."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _percent(share: float | None, digits: int = 1) -> str:
    return "-" if share is None or math.isnan(share) else f"{100 * share:.{digits}f}%"


def _points(difference: float, digits: int = 1) -> str:
    """Format a difference of two shares in percentage points, with its sign."""
    return f"{100 * difference:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _decimal(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(content).decode('ascii')}"
