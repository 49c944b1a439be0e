"""Writes docs/settings.md, the reference of all settings, from the models that define them.

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

Set them by flag (`--train.epochs 3`), by environment variable (`PETS_TRAIN__EPOCHS=3`) or in a
YAML file; flags override variables, and variables override the file. `python docs/settings.py`
writes this page.

`train` is a group: give one of its fields, or several as JSON (`--train '{"epochs": 3}'`,
`PETS_TRAIN='{"epochs": 3, "seed": 1}'`). Lists take commas in flags
(`--sweep.backbones resnet18,resnet34`) and JSON in variables
(`PETS_SWEEP__BACKBONES='["resnet18", "resnet34"]'`). A YAML file may give a key only once.
"""
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<",
           "minLength": "length ≥", "pattern": "matches"}  # fmt: skip
_HEADER = "| setting | default | allowed | what it does |\n| --- | --- | --- | --- |"


def settings_page() -> str:
    """The page, in Markdown."""
    photos = _sections(PipelineConfig)
    ratings = _sections(RatingsConfig)
    own = [section for section in ratings if section not in photos]
    return "\n".join([INTRODUCTION, *photos, "# Settings of `pets collab`\n", *own])


def _sections(model: type[BaseModel]) -> list[str]:
    """A section for each group; settings of no group come first."""
    schema = model.model_json_schema()
    groups = {"": schema}
    for name, about in schema["properties"].items():
        if "$ref" in about:
            groups[name] = schema["$defs"][about["$ref"].rsplit("/", 1)[1]]
    return [_section(name, group) for name, group in groups.items()]


def _section(group: str, schema: dict[str, Any]) -> str:
    rows = [
        f"| `{name}` | `{json.dumps(about.get('default'))}` | {_allowed(about)} "
        f"| {_cell(about.get('description', ''))} |"
        for name, about in schema["properties"].items()
        if "$ref" not in about
    ]
    title = f"## {group}\n\n{_cell(schema.get('description', ''))}\n\n" if group else ""
    return "\n".join([f"{title}{_HEADER}", *rows, ""])


def _allowed(about: dict[str, Any]) -> str:
    if "anyOf" in about:
        return ", or ".join(_allowed(branch) for branch in about["anyOf"])
    if "enum" in about or "const" in about:
        return ", ".join(f"`{value}`" for value in about.get("enum", [about.get("const")]))
    kind = str(about.get("type", "any"))
    bounds = [f"{sign} `{_cell(about[key])}`" for key, sign in _BOUNDS.items() if key in about]
    inner = [about[key] for key in ("items", "additionalProperties") if about.get(key)]
    parts = [_allowed(part) for part in (*inner, *about.get("prefixItems", ()))]
    return " ".join([f"{kind} of ({', '.join(parts)})" if parts else kind, *bounds])


def _cell(value: object) -> str:
    """In one line, without a border of the table."""
    return " ".join(str(value).split()).replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(settings_page(), encoding="utf-8")
