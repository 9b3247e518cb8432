"""Who asks: the identity of a request, as everything that drafts for it sees it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Final
from urllib.parse import quote

from paceline.caches.tier_settings import NO_LIMITS, TierLimits

GLOBAL_SCOPE: Final = "global"
"""Sharing scope of every tenant that its policy lets share with all others that do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestInfo:
    """Who asks: what a request's drafts may be drawn from and where its tokens go.

    Attributes:
        request_id: the engine's id of the request, unique while it is open.
        tenant: who pays; "" when nobody vouched for the request, which then shares with no one.
        workload: name of the kind of work, "" if unknown.
        session: id of the agent's conversation, "" if unknown.
        group: sharing group the tenant belongs to, "" for the tenant alone.
        is_global: whether the tenant shares with every other tenant that does; then it has no
            group.
        adapter: LoRA adapter that answers, "" for the bare target; adapters share nothing with each
            other.
        record: False leaves nothing of the request's tokens behind: not in shared memory, not in
            the journal, not in a context for its session's next turn.
        limits: what the tenant's policy keeps its memory to.
        record_id: id under which it is recorded, the same whoever records it; "" for `request_id`.
        learn: whether a model drafter may be trained on it; only what is recorded can be.
        drafter_group: whose drafter that is, "" for the shared one.
        temperature: that the target answers at, below 0 if unknown.
    """

    request_id: str
    tenant: str = "local"
    workload: str = ""
    session: str = ""
    group: str = ""
    is_global: bool = False
    adapter: str = ""
    record: bool = True
    limits: TierLimits = NO_LIMITS
    record_id: str = ""
    learn: bool = False
    drafter_group: str = ""
    temperature: float = -1.0

    @property
    def recorded_as(self) -> str:
        """The id in its record, by which readers tell that two producers recorded one request."""
        return self.record_id or self.request_id

    @property
    def is_recorded(self) -> bool:
        """Whether it leaves anything behind."""
        return self.record and bool(self.scope)

    @property
    def owner(self) -> str:
        """Whose corpora the request is drafted from, "" for nobody's.

        The sharing scope without its adapter: a corpus is text, whichever adapter reads it.
        """
        if not self.tenant:
            return ""
        if self.group:
            return f"group:{quote(self.group, safe='')}"
        return GLOBAL_SCOPE if self.is_global else f"tenant:{quote(self.tenant, safe='')}"

    @property
    def scope(self) -> str:
        """Name of the sharing scope, "" for none; different for different scopes.

        Nothing of one scope reaches a draft of another.
        """
        if not (self.owner and self.adapter):
            return self.owner
        return f"{self.owner}/adapter:{quote(self.adapter, safe='')}"

    def learning_key(self, *, is_greedy: bool) -> int:
        """Key (63 bits) of the requests that may share what is learned of a model's drafts.

        A sharing scope's, or the request's own where it has none. A guess means one thing where the
        likeliest token is taken and another where tokens are drawn.
        """
        name = f"{self.scope or self.request_id} {'greedy' if is_greedy else 'drawn'}"
        digest = blake2b(name.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1
