"""Who asks: from key and headers to tenant, session and workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from typing import Final

from paceline.api_errors import ApiError
from paceline.middleware.config import is_loopback
from paceline.middleware.request_body import BodyView, opening_of, text_of
from paceline.policies.tenants import LOCAL_TENANT, MemoryPolicy, PolicyFile, Tenant
from paceline.policies.workload import WORKLOAD_HEADER, session_of, workload_of

SALT_BYTES: Final = 16
RECORD_HEADER: Final = "x-paceline-record"


@dataclass(frozen=True, slots=True)
class Wording:
    """What tells the kind of work where no header does, as it stands in the body.

    Attributes:
        system: the system prompt.
        tools: the tool schemas.
        opening: the first user message, where there is neither.
    """

    system: bytes
    tools: bytes
    opening: bytes

    @property
    def num_bytes(self) -> int:
        """Size of it all."""
        return len(self.system) + len(self.tools) + len(self.opening)

    def parts(self) -> tuple[str, str, str]:
        """The same as text. O(bytes)."""
        tools = self.tools.decode("utf-8", "replace")
        return text_of(self.system), tools, text_of(self.opening)


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is.

    Attributes:
        tenant: who pays.
        session: id of the conversation, "" if nothing tells.
        workload: name of the kind of work, "" if nothing tells.
        record: whether anything may remember it.
        wording: what its workload can be found by; None where a header names it, or nothing tells.
    """

    tenant: Tenant
    session: str
    workload: str
    record: bool
    wording: Wording | None = field(default=None, repr=False, compare=False)

    def xargs(self) -> dict[str, str | int | float]:
        """The identity as flat extra arguments for the engine's worker."""
        fields: dict[str, str | int | float] = {
            "paceline_tenant": self.tenant.name,
            "paceline_workload": self.workload,
            "paceline_session": self.session,
            "paceline_record": int(self.record),
        }
        if self.tenant.group:
            fields["paceline_group"] = self.tenant.group
        if self.tenant.sharing == "global":
            fields["paceline_sharing"] = "global"
        memory = self.tenant.memory
        if memory.tiers != MemoryPolicy().tiers:
            fields["paceline_tiers"] = ",".join(memory.tiers)
        if memory.capacity is not None:
            fields["paceline_capacity"] = memory.capacity
        if memory.retention_seconds is not None:
            fields["paceline_retention_seconds"] = memory.retention_seconds
        if memory.stored_tokens is not None:
            fields["paceline_stored_tokens"] = memory.stored_tokens
        if self.tenant.speculation != "auto":
            fields["paceline_speculation"] = self.tenant.speculation
        return fields

    def cache_salt(self) -> str:
        """Salt of the target's prefix cache.

        One sharing scope never sees by timing what another has cached.
        """
        return _salt_of(self.tenant.scope)


def authenticate(policy: PolicyFile | None, headers: Mapping[str, str], client_host: str) -> Tenant:
    """The tenant that a request's key belongs to.

    Args:
        policy: None when there is no policy file; then everybody on this machine is the local
            tenant.
        headers: request headers, names in lower case.
        client_host: address the request came from.

    Raises:
        ApiError: 401, no key or an unknown one; 403, no policy file and not on this machine.
    """
    if policy is None:
        if not is_loopback(client_host):
            raise ApiError(
                403,
                "this proxy has no policy file and serves its own machine only; write a policy "
                "file with tenants and keys",
                code="forbidden",
            )
        return LOCAL_TENANT
    key = key_of(headers)
    if not key:
        raise ApiError(
            401,
            "no API key was given; send it as Authorization: Bearer KEY or x-api-key: KEY",
            code="invalid_api_key",
        )
    tenant = policy.tenant_of(key)
    if tenant is None:
        raise ApiError(
            401,
            "the API key is not one of this proxy's; ask its operator for one",
            code="invalid_api_key",
        )
    return tenant


def key_of(headers: Mapping[str, str]) -> str:
    """The key a request carries, "" if none."""
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and credentials:
        return credentials.strip()
    return headers.get("x-api-key", "")


def identify(tenant: Tenant, headers: Mapping[str, str], view: BodyView) -> Identity:
    """The tenant's request with its session and workload.

    O(body) unless session and workload are named explicitly.
    """
    header = headers.get(WORKLOAD_HEADER)
    system, user = opening_of(view)
    tools = bytes(view.tools)
    workload = workload_of(header=header, system=system, tools=tools)
    told_by = Wording(system, tools, b"" if workload else user)
    return Identity(
        tenant,
        session_of(cache_key=view.cache_key, headers=headers, opening=(system, user)),
        workload,
        tenant.record and may_record(headers.get(RECORD_HEADER)),
        told_by if told_by.num_bytes and workload != header else None,
    )


def may_record(header: str | None) -> bool:
    """Whether a request's own `RECORD_HEADER` lets it be remembered.

    It can only take away: absent or ``on`` leaves it to the policy file, everything else is off.
    """
    return header is None or header.strip().lower() == "on"


@lru_cache(maxsize=4096)
def _salt_of(scope: str) -> str:
    return blake2b(scope.encode(), digest_size=SALT_BYTES).hexdigest()
