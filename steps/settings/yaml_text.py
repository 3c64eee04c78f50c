"""YAML as this project reads it: safe, and without a key that stands twice, of which YAML would take the last in silence."""

from __future__ import annotations

from typing import Any

import yaml


class Strict(yaml.SafeLoader):
    """PyYAML's own, which looks at the keys of each mapping first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises yaml.YAMLError where a key stands twice (merged ones, `<<`, may be written over)."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice in one mapping", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """What a text of YAML says.

    Raises:
        yaml.YAMLError: it is none, a key stands twice, or Python has no such value.
    """
    try:
        return yaml.load(text, Strict)  # a SafeLoader
    except (ValueError, RecursionError) as error:  # a 13th month; brackets in brackets
        raise yaml.YAMLError(str(error)) from error
