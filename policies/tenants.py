"""Tenants: who may ask, with which keys, sharing with whom.

Parsed from one YAML policy file; no file is read here.
"""

from __future__ import annotations

import secrets
from hashlib import sha256
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from paceline.errors import ConfigError
from paceline.policies.limits import LimitsPolicy

KEY_PREFIX: Final = "pace-"
KEY_BYTES: Final = 32

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
KeyHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Sharing = Literal["private", "group", "global"]
ProtectedField = Literal[
    "cache_salt", "priority", "kv_transfer_params", "ec_transfer_params", "request_id"
]


class MemoryPolicy(BaseModel):
    """What a tenant's draft memory is kept to; every setting only narrows the engines' own.

    Attributes:
        session: whether a conversation's context is kept for its next turn.
        workload: whether each kind of work has a memory of its own.
        tenant: whether one kind of work drafts from the others of the sharing scope.
        capacity: most tokens of each of the scope's logs; None for the engines'.
        retention_seconds: what finished longer ago is forgotten; in a group the shortest holds.
        stored_tokens: most tokens that Redis keeps of the tenant for each model, the newest; None
            for no limit of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    session: bool = True
    workload: bool = True
    tenant: bool = True
    capacity: Annotated[int, Field(ge=2)] | None = None
    retention_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    stored_tokens: Annotated[int, Field(ge=1)] | None = None

    @property
    def tiers(self) -> tuple[str, ...]:
        """Names of the tiers that are on."""
        return tuple(name for name in ("session", "workload", "tenant") if getattr(self, name))


class Tenant(BaseModel):
    """One tenant of the policy file.

    Attributes:
        name: letters, digits, ``_.-``; at most 64 characters.
        keys: hashes of the keys that belong to it (`hash_key`); several allow rotation.
        sharing: who reads what it says, and whose words it reads: ``private``, itself alone;
            ``group``, the tenants of its group; ``global``, every tenant that says ``global``.
            Left out it is ``group`` where a group is named, else ``private``.
        group: name of its group.
        record: False keeps what it says and reads out of every shared memory.
        memory: what its draft memory is kept to.
        speculation: ``off`` has the target answer without drafts.
        allow: protected request fields that its clients may set themselves.
        limits: how much it may ask for.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name
    keys: tuple[KeyHash, ...] = ()
    sharing: Sharing = "private"
    group: Name | None = None
    record: bool = True
    memory: MemoryPolicy = MemoryPolicy()
    speculation: Literal["auto", "off"] = "auto"
    allow: tuple[ProtectedField, ...] = ()
    limits: LimitsPolicy = LimitsPolicy()

    @model_validator(mode="before")
    @classmethod
    def _share_with_a_named_group(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("group") is not None and "sharing" not in data:
            return data | {"sharing": "group"}
        return data

    @model_validator(mode="after")
    def _check_sharing(self) -> Self:
        if (self.sharing == "group") != (self.group is not None):
            found = f"group {self.group!r}" if self.group else "no group"
            raise ValueError(
                f"tenant {self.name!r} has sharing {self.sharing!r} and {found}; name a group with "
                "sharing: group, and with nothing else"
            )
        return self

    @property
    def scope(self) -> str:
        """Name of its sharing scope.

        Salts the target's prefix cache, so that timing tells nothing across scopes.
        """
        if self.sharing == "global":
            return "global"
        return f"group:{self.group}" if self.group else f"tenant:{self.name}"


LOCAL_TENANT: Final = Tenant(name="local")
"""The one tenant when there is no policy file; it needs no key and is served on loopback only."""


class PolicyFile(BaseModel):
    """The whole policy file.

    Attributes:
        tenants: at least one; names and keys are unique.
        admin_keys: hashes of keys that may read metrics from other machines.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    tenants: Annotated[tuple[Tenant, ...], Field(min_length=1)]
    admin_keys: tuple[KeyHash, ...] = ()

    _by_hash: dict[str, Tenant] = PrivateAttr(default_factory=dict)

    @model_validator(mode="after")
    def _check_unique(self) -> Self:
        names = [tenant.name for tenant in self.tenants]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(
                    f"tenant {name!r} appears {names.count(name)} times; names are unique"
                )
        for tenant in self.tenants:
            for hashed in tenant.keys:
                other = self._by_hash.setdefault(hashed, tenant)
                if other is not tenant or tenant.keys.count(hashed) > 1:
                    raise ValueError(
                        f"key {hashed[:15]}... belongs to {other.name!r} and {tenant.name!r}; a "
                        "key names one tenant"
                    )
        return self

    def tenant_of(self, key: str) -> Tenant | None:
        """The tenant that `key` belongs to.

        O(1); compares digests, so that timing tells nothing about keys.
        """
        return self._by_hash.get(hash_key(key))

    def is_admin(self, key: str) -> bool:
        """Whether `key` is an admin key."""
        return hash_key(key) in self.admin_keys


def hash_key(key: str) -> str:
    """What the policy file holds instead of a key: its SHA-256.

    Keys are random, so that no slow hash is needed.
    """
    return f"sha256:{sha256(key.encode()).hexdigest()}"


def new_key() -> tuple[str, str]:
    """A random key of 256 bits and its hash."""
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    return key, hash_key(key)


def parse_policy(text: str, *, name: str) -> PolicyFile:
    """The policy in `text` (YAML).

    Args:
        text: contents of the file.
        name: the file's name, for messages.

    Raises:
        ConfigError: it is not YAML or breaks a rule; names the key, the value and the rule.
    """
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    try:
        return PolicyFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error, name=name)) from error


def describe(error: ValidationError, *, name: str) -> str:
    """Every problem pydantic found, a line each: where, what is there, what is expected."""
    lines = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        # a whole block may hold keys and passwords
        given = problem["input"]
        shown = "" if isinstance(given, dict) else f" (it is {given!r:.80})"
        lines.append(f"{name}: {where}: {problem['msg']}{shown}")
    return "\n".join(lines)
