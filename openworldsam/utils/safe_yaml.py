"""The one reader of YAML files: no code, no repeated keys, and an end to what aliases multiply."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from openworldsam.utils.files import regular_file
from openworldsam.utils.text import brief, shortened

MAX_BYTES = 2**20
MAX_VALUES = 100_000
"""Most keys and values of a file, those of an alias counted wherever it stands."""
MAX_LEVELS = 50


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader for files that nobody vouches for."""

    def __init__(self, text: bytes) -> None:
        super().__init__(text)
        self.sizes: dict[int, int] = {}  # keys and values of each node, by its id; those of an alias included

    def fetch_flow_collection_start(self, token: Any) -> None:
        if self.flow_level > MAX_LEVELS:  # the scanner's time grows with their number
            raise RecursionError
        super().fetch_flow_collection_start(token)

    def compose_node(self, parent: Any, index: Any) -> Any:
        node = super().compose_node(parent, index)
        if node.end_mark is None:  # it is still being read
            raise ConstructorError(None, None, "an alias of what it is part of", node.start_mark)
        if id(node) not in self.sizes:
            self.sizes[id(node)] = 1 + sum(self.sizes[id(child)] for child in _children(node))
        if max(len(self.sizes), self.sizes[id(node)]) > MAX_VALUES:
            raise ConstructorError(
                None, None, f"more than {MAX_VALUES:,} values with those of aliases", node.start_mark
            )
        return node


def _children(node: Any) -> list[Any]:
    if isinstance(node, yaml.SequenceNode):
        return list(node.value)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise ConstructorError(None, None, f"the key {brief(key.value)} twice", key.start_mark)
            seen.add((key.tag, key.value))
        return [node for pair in node.value for node in pair]
    if node.tag.endswith((":int", ":float")) and len(node.value) > 100:  # 1:1:1:... takes hours
        raise ConstructorError(None, None, f"a number of {len(node.value):,} digits", node.start_mark)
    return []


def read_yaml(path: str | Path, hint: str = "", complaint: str = "is not YAML") -> Any:
    """Read a YAML file of at most 1 MiB; an empty one gives None.

    Args:
        hint: ends the message about a missing file.
        complaint: stands in the message about a damaged one.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no regular file, too large, or no plain YAML: damaged, with a tag that would run code, a key twice,
            or aliases that multiply; in a line.
    """
    path = regular_file(path, hint)
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"{path} {complaint}: it has {path.stat().st_size:,} bytes, more than {MAX_BYTES:,}")
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except RecursionError:
        raise ValueError(f"{path} {complaint}: nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # such as for the 31st of February or an unhashable key
        mark = getattr(error, "problem_mark", None)
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        place = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{path} {complaint}: {place}{shortened(problem, 200)}") from None
