"""Joining candidate phrases into one tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from paceline.benchmarks.replay.base import Draft


def join(phrases: Iterable[Sequence[int]], max_tokens: int) -> Draft:
    """A tree in which phrases share their common beginnings.

    Earlier phrases have precedence; the one that no longer fits is cut. O(total length).
    """
    token_ids: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    for phrase in phrases:
        node = -1
        for token in phrase:
            child = children.get((node, token))
            if child is None:
                if len(token_ids) == max_tokens:
                    return Draft(token_ids, parents)
                child = len(token_ids)
                children[node, token] = child
                token_ids.append(token)
                parents.append(node)
            node = child
    return Draft(token_ids, parents)
