"""Trees of values, such as a specification, laid flat."""

import json
from collections.abc import Iterator, Mapping
from typing import Any


def by_path(tree: Mapping[str, Any]) -> dict[str, str]:
    """Every leaf by its dotted path: texts as they are, everything else as JSON.  Absent values are left out."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for name, value in tree.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}.")
        elif isinstance(value, str):
            yield path, value
        elif value is not None:
            yield path, json.dumps(value, ensure_ascii=False)
