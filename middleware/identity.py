"""Who asks: from key and headers to tenant, session and workload."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final

from paceline.api_errors import ApiError
from paceline.middleware.config import is_loopback
from paceline.middleware.request_body import BodyView, opening_of, text_of
from paceline.policies.rules import (
    DRAFT_SOURCES,
    FIELDS,
    MAX_DRAFT_TOKENS,
    MAX_PRIORITY,
    SHARED_DRAFTER,
    SHARING,
    SIDE_CHANNEL,
    EffectivePolicy,
    Layer,
    Resolved,
)
from paceline.policies.tenants import LOCAL_LEARNER, LOCAL_TENANT, PolicyFile, Tenant, resolved
from paceline.policies.workload import WORKLOAD_HEADER, session_of, workload_of

SALT_BYTES: Final = 16
OWN_HEADERS: Final = "x-paceline-"
EXPLAIN_HEADER: Final = "x-paceline-explain"
"""``on`` has the answer's headers say what holds for the request."""
LOCAL_POLICY: Final = resolved(LOCAL_TENANT)
LEARNING_POLICY: Final = resolved(LOCAL_LEARNER)


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
    """Whose request it is, and what holds for it.

    Attributes:
        tenant: who pays.
        session: id of the conversation, "" if nothing tells.
        workload: name of the kind of work, "" if nothing tells.
        resolved: its policy, and where that comes from.
        holding: what would hold under another name of the workload.
        wording: what its workload can be found by; None where a header names it, or nothing tells.
    """

    tenant: Tenant
    session: str
    workload: str
    resolved: Resolved
    holding: Callable[[str], Resolved] = field(repr=False, compare=False)
    wording: Wording | None = field(default=None, repr=False, compare=False)

    @property
    def policy(self) -> EffectivePolicy:
        """What holds for the request."""
        return self.resolved.policy

    def renamed(self, workload: str) -> Identity:
        """The same request under another name of its kind of work."""
        return replace(self, workload=workload, resolved=self.holding(workload))

    def xargs(self) -> dict[str, str | int | float]:
        """The identity as flat extra arguments for the engine's worker."""
        policy = self.policy
        fields: dict[str, str | int | float] = {
            "paceline_tenant": self.tenant.name,
            "paceline_workload": self.workload,
            "paceline_session": self.session,
            "paceline_record": int(policy.record),
        }
        if policy.is_learned_from:
            fields["paceline_learn"] = 1
        if policy.drafter != SHARED_DRAFTER:
            fields["paceline_drafter"] = policy.drafter
        if policy.sharing == "group" and self.tenant.group:
            fields["paceline_group"] = self.tenant.group
        if policy.sharing == "global":
            fields["paceline_sharing"] = "global"
        memory = policy.memory
        if not (memory.session and memory.workload and memory.tenant):
            fields["paceline_tiers"] = ",".join(memory.tiers)
        for name in ("capacity", "retention_seconds", "stored_tokens"):
            if (most := getattr(memory, name)) is not None:
                fields[f"paceline_{name}"] = most
        speculation = policy.speculation
        if speculation.is_off:
            fields["paceline_speculation"] = "off"
            return fields
        if speculation.sources != DRAFT_SOURCES:
            fields["paceline_draft_sources"] = ",".join(speculation.sources)
        if speculation.draft_tokens is not None:
            fields["paceline_draft_tokens"] = speculation.draft_tokens
        return fields

    def cache_salt(self) -> str:
        """Salt of the target's prefix cache.

        One sharing scope never sees by timing what another has cached.
        """
        return _salt_of(self.tenant.scope(self.policy.sharing))

    def explained(self) -> list[tuple[bytes, bytes]]:
        """Response headers that say what holds for the request, and who said so."""
        origins = self.resolved.origins
        shown = {
            "tenant": self.tenant.name,
            "workload": self.workload,
            "record": "on" if self.policy.record else "off",
            "record-from": origins["record"],
            "learn": "on" if self.policy.is_learned_from else "off",
            "sharing": self.policy.sharing,
            "speculation": str(self.policy.speculation),
            "speculation-from": ", ".join(
                dict.fromkeys(
                    origins[f"speculation.{name}"] for name in ("sources", "draft_tokens")
                )
            ),
        }
        return [
            (f"{OWN_HEADERS}{name}".encode(), value.encode("latin-1", "replace"))
            for name, value in shown.items()
        ]


