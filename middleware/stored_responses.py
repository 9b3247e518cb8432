"""Whose the responses are that engines keep (``/v1/responses`` with ``store``).

An engine keeps responses by id alone, for whoever names one. Here it is remembered which tenant
each belongs to and which engine keeps it, so that one tenant can neither read nor cancel nor go on
from another's, and is led back to the engine that has it. Held by one proxy, as the responses are
by one engine: both are lost when theirs ends.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final

from paceline.api_errors import ApiError
from paceline.middleware.identity import Identity
from paceline.middleware.replica import Replica

MAX_STORED: Final = 16_384
ID_PREFIX: Final = "resp_"
OPENING: Final = "opening:"


@dataclass(slots=True, eq=False)
class Stored:
    """A response that an engine may keep.

    Attributes:
        identity: whose it is, and what held for it.
        replica: the engine that has it, None while none was asked.
    """

    identity: Identity
    replica: Replica | None = None


class StoredResponses:
    """Responses by id; the oldest are forgotten first.

    Args:
        max_stored: most that are remembered.
    """

    def __init__(self, max_stored: int = MAX_STORED) -> None:
        self._max_stored = max_stored
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def expect(self, response_id: str, identity: Identity) -> Stored:
        """A response of that id is asked for. O(1)."""
        stored = self._stored[response_id] = Stored(replace(identity, wording=None))
        if len(self._stored) > self._max_stored:
            self._stored.popitem(last=False)
        return stored

    def find(self, response_id: str, tenant: str) -> Stored:
        """A tenant's own response.

        Raises:
            ApiError: 404, it has none of that id, whoever else has.
        """
        stored = self._stored.get(response_id)
        if stored is None or stored.replica is None or stored.identity.tenant.name != tenant:
            raise ApiError(
                404,
                f"Response with id {response_id[:200]!r} not found; it is known to the proxy that "
                "answered with it, until that or its engine ends",
                code="response_not_found",
                param="response_id",
            )
        return stored


def continuing(identity: Identity, earlier: Stored) -> Identity:
    """The request that goes on from an earlier response, in its session unless it names its own."""
    if identity.session and not identity.session.startswith(OPENING):
        return identity
    return replace(identity, session=earlier.identity.session)
