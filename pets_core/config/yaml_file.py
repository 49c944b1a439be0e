"""Safe parsing of YAML settings files, with one-line errors."""

from __future__ import annotations

from typing import Any

import yaml

from pets_core.errors import PetsError

__all__ = ["parse_settings", "parse_yaml"]

_MERGE = "tag:yaml.org,2002:merge"


def parse_settings(data: bytes, path: str) -> dict[str, Any]:
    """Parse a YAML mapping of settings by name; an empty file gives an empty dict.

    Raises:
        PetsError: The file is not YAML, or not a mapping.
    """
    content = parse_yaml(data, path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise PetsError(f"{path}: expected a mapping of settings, found {type(content).__name__}")
    return {str(name): value for name, value in content.items()}


def parse_yaml(data: bytes, path: str) -> Any:
    """Parse a YAML document; a duplicate key is an error.

    Args:
        data: Content of the file.
        path: Path of the file, for messages.

    Returns:
        The content; None for an empty file.

    Raises:
        PetsError: The file is not YAML. The message is one line and names the line of the error.
    """
    try:
        return yaml.load(data, _UniqueKeyLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.MarkedYAMLError as error:
        reason = _describe_syntax_error(error)
    except yaml.reader.ReaderError as error:
        reason = _describe_character(error, data)
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:
        # A date that does not exist, or an integer with thousands of digits.
        reason = str(error)
    raise PetsError(f"{path}: is not YAML: {reason}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that rejects duplicate keys, of which SafeLoader silently keeps the last."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping, before merge keys (<<) add the keys of other mappings."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == _MERGE:
                continue
            line = key.start_mark.line + 1
            if key.value in lines:
                raise yaml.MarkedYAMLError(
                    problem=f"duplicate key {key.value}, first in line {lines[key.value]}",
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
    start = error.context_mark
    if not (error.context and start and mark and start.line < mark.line):
        return f"{where}{problem}"
    return f"{where}{problem} ({error.context} that starts in line {start.line + 1})"


def _describe_character(error: yaml.reader.ReaderError, data: bytes) -> str:
    if error.encoding == "unicode":
        return f"it contains the control character #x{error.character:02x}"
    line = data[: error.position].count(b"\n") + 1
    return f"line {line} is not {error.encoding.upper()}. Save the file as UTF-8"
