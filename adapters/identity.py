"""Who a request says it is.

The flat ``vllm_xargs`` that the proxy attaches, read inside the engine.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from paceline.adapters.request_info import RequestInfo
from paceline.caches.records import SHARED_GROUP
from paceline.caches.tier_settings import TIERS, TierLimits
from paceline.errors import ConfigError

SPECULATION_KEY: Final = "paceline_speculation"
SPECULATION_OFF: Final = "off"
GLOBAL: Final = "global"
DRAFTER_KEY: Final = "paceline_drafter"
DRAFT_SOURCES: Final = frozenset({"memory", "model"})
MEMORY_ALONE: Final = frozenset({"memory"})

_ENGINE_ID: Final = re.compile(
    r"(?:(?P<choice>\d{1,4})_)?(?:(?P<kind>[a-z]+)[-_])?(?P<id>pace-[0-9a-f]{32})"
    r"(?P<rest>(?:[-_][0-9a-z]+)*)"
)


def new_request_id() -> str:
    """An id for a request on its way to an engine, of 128 random bits; see `record_id_of`."""
    return f"pace-{secrets.token_hex(16)}"


def record_id(request_id: str, *, prompt: int = 0, choice: int = 0) -> str:
    """The id under which one of a request's sequences is recorded.

    Args:
        request_id: the proxy's id of the request.
        prompt: which of its prompts, from 0 (``/v1/completions`` takes several).
        choice: which of the replies to that prompt (``n``), from 0.
    """
    return request_id if prompt == choice == 0 else f"{request_id}.{prompt}.{choice}"


def record_id_of(engine_id: str) -> str:
    """The same id, from what an engine made of the proxy's.

    vLLM calls the engine's request ``chatcmpl-ID-RANDOM``, ``cmpl-ID-PROMPT-RANDOM`` or
    ``resp_ID_TURN-RANDOM`` (a response's turns are told apart as a completion's prompts), with
    ``CHOICE_`` before it where several replies are asked for; the embedded engine ``ID-RANDOM``. An
    id that holds none of the proxy's is its own record id.
    """
    match = _ENGINE_ID.fullmatch(engine_id)
    if match is None:
        return engine_id
    prompt = 0
    if match["kind"] in ("cmpl", "resp"):  # elsewhere a number behind our id is random
        number = re.match(r"[-_](\d+)(?:-|$)", match["rest"])
        prompt = int(number[1]) if number else 0
    return record_id(match["id"], prompt=prompt, choice=int(match["choice"] or 0))


def asked_id_of(engine_id: str) -> str:
    """The proxy's id of a request, of all its sequences, from what an engine made of it.

    An id that holds none of the proxy's stays as it is.
    """
    match = _ENGINE_ID.fullmatch(engine_id)
    return engine_id if match is None else match["id"]


def request_info_from_xargs(request_id: str, xargs: Mapping[str, Any] | None) -> RequestInfo:
    """Identity of a request from its extra arguments.

    Read are ``paceline_tenant``, ``_workload``, ``_session``, ``_group``, ``_sharing``,
    ``_record``, ``_tiers``, ``_capacity``, ``_retention_seconds``, ``_stored_tokens``, ``_learn``
    and ``_drafter``.

    Never raises. Anything missing or of a wrong type fails closed: the request belongs to nobody
    (tenant ""), shares with no one and is not recorded.

    Args:
        request_id: the engine's id of the request.
        xargs: extra arguments of the request as the engine received them.
    """
    recorded_as = record_id_of(request_id)
    nobody = RequestInfo(request_id=request_id, tenant="", record=False, record_id=recorded_as)
    if not isinstance(xargs, Mapping):
        return nobody
    names = ("tenant", "workload", "session", "group")
    values = {name: xargs.get(f"paceline_{name}", "") for name in names}
    sharing = xargs.get("paceline_sharing", "")
    record = xargs.get("paceline_record", 1)
    learn = xargs.get("paceline_learn", 0)
    drafter = xargs.get(DRAFTER_KEY, SHARED_GROUP)
    if not all(isinstance(value, str) for value in (*values.values(), drafter)):
        return nobody
    if not (values["tenant"] and drafter):
        return nobody
    if any(isinstance(flag, bool) or flag not in (0, 1) for flag in (record, learn)):
        return nobody
    if sharing not in ("", GLOBAL) or (sharing and values["group"]):
        return nobody
    limits = _limits(xargs)
    return (
        nobody
        if limits is None
        else RequestInfo(
            request_id=request_id,
            record=bool(record),
            is_global=sharing == GLOBAL,
            limits=limits,
            record_id=recorded_as,
            learn=bool(record and learn),
            drafter_group="" if drafter == SHARED_GROUP else drafter,
            **values,
        )
    )


def _limits(xargs: Mapping[str, Any]) -> TierLimits | None:
    """The tenant's limits, None if they cannot be understood."""
    tiers = xargs.get("paceline_tiers")
    capacity = xargs.get("paceline_capacity")
    stored_tokens = xargs.get("paceline_stored_tokens")
    retention = xargs.get("paceline_retention_seconds")
    if not (tiers is None or isinstance(tiers, str)):
        return None
    if not all(count is None or type(count) is int for count in (capacity, stored_tokens)):
        return None
    if not (retention is None or type(retention) in (int, float)):
        return None
    on = set(TIERS if tiers is None else filter(None, tiers.split(",")))
    if not on <= set(TIERS):
        return None
    try:
        return TierLimits(
            **{name: name in on for name in TIERS},
            capacity=capacity,
            stored_tokens=stored_tokens,
            retention_seconds=None if retention is None else float(retention),
        )
    except (ConfigError, OverflowError):
        return None


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """Who may draft for a request, and how far.

    Attributes:
        sources: of ``memory`` and ``model``; none has the target answer without drafts.
        max_tokens: most tokens a round, >= 0; None for the engine's own limit.
        sources_by: who has taken sources away, of ``policy`` and ``client``.
        tokens_by: who has said a number of tokens, and which.
    """

    sources: frozenset[str] = DRAFT_SOURCES
    max_tokens: int | None = None
    sources_by: tuple[str, ...] = field(default=(), compare=False)
    tokens_by: tuple[tuple[str, int], ...] = field(default=(), compare=False)

    @property
    def is_off(self) -> bool:
        """Whether nothing may draft."""
        return not self.sources or self.max_tokens == 0

    def limited_by(self, engine_limit: int) -> list[str]:
        """Who has less drafted than the engine would: of ``policy``, ``client``, and ``off``."""
        by = [who for who, most in self.tokens_by if most < engine_limit]
        return [*self.sources_by, *by, *(["off"] if self.is_off else [])]

    def most(self, source: str, engine_limit: int) -> int:
        """Most tokens that a source may draft where the engine lets it draft so many."""
        if source not in self.sources:
            return 0
        return engine_limit if self.max_tokens is None else min(self.max_tokens, engine_limit)


