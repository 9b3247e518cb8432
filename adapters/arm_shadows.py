"""Drafts that nobody verifies: what memory would have brought where it may not draft.

The target says the same tokens without drafts, so that a draft of memory's can be held against
them afterwards, for no time of the target.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

MOST_WATCHED: Final = 2
"""Requests that are looked at in this way at a time."""


@dataclass(slots=True, eq=False)
class _Watched:
    """A request whose drafts are held against what it says.

    Attributes:
        next_at: tokens that it has when its next draft begins: behind the last one's, as if those
            had been committed by one round.
        began_at: tokens that it had when the draft that waits began.
        draft: that draft; None for none.
        came: what was said since.
    """

    next_at: int = 0
    began_at: int = 0
    draft: list[int] | None = None
    came: list[int] = field(default_factory=list)


class Shadows:
    """Watches a few requests that go without drafts, or with short ones.

    Every call is O(`MOST_WATCHED`), but for `among`.
    """

    def __init__(self) -> None:
        self._watched: dict[str, _Watched] = {}

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, candidates: Iterable[str]) -> None:
        """Watch the first of these from now on; who is watched already and among them stays."""
        wanted = list(candidates)
        kept = {i: each for i, each in self._watched.items() if i in wanted}
        for request_id in wanted:
            if len(kept) >= MOST_WATCHED:
                break
            kept.setdefault(request_id, _Watched())
        self._watched = kept

    def among(self, request_ids: Sequence[str], num_tokens: Sequence[int]) -> dict[str, int]:
        """Tokens of those that are watched, where they are in the round. O(requests)."""
        there = (i for i in self._watched if i in request_ids)
        return {i: num_tokens[request_ids.index(i)] for i in there}

    def due(self, num_tokens: Mapping[str, int]) -> list[str]:
        """Who is to be drafted for now; `num_tokens` of those in the round."""
        return [
            request_id
            for request_id, each in self._watched.items()
            if each.draft is None and num_tokens.get(request_id, -1) >= each.next_at
        ]

    def begin(self, request_id: str, num_tokens: int, draft: list[int]) -> None:
        """A watched request would have been drafted that."""
        each = self._watched[request_id]
        each.began_at, each.draft, each.came = num_tokens, draft, []

    def saw(
        self, num_tokens: Mapping[str, int], news: Mapping[str, Sequence[int]]
    ) -> list[tuple[str, int, int]]:
        """The target has said `news`; drafts of which is known what would have come of them.

        Returns:
            Request, drafted tokens, and tokens that a round with them would have committed.
        """
        found = []
        for request_id, each in self._watched.items():
            if each.draft is None or request_id not in news:
                continue
            each.came.extend(news[request_id])
            if len(each.came) != num_tokens[request_id] - each.began_at:
                each.draft = None  # a step was missed: whatever came in it is not known
                continue
            num_right = 0
            for drafted, said in zip(each.draft, each.came, strict=False):
                if drafted != said:
                    break
                num_right += 1
            if num_right == len(each.came) and num_right < len(each.draft):
                continue
            found.append((request_id, len(each.draft), num_right + 1))
            each.next_at, each.draft = each.began_at + num_right + 1, None
        return found

    def clear(self) -> None:
        """Watch nobody."""
        self._watched = {}
