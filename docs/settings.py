"""Generate docs/settings.md, the settings reference, from the pydantic models.

python docs/settings.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pets_core.config.pipeline import PipelineConfig
from pets_core.ratings.config import RatingsConfig

__all__ = ["settings_page"]

PAGE = Path(__file__).with_name("settings.md")
INTRODUCTION = """# Settings

Set a setting by flag (`--train.epochs 3`), by environment variable (`PETS_TRAIN__EPOCHS=3`) or in
a YAML file. Flags override variables, and variables override the file. `python docs/settings.py`
generates this page.

`train` is a group: set one of its fields, or several as JSON (`--train '{"epochs": 3}'`,
`PETS_TRAIN='{"epochs": 3, "seed": 1}'`). Lists use commas in flags
(`--sweep.backbones resnet18,resnet34`) and JSON in variables
(`PETS_SWEEP__BACKBONES='["resnet18", "resnet34"]'`). Duplicate keys in a YAML file are errors.
An empty variable counts as not set.
"Empty" in a description means `null` or an empty list.
"""
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<",
           "minLength": "length ≥", "pattern": "matches"}  # fmt: skip
_HEADER = "| setting | default | allowed | description |\n| --- | --- | --- | --- |"


def settings_page() -> str:
    """Return the page as Markdown."""
    photos, ratings = _sections(PipelineConfig), _sections(RatingsConfig)
    lines = [INTRODUCTION]
    for name, section in photos.items():
        lines += [f"## {name}\n"] * bool(name) + [section]
    lines.append("## Settings of `pets collab`\n")
    for name, section in ratings.items():
        if section != photos.get(name):
            lines += [f"### {_ratings_heading(name)}\n"] * bool(name) + [section]
    return "\n".join(lines)


def _ratings_heading(group: str) -> str:
    """Return the heading of a group of `pets collab`, which differs from all others."""
    return f"{group} (ratings)" if group in PipelineConfig.model_fields else group


def _sections(model: type[BaseModel]) -> dict[str, str]:
    """Return the sections by group, without headings; settings without a group come first."""
    schema = model.model_json_schema()
    groups = {"": schema}
    for name, field in schema["properties"].items():
        if "$ref" in field:
            groups[name] = schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
    return {name: _section(name, group) for name, group in groups.items()}


def _section(group: str, schema: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | `{json.dumps(field.get('default'))}` | {_allowed(field)} "
        f"| {_cell(field.get('description', ''))} |"
        for name, field in schema["properties"].items()
        if "$ref" not in field
    ]
    summary = f"{_cell(schema.get('description', ''))}\n\n" if group else ""
    return "\n".join([f"{summary}{_HEADER}", *rows, ""])


def _allowed(field: dict[str, Any]) -> str:
    if "anyOf" in field:
        return ", or ".join(_allowed(branch) for branch in field["anyOf"])
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    kind = str(field.get("type", "any"))
    bounds = [f"{sign} `{_cell(field[key])}`" for key, sign in _BOUNDS.items() if key in field]
    inner = [field[key] for key in ("items", "additionalProperties") if field.get(key)]
    parts = [_allowed(part) for part in (*inner, *field.get("prefixItems", ()))]
    return " ".join([f"{kind} of ({', '.join(parts)})" if parts else kind, *bounds])


def _cell(value: object) -> str:
    """Return text for one table cell: a single line, with escaped borders."""
    return " ".join(str(value).split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
