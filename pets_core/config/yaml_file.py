"""YAML files that people write: parsed safely, with one line for each fault."""

from __future__ import annotations

from typing import Any

import yaml

from pets_core.errors import PetsError

__all__ = ["parse_settings", "parse_yaml"]

_MERGE = "tag:yaml.org,2002:merge"


def parse_settings(data: bytes, path: str) -> dict[str, Any]:
    """Parse a YAML mapping of settings by name; an empty file holds none.

    Raises:
        PetsError: It is not YAML, or not a mapping.
    """
    content = parse_yaml(data, path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise PetsError(f"{path}: expected settings by name, found {type(content).__name__}")
    return {str(name): value for name, value in content.items()}


def parse_yaml(data: bytes, path: str) -> Any:
    """Parse a YAML document; a key that is given twice is an error.

    Args:
        data: Content of the file.
        path: Where it was read, for messages.

    Returns:
        The content; None for an empty file.

    Raises:
        PetsError: It is not YAML; the message is one line and names the line of the fault.
    """
    try:
        return yaml.load(data, _UniqueKeyLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        fault = _describe_syntax_error(error)
    except yaml.reader.ReaderError as error:
        fault = _describe_character(error, data)
    except RecursionError:
        fault = "it is nested too deeply"
    except ValueError as error:
        # A date that does not exist, or an integer of thousands of digits.
        fault = str(error)
    raise PetsError(f"{path}: is not YAML: {fault}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader keeps the last of several equal keys, and drops the others silently."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, before merge keys (<<) add the keys of other mappings to it."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} is given twice, first in line {lines[key.value]}",
                    problem_mark=key.start_mark,
                )
            lines[key.value] = line
        return node


def _describe_syntax_error(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "syntax error"
    if r"'\t'" in problem:
        problem += ". Indent with spaces, not tabs"
    mark = error.problem_mark or error.context_mark
    where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    begun = error.context_mark
    if not (error.context and begun and mark and begun.line < mark.line):
        return f"{where}{problem}"
    return f"{where}{problem} ({error.context} that begins in line {begun.line + 1})"


def _describe_character(error: yaml.reader.ReaderError, data: bytes) -> str:
    if error.encoding == "unicode":
        return f"it contains the control character #x{error.character:02x}"
    line = data[: error.position].count(b"\n") + 1
    return f"line {line} is not {error.encoding.upper()}. Save the file as UTF-8"