NO_DRAFTS: Final = DraftLimits(frozenset(), 0)


def _no_drafts(who: str) -> DraftLimits:
    return replace(NO_DRAFTS, sources_by=(who,))


def draft_limits(
    xargs: Mapping[str, Any] | None, *, drafter_group: str = SHARED_GROUP
) -> DraftLimits:
    """What policy and client say together: the narrower of the two.

    Read are ``paceline_speculation``, ``paceline_draft_sources`` and ``paceline_draft_tokens`` of
    the policy, ``draft_sources`` and ``draft_tokens`` of the client, and ``paceline_drafter``, the
    request's drafter group. Never raises: where one of them cannot be understood nothing is
    drafted, and the target answers alone.

    Args:
        xargs: extra arguments of the request as the engine received them.
        drafter_group: whose drafter the engine's model is. A shared one drafts for all; what one
            group's tenants have taught theirs drafts for their requests alone.
    """
    is_named = isinstance(xargs, Mapping) and xargs.get(DRAFTER_KEY) == drafter_group
    known = DRAFT_SOURCES if drafter_group == SHARED_GROUP or is_named else MEMORY_ALONE
    if not isinstance(xargs, Mapping):
        return DraftLimits(known)
    if xargs.get(SPECULATION_KEY) == SPECULATION_OFF:
        return _no_drafts("policy")
    sources, most = known, None
    sources_by: list[str] = []
    tokens_by: list[tuple[str, int]] = []
    for prefix, who in (("paceline_", "policy"), ("", "client")):
        named = xargs.get(f"{prefix}draft_sources")
        if named is not None:
            names = set(filter(None, named.split(","))) if isinstance(named, str) else {""}
            if not names <= DRAFT_SOURCES:
                return _no_drafts(who)
            if not sources <= names:
                sources_by.append(who)
            sources &= names
        number = xargs.get(f"{prefix}draft_tokens")
        if number is not None:
            if type(number) is not int or number < 0:
                return _no_drafts(who)
            tokens_by.append((who, number))
            most = number if most is None else min(most, number)
    return DraftLimits(sources, most, tuple(sources_by), tuple(tokens_by))
