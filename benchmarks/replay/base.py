"""What a drafter is to the replay, and what it hands over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from paceline.errors import DraftError

MAX_DRAFT_TOKENS: Final = 32
"""Tokens that a step may verify for one request."""

TokenIds: TypeAlias = npt.NDArray[np.int32]


class Draft(NamedTuple):
    """Candidate tokens after one request's context.

    Attributes:
        token_ids: token of each node.
        parent: index of each node's parent, which precedes it, or -1; None: a chain.
        prob: P(node accepted | its parent accepted) of each node, where the drafter says one.
    """

    token_ids: Sequence[int]
    parent: Sequence[int] | None = None
    prob: Sequence[float] | None = None


EMPTY: Final = Draft(())


@dataclass(frozen=True, slots=True)
class Memory:
    """What a drafter holds for its scope.

    Attributes:
        num_bytes: bytes held, by the drafter's own account.
        num_tokens: tokens remembered in them.
    """

    num_bytes: int
    num_tokens: int


class Drafter(Protocol):
    """Drafts for one request at a time.

    An instance serves one scope, from cold: what scopes must not share cannot be shared.
    """

    def start(self, request_id: int, session_id: str, scope: str, prompt_ids: TokenIds) -> None:
        """Open a request; `prompt_ids` int32 (n,) must not be written to."""

    def propose(self, request_id: int, max_tokens: int) -> Draft:
        """Draft at most `max_tokens` nodes after what was committed."""

    def commit(self, request_id: int, token_ids: list[int]) -> None:
        """Append verified tokens; the first call brings prefill's token."""

    def finish(self, request_id: int) -> None:
        """Close a request."""

    def memory(self) -> Memory | None:
        """What is held now, None where the drafter cannot say."""


def num_accepted(draft: Draft, output_ids: Sequence[int], position: int) -> int:
    """Length of the longest path from the root that equals the output from `position` on.

    O(num_nodes).
    """
    if draft.parent is not None:
        return max(accepted_depths(draft, output_ids, position), default=0)
    accepted = 0
    left = len(output_ids) - position
    for token in draft.token_ids:
        if accepted == left or token != output_ids[position + accepted]:
            break
        accepted += 1
    return accepted


def accepted_depths(draft: Draft, output_ids: Sequence[int], position: int) -> list[int]:
    """For each node its depth (1 at the root's children) if it is accepted, else 0.

    Raises:
        DraftError: a parent does not precede its child.
    """
    parents = range(-1, len(draft.token_ids) - 1) if draft.parent is None else draft.parent
    depths: list[int] = []
    for node, (token, parent) in enumerate(zip(draft.token_ids, parents, strict=True)):
        if not -1 <= parent < node:
            raise DraftError(f"node {node} has parent {parent}; a parent is -1 or an earlier node")
        above = depths[parent] if parent >= 0 else 0
        reached = (parent < 0 or above > 0) and position + above < len(output_ids)
        depths.append(above + 1 if reached and token == output_ids[position + above] else 0)
    return depths
