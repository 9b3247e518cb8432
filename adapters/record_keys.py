"""The keys by which the draft memory knows a request, its session and its log."""

from __future__ import annotations

from hashlib import blake2b

from paceline.adapters.request_info import RequestInfo
from paceline.caches.tiers import Writer


def session_key(info: RequestInfo) -> int:
    """Key of a session within its scope (63 bits, 0 for none).

    A session id of one tenant never meets another's. A request that is not to be recorded leaves no
    context behind and finds none: its next turn is indexed anew.
    """
    if not (info.session and info.tenant and info.record and info.limits.session):
        return 0
    return digest_of(f"{info.scope}\0{info.tenant}\0{info.session}")


def writer_of(info: RequestInfo) -> Writer:
    """The request as the tiers see it."""
    return Writer(
        scope=info.scope,
        tenant=info.tenant,
        workload=info.workload,
        session=info.session or info.recorded_as,
        limits=info.limits,
    )


def digest_of(text: str) -> int:
    """Positive key of 63 bits."""
    digest = blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1
