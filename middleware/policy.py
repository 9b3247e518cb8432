"""What `paceline policy` says of a policy file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from paceline.api_errors import ApiError
from paceline.errors import ConfigError
from paceline.middleware.config import read_policy
from paceline.middleware.identity import said_by
from paceline.policies.rules import Layer, Resolved
from paceline.policies.tenants import PolicyFile, Tenant


def checked(file: Path) -> Iterator[str]:
    """Lines that say what is in a file, and what in it has no effect.

    Raises:
        ConfigError: the file is wrong.
    """
    policy = read_policy(file)
    num_keys = sum(len(tenant.keys) for tenant in policy.tenants)
    num_workloads = sum(len(tenant.workloads) for tenant in policy.tenants)
    yield (
        f"{file}: right: {len(policy.tenants)} tenants with {num_keys} keys and {num_workloads} "
        "workloads of their own"
    )
    for tenant in policy.tenants:
        if not tenant.keys:
            yield f"note: tenant {tenant.name} has no key, nobody can ask as it"
        for line in _without_effect(policy, tenant):
            yield f"note: {line}"


def explained(file: Path, tenant_name: str, workload: str, headers: Sequence[str]) -> Iterator[str]:
    """Lines of each value that holds for a request, and of who said it.

    Args:
        file: the policy file.
        tenant_name: whose request.
        workload: its name, "" for none.
        headers: of the request, as NAME=VALUE.

    Raises:
        ConfigError: the file or a header is wrong, or there is no such tenant.
    """
    policy = read_policy(file)
    tenant = policy.named(tenant_name)
    resolved = policy.resolved(tenant, workload)
    if headers:
        resolved = resolved.narrowed([Layer("the request", _said_by(headers))])
    rows = [
        (name, _shown(value), resolved.origins[name]) for name, value in resolved.values.items()
    ]
    rows.append(("scope", tenant.scope(resolved.policy.sharing), "sharing and group"))
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    for name, value, origin in rows:
        yield f"{name:<{widths[0]}}  {value:<{widths[1]}}  {origin}"
    for line in (*_ignored(resolved), *_unlearned(resolved)):
        yield f"note: {line}"


def schema() -> str:
    """The JSON Schema of policy files, as text."""
    found = PolicyFile.model_json_schema()
    found = {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
    return json.dumps(found, indent=2) + "\n"


def _said_by(headers: Sequence[str]) -> dict[str, Any]:
    named = {}
    for header in headers:
        name, equals, value = header.partition("=")
        if not equals:
            raise ConfigError(f"--header is {header!r}; give NAME=VALUE")
        named[name.strip().lower()] = value
    try:
        return said_by(named)
    except ApiError as error:
        raise ConfigError(str(error)) from error


def _without_effect(policy: PolicyFile, tenant: Tenant) -> Iterator[str]:
    seen: set[str] = set()
    for workload in ("", *tenant.workloads):
        resolved = policy.resolved(tenant, workload)
        for line in (*_ignored(resolved), *_unlearned(resolved)):
            if line not in seen:
                seen.add(line)
                yield line


def _ignored(resolved: Resolved) -> Iterator[str]:
    for layer, name, value in resolved.ignored:
        yield (
            f"{layer} says {name} {_shown(value)}, which would widen what {resolved.origins[name]} "
            f"says; {_shown(resolved.values[name])} holds"
        )


def _unlearned(resolved: Resolved) -> Iterator[str]:
    if resolved.policy.learn and not resolved.policy.record:
        yield (
            f"{resolved.origins['learn']} says learn yes, which has no effect where "
            f"{resolved.origins['record']} says record no: what is not recorded cannot be learned "
            "from"
        )


def _shown(value: Any) -> str:
    if value is None:
        return "no limit"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value) or "nobody"
    return str(value)
