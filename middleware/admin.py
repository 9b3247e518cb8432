"""What an operator may ask of a running proxy: how its engines do, and to drain one.

With a policy file a key of its ``admin_keys`` is needed; without one the proxy serves its own
machine alone, and so do these routes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Final

import msgspec

from paceline.api_errors import ApiError
from paceline.middleware.config import is_loopback
from paceline.middleware.endpoints import require_method
from paceline.middleware.exchange import Exchange
from paceline.middleware.identity import key_of
from paceline.middleware.replica import Replica
from paceline.middleware.routing import ReplicaSet
from paceline.middleware.siblings import AskUpstreams, Question, SetDrained, Siblings
from paceline.policies.tenants import PolicyFile

ADMIN_PATH: Final = "/admin/upstreams"
ACTIONS: Final = {"drain": True, "resume": False}
LEAVING: Final = "leaving"
STATES: Final = ("up", "half_open", "unhealthy", "open", LEAVING, "draining")
"""From well to worst."""
OK: Final = 200


class UpstreamStatus(msgspec.Struct, frozen=True):
    """How an engine does.

    Attributes:
        name: its name in the configuration.
        state: ``up``, ``unhealthy``, ``open``, ``half_open``, ``draining`` or ``leaving`` (no
            longer an upstream).
        outstanding: requests it is working on for this proxy, all its worker processes together.
        outstanding_tokens: what these have to be read and said, estimated.
        drained_by: ``file``, ``admin`` or "".
        last_error: why it is not up, "" if it is.
        models: what it serves, in order; None if it has not told.
    """

    name: str
    state: str
    outstanding: int
    outstanding_tokens: int
    drained_by: str
    last_error: str
    models: list[str] | None = None


class AdminRoutes:
    """Answers operators, for all worker processes of the proxy.

    Args:
        replicas: the engines, as this process sees them.
        siblings: its other worker processes, None where there are none.
    """

    def __init__(self, replicas: ReplicaSet, siblings: Siblings | None) -> None:
        self._replicas = replicas
        self._siblings = siblings

    async def answer(self, exchange: Exchange, policy: PolicyFile | None) -> None:
        """Answer ``GET /admin/upstreams`` or ``POST /admin/upstreams/NAME/drain`` (or ``resume``).

        Raises:
            ApiError: 401, not an operator; 404, no such route or engine; 405, the wrong method;
                503, a worker process has not answered, so that the rest is not all.
        """
        _authorise(exchange, policy)
        rest = exchange.path.removeprefix(ADMIN_PATH)
        name, _, action = rest.removeprefix("/").rpartition("/")
        wanted = "POST" if rest else "GET"
        if rest and not (rest.startswith("/") and name and action in ACTIONS):
            raise _unknown(f"{exchange.path} is not served here")
        require_method(exchange.method, exchange.path, wanted)
        await exchange.read_body(max_bytes=0)
        question: Question = AskUpstreams()
        if rest:
            if self._replicas.drain(name, drained=ACTIONS[action]) is None:
                known = ", ".join(replica.name for replica in self._replicas.replicas)
                raise _unknown(f"there is no upstream {name!r:.80}; there are {known}")
            question = SetDrained(name, ACTIONS[action])
        shown = merged([statuses_of(self._replicas), *await self._others(question)])
        await exchange.answer(OK, msgspec.json.encode({"upstreams": shown}))

    async def _others(self, question: Question) -> list[list[UpstreamStatus]]:
        if self._siblings is None:
            return []
        answers = await self._siblings.ask(question)
        silent = [str(index) for index, answer in answers.items() if answer is None]
        if silent:
            raise ApiError(
                503,
                f"worker {', '.join(silent)} of the proxy does not answer, the others have done "
                "as asked; try again",
                "api_error",
                code="worker_silent",
            )
        return [_statuses.decode(answer) for answer in answers.values() if answer]


def statuses_of(replicas: ReplicaSet) -> list[UpstreamStatus]:
    """How all engines do, those that leave last."""
    shown = [_status(replica) for replica in replicas.replicas]
    return shown + [_status(replica, state=LEAVING) for replica in replicas.leaving]


def merged(seen: Sequence[Sequence[UpstreamStatus]]) -> list[UpstreamStatus]:
    """How engines do by what several processes see of them.

    What is outstanding is added up; of states the one that is furthest from ``up`` counts.
    """
    found: dict[tuple[str, bool], UpstreamStatus] = {}
    for status in chain.from_iterable(seen):
        key = (status.name, status.state == LEAVING)
        other = found.get(key, status)
        if other is status:
            found[key] = status
            continue
        worse = max(status, other, key=lambda each: STATES.index(each.state))
        found[key] = msgspec.structs.replace(
            worse,
            outstanding=status.outstanding + other.outstanding,
            outstanding_tokens=status.outstanding_tokens + other.outstanding_tokens,
        )
    return list(found.values())


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
        models=None if replica.models is None else sorted(replica.models),
    )


def _unknown(message: str) -> ApiError:
    return ApiError(404, message, code="unknown_url")


_statuses: Final = msgspec.json.Decoder(list[UpstreamStatus])
