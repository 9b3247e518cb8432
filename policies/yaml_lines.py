"""Which line of a YAML text a value stands in, for messages about it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml


class Lines:
    """The lines of one composed document. O(nodes) to make.

    Args:
        root: as `yaml.compose` gives it; None for an empty text.

    Attributes:
        repeated: line (from 1) and name of the first key that a mapping has twice, of which YAML
            readers keep the last; None if there is none.
    """

    def __init__(self, root: yaml.Node | None) -> None:
        self._root = root
        self.repeated = None if root is None else _repeated(root)

    def of(self, path: Sequence[str | int]) -> int:
        """Line, from 1, of the value at a path of keys and indices.

        Of what is not there, the line of the innermost value around it. O(path * width).
        """
        node = self._root
        if node is None:
            return 1
        line = node.start_mark.line
        for part in path:
            node = _child(node, part)
            if node is None:
                break
            line = node.start_mark.line
        return int(line) + 1


def _child(node: yaml.Node | None, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        child: yaml.Node = node.value[part]
        return child
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if str(key.value) == str(part):
                # an unknown key, and a block on lines of its own, are pointed at by their names
                return value if isinstance(value, yaml.CollectionNode) else key
    return None


def _repeated(root: yaml.Node) -> tuple[int, str] | None:
    found: list[tuple[int, str]] = []
    waiting: list[yaml.Node] = [root]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:  # an alias leads to what was looked at
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in names:
                        found.append((key.start_mark.line + 1, key.value))
                    names.add(key.value)
                waiting.append(value)
    return min(found, default=None)
