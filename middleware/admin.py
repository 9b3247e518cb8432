"""What an operator may ask of a running proxy: how its engines do, and to drain one.

With a policy file a key of its ``admin_keys`` is needed; without one the proxy serves its own
machine alone, and so do these routes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from paceline.api_errors import ApiError
from paceline.middleware.config import is_loopback
from paceline.middleware.endpoints import require_method
from paceline.middleware.exchange import Exchange
from paceline.middleware.identity import key_of
from paceline.middleware.replica import Replica
from paceline.middleware.routing import ReplicaSet
from paceline.policies.tenants import PolicyFile

ADMIN_PATH: Final = "/admin/upstreams"
ACTIONS: Final = {"drain": True, "resume": False}
OK: Final = 200


class UpstreamStatus(msgspec.Struct, frozen=True):
    """How an engine does.

    Attributes:
        name: its name in the configuration.
        state: ``up``, ``unhealthy``, ``open``, ``half_open``, ``draining`` or ``leaving`` (no
            longer an upstream).
        outstanding: requests it is working on for this proxy.
        outstanding_tokens: what these have to be read and said, estimated.
        drained_by: ``file``, ``admin`` or "".
        last_error: why it is not up, "" if it is.
    """

    name: str
    state: str
    outstanding: int
    outstanding_tokens: int
    drained_by: str
    last_error: str


async def answer_admin(exchange: Exchange, policy: PolicyFile | None, replicas: ReplicaSet) -> None:
    """Answer ``GET /admin/upstreams`` or ``POST /admin/upstreams/NAME/drain`` (or ``resume``).

    Raises:
        ApiError: 401, not an operator; 404, no such route or engine; 405, the wrong method.
    """
    _authorise(exchange, policy)
    rest = exchange.path.removeprefix(ADMIN_PATH)
    name, _, action = rest.removeprefix("/").rpartition("/")
    wanted = "POST" if rest else "GET"
    if rest and not (rest.startswith("/") and name and action in ACTIONS):
        raise _unknown(f"{exchange.path} is not served here")
    require_method(exchange.method, exchange.path, wanted)
    await exchange.read_body(max_bytes=0)
    if rest and replicas.drain(name, drained=ACTIONS[action]) is None:
        known = ", ".join(replica.name for replica in replicas.replicas)
        raise _unknown(f"there is no upstream {name!r:.80}; there are {known}")
    shown = [_status(replica) for replica in replicas.replicas]
    shown += [_status(replica, state="leaving") for replica in replicas.leaving]
    await exchange.answer(OK, msgspec.json.encode({"upstreams": shown}))


def _authorise(exchange: Exchange, policy: PolicyFile | None) -> None:
    if policy is None:
        may = is_loopback(exchange.client_host)
    else:
        may = policy.is_admin(key_of(exchange.headers))
    if not may:
        raise ApiError(
            401,
            "this is for operators; send a key of the policy file's admin_keys",
            code="invalid_api_key",
        )


def _status(replica: Replica, *, state: str = "") -> UpstreamStatus:
    return UpstreamStatus(
        name=replica.name,
        state=state or replica.state,
        outstanding=replica.outstanding,
        outstanding_tokens=round(replica.outstanding_tokens),
        drained_by="file" if replica.config.draining else "admin" if replica.drained else "",
        last_error="" if replica.state == "up" else replica.last_error,
    )


def _unknown(message: str) -> ApiError:
    return ApiError(404, message, code="unknown_url")
