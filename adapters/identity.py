"""Who a request says it is.

The flat ``vllm_xargs`` that the proxy attaches, read inside the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from paceline.adapters.request_info import RequestInfo
from paceline.caches.tier_settings import TIERS, TierLimits
from paceline.errors import ConfigError

SPECULATION_KEY: Final = "paceline_speculation"
SPECULATION_OFF: Final = "off"
GLOBAL: Final = "global"


def request_info_from_xargs(request_id: str, xargs: Mapping[str, Any] | None) -> RequestInfo:
    """Identity of a request from its extra arguments.

    Read are ``paceline_tenant``, ``_workload``, ``_session``, ``_group``, ``_sharing``,
    ``_record``, ``_tiers``, ``_capacity``, ``_retention_seconds`` and ``_stored_tokens``.

    Never raises. Anything missing or of a wrong type fails closed: the request belongs to nobody
    (tenant ""), shares with no one and is not recorded.

    Args:
        request_id: the engine's id of the request.
        xargs: extra arguments of the request as the engine received them.
    """
    nobody = RequestInfo(request_id=request_id, tenant="", record=False)
    if not isinstance(xargs, Mapping):
        return nobody
    names = ("tenant", "workload", "session", "group")
    values = {name: xargs.get(f"paceline_{name}", "") for name in names}
    sharing = xargs.get("paceline_sharing", "")
    record = xargs.get("paceline_record", 1)
    if not all(isinstance(value, str) for value in values.values()) or not values["tenant"]:
        return nobody
    if isinstance(record, bool) or record not in (0, 1):
        return nobody
    if sharing not in ("", GLOBAL) or (sharing and values["group"]):
        return nobody
    limits = _limits(xargs)
    if limits is None:
        return nobody
    return RequestInfo(
        request_id=request_id,
        record=bool(record),
        is_global=sharing == GLOBAL,
        limits=limits,
        **values,
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


def speculation_is_off(xargs: Mapping[str, Any] | None) -> bool:
    """Whether the request asks not to be speculated for."""
    return isinstance(xargs, Mapping) and xargs.get(SPECULATION_KEY) == SPECULATION_OFF
