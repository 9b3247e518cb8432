"""Tenants: who may ask, with which keys, sharing with whom.

Parsed from one YAML policy file; no file is read here.
"""

from __future__ import annotations

import secrets
from fnmatch import fnmatchcase
from hashlib import sha256
from typing import Annotated, Final, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from paceline.errors import ConfigError
from paceline.policies.limits import LimitsPolicy
from paceline.policies.rules import (
    FIELDS,
    Layer,
    Name,
    Resolved,
    Rules,
    Sharing,
    WorkloadRules,
    resolve,
    said_in,
)
from paceline.policies.yaml_lines import Lines

KEY_PREFIX: Final = "pace-"
KEY_BYTES: Final = 32
YAML_LOADER: Final = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml's, where PyYAML has it: a policy of a hundred tenants in 3 ms, not in 37."""

KeyHash = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Pattern = Annotated[str, Field(pattern=r"^[A-Za-z0-9*?][A-Za-z0-9_.*?-]{0,63}$")]
ProtectedField = Literal[
    "cache_salt", "priority", "kv_transfer_params", "ec_transfer_params", "request_id"
]


class Tenant(Rules):
    """One tenant of the policy file.

    Attributes:
        name: letters, digits, ``_.-``; at most 64 characters.
        keys: hashes of the keys that belong to it (`hash_key`); several allow rotation.
        group: name of its group. Where one is named, `sharing` is ``group`` unless it says
            otherwise.
        allow: protected request fields that its clients may set themselves.
        workloads: what is said of kinds of work, by name; ``*`` and ``?`` stand for any characters.
            A name that is there counts before patterns, of these the first that fits.
    """

    name: Name
    keys: tuple[KeyHash, ...] = ()
    group: Name | None = None
    allow: tuple[ProtectedField, ...] = ()
    workloads: dict[Pattern, WorkloadRules] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _share_with_a_named_group(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("group") is not None and not data.get("sharing"):
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

    def pattern_of(self, workload: str) -> str | None:
        """The entry of `workloads` that a workload falls under. O(entries)."""
        if workload in self.workloads:
            return workload
        return next((each for each in self.workloads if fnmatchcase(workload, each)), None)

    def scope(self, sharing: Sharing) -> str:
        """Name of the sharing scope that it is in under such a policy.

        Salts the target's prefix cache, so that timing tells nothing across scopes.
        """
        if sharing == "global":
            return "global"
        if sharing == "group" and self.group is not None:
            return f"group:{self.group}"
        return f"tenant:{self.name}"


LOCAL_TENANT: Final = Tenant(name="local")
"""The one tenant when there is no policy file; it needs no key and is served on loopback only."""
LOCAL_LEARNER: Final = Tenant(name="local", learn=True)
"""The same where it has said that a drafter may learn from it."""


class PolicyFile(BaseModel):
    """The whole policy file.

    Attributes:
        defaults: what is said of every tenant.
        tenants: at least one; names and keys are unique.
        admin_keys: hashes of keys that may see the dashboard, read metrics from other machines, and
            drain engines.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    defaults: Rules = Rules()
    tenants: Annotated[tuple[Tenant, ...], Field(min_length=1)]
    admin_keys: tuple[KeyHash, ...] = ()

    _by_hash: dict[str, Tenant] = PrivateAttr(default_factory=dict)
    _resolved: dict[tuple[str, str | None], Resolved] = PrivateAttr(default_factory=dict)

    @field_validator("defaults")
    @classmethod
    def _check_defaults(cls, defaults: Rules) -> Rules:
        if defaults.sharing == "group":
            raise ValueError(
                "defaults.sharing is 'group', but groups are tenants' own; leave it out, or give "
                "private or global"
            )
        return defaults

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

    def named(self, name: str) -> Tenant:
        """The tenant of that name.

        Raises:
            ConfigError: there is none.
        """
        for tenant in self.tenants:
            if tenant.name == name:
                return tenant
        known = ", ".join(tenant.name for tenant in self.tenants)
        raise ConfigError(f"there is no tenant {name!r}; the policy file has {known}")

    def resolved(self, tenant: Tenant, workload: str = "") -> Resolved:
        """What holds for a tenant's workload, and where it comes from.

        O(entries of the tenant's workloads); what they resolve to is kept.
        """
        return self._of(tenant, tenant.pattern_of(workload) if tenant.workloads else None)

    def limits_of(self, tenant: Tenant, workload: str) -> list[tuple[str, LimitsPolicy]]:
        """Limits that bind a request, each with what it counts: "" for all that the tenant asks.

        Those of a workload hold beside the tenant's, for all under one entry of `Tenant.workloads`.
        """
        found = []
        of_tenant = self._of(tenant, None).policy.limits
        if not of_tenant.is_none:
            found.append(("", of_tenant))
        pattern = tenant.pattern_of(workload) if tenant.workloads else None
        own = None if pattern is None else tenant.workloads[pattern].limits
        if pattern is not None and own is not None and not own.is_none:
            found.append((pattern, own))
        return found

    def _of(self, tenant: Tenant, pattern: str | None) -> Resolved:
        key = tenant.name, pattern
        found = self._resolved.get(key)
        if found is None:
            found = self._resolved[key] = resolved(tenant, pattern, self.defaults)
        return found

    def tenant_of(self, key: str) -> Tenant | None:
        """The tenant that `key` belongs to.

        O(1); compares digests, so that timing tells nothing about keys.
        """
        return self._by_hash.get(hash_key(key))

    def is_admin(self, key: str) -> bool:
        """Whether `key` is an admin key."""
        return hash_key(key) in self.admin_keys


def resolved(tenant: Tenant, pattern: str | None = None, defaults: Rules | None = None) -> Resolved:
    """What holds for a tenant, or in the workloads under an entry of `Tenant.workloads`."""
    layers = [] if defaults is None else [Layer("defaults", said_in(defaults))]
    name = f"tenant {tenant.name}"
    own = {key: value for key, value in said_in(tenant).items() if key in FIELDS}
    narrowing = []
    if pattern is not None:
        said = said_in(tenant.workloads[pattern])
        narrowing.append(Layer(f"{name}, workload {pattern}", said))
    return resolve([*layers, Layer(name, own)], narrowing)


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
        loader = YAML_LOADER(text)
        try:
            node = loader.get_single_node()
            lines = Lines(node)
            data = None if node is None else loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not YAML: {error}") from error
    if lines.repeated:
        line, key = lines.repeated
        raise ConfigError(f"{name}: line {line}: {key!r} is there twice; keep one of the two")
    try:
        return PolicyFile.model_validate(data)
    except ValidationError as error:
        raise ConfigError(describe(error, name=name, lines=lines)) from error


def describe(error: ValidationError, *, name: str, lines: Lines | None = None) -> str:
    """Every problem pydantic found, a line each: where, what is there, what is expected.

    Args:
        error: pydantic's.
        name: the file's name.
        lines: of the file, if they are to be named.
    """
    found = []
    for problem in error.errors(include_url=False):
        where = ".".join(str(part) for part in problem["loc"]) or "the file"
        if lines is not None:
            where = f"line {lines.of(problem['loc'])}: {where}"
        # a whole block may hold keys and passwords
        given = problem["input"]
        shown = "" if isinstance(given, dict) else f" (it is {given!r:.80})"
        found.append(f"{name}: {where}: {problem['msg']}{shown}")
    return "\n".join(found)