def authenticate(
    policy: PolicyFile | None,
    headers: Mapping[str, str],
    client_host: str,
    *,
    local: Tenant = LOCAL_TENANT,
) -> Tenant:
    """The tenant that a request's key belongs to.

    Args:
        policy: None when there is no policy file; then everybody on this machine is the local
            tenant.
        headers: request headers, names in lower case.
        client_host: address the request came from.
        local: that tenant.

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
        return local
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


def identify(
    policy: PolicyFile | None, tenant: Tenant, headers: Mapping[str, str], view: BodyView
) -> Identity:
    """The tenant's request with its session, its workload and what holds for it.

    O(body) unless session and workload are named explicitly.

    Raises:
        ApiError: 400, a header of ours cannot be understood.
    """
    system, user = opening_of(view)
    header, tools = headers.get(WORKLOAD_HEADER), bytes(view.tools)
    workload = workload_of(header=header, system=system, tools=tools)
    told_by = Wording(system, tools, b"" if workload else user)
    local = LEARNING_POLICY if tenant is LOCAL_LEARNER else LOCAL_POLICY
    said = said_by(headers)

    def holding(name: str) -> Resolved:
        configured = local if policy is None else policy.resolved(tenant, name)
        return configured.narrowed([Layer("the request", said)]) if said else configured

    return Identity(
        tenant,
        session_of(
            cache_key=view.cache_key,
            headers=headers,
            opening=(system, user),
            end_user=view.end_user,
        ),
        workload,
        holding(workload),
        holding,
        told_by if told_by.num_bytes and workload != header else None,
    )


def said_by(headers: Mapping[str, str]) -> dict[str, Any]:
    """What a request's own headers say of its policy, by dotted name. O(headers).

    Raises:
        ApiError: 400, one of ours is not known, or its value is not.
    """
    said: dict[str, Any] = {}
    for header, value in headers.items():
        if not header.startswith(OWN_HEADERS) or header in (WORKLOAD_HEADER, EXPLAIN_HEADER):
            continue
        name = header.removeprefix(OWN_HEADERS).replace("-", "_")
        if name not in SAYABLE:
            known = ", ".join(OWN_HEADERS + each.replace("_", "-") for each in SAYABLE)
            raise ApiError(
                400,
                f"the header {header} is not known; known are {WORKLOAD_HEADER}, {EXPLAIN_HEADER}, "
                f"{known}",
                code="unknown_header",
            )
        said_of, parse, wanted = SAYABLE[name]
        try:
            read = parse(value.strip().lower())
        except (KeyError, ValueError):
            raise ApiError(
                400, f"the header {header} is {value!r:.80}; give {wanted}", code="invalid_header"
            ) from None
        if read is not None and said_of not in said:
            said[said_of] = read
        elif read is not None:
            said[said_of] = FIELDS[said_of](said[said_of], read)
    return said


def _record(value: str) -> bool | None:
    """It can only take away: ``on`` leaves it to the policy file, everything else is off."""
    return None if value == "on" else False


def _one_of(value: str, known: Sequence[str]) -> str:
    if value not in known:
        raise ValueError
    return value


def _number(value: str, most: int) -> int:
    number = int(value)
    if not 0 <= number <= most:
        raise ValueError
    return number


def _sources(value: str) -> tuple[str, ...]:
    asked = [each.strip() for each in value.split(",") if each.strip()]
    if not set(asked) <= set(DRAFT_SOURCES):
        raise ValueError
    return tuple(source for source in DRAFT_SOURCES if source in asked)


SAYABLE: Final[Mapping[str, tuple[str, Callable[[str], Any], str]]] = {
    "record": ("record", _record, "on or off"),
    "learn": ("learn", {"on": None, "off": False}.__getitem__, "on or off"),
    "speculation": (
        "speculation.sources",
        {"auto": None, "off": ()}.__getitem__,
        "auto or off",
    ),
    "draft_sources": ("speculation.sources", _sources, "memory, model, or both with a comma"),
    "draft_tokens": (
        "speculation.draft_tokens",
        lambda value: _number(value, MAX_DRAFT_TOKENS),
        f"a number from 0 to {MAX_DRAFT_TOKENS}",
    ),
    "sharing": (
        "sharing",
        lambda value: _one_of(value, SHARING),
        f"one of {', '.join(SHARING)}",
    ),
    "priority": (
        "priority",
        lambda value: _number(value, MAX_PRIORITY),
        f"a number from 0 to {MAX_PRIORITY}",
    ),
    "side_channel": (
        "side_channel",
        lambda value: _one_of(value, SIDE_CHANNEL),
        f"one of {', '.join(SIDE_CHANNEL)}",
    ),
}
"""Headers behind `OWN_HEADERS`: what each narrows, how it is read, what it may be."""


@lru_cache(maxsize=4096)
def _salt_of(scope: str) -> str:
    return blake2b(scope.encode(), digest_size=SALT_BYTES).hexdigest()
