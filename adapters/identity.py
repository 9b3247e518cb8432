"""Who a request says it is.

The flat ``vllm_xargs`` that the proxy attaches, read inside the engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from paceline.adapters.speculator import RequestInfo

SPECULATION_KEY: Final = "paceline_speculation"
SPECULATION_OFF: Final = "off"


def request_info_from_xargs(request_id: str, xargs: Mapping[str, Any] | None) -> RequestInfo:
    """Identity of a request from its extra arguments.

    Read are ``paceline_tenant``, ``_workload``, ``_session``, ``_group`` and ``_record``.

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
    record = xargs.get("paceline_record", 1)
    if not all(isinstance(value, str) for value in values.values()) or not values["tenant"]:
        return nobody
    if isinstance(record, bool) or record not in (0, 1):
        return nobody
    return RequestInfo(request_id=request_id, record=bool(record), **values)


def speculation_is_off(xargs: Mapping[str, Any] | None) -> bool:
    """Whether the request asks not to be speculated for."""
    return isinstance(xargs, Mapping) and xargs.get(SPECULATION_KEY) == SPECULATION_OFF
