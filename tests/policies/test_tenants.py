"""The policy file: what it may say, and what it says about mistakes."""

from __future__ import annotations

import pytest
import yaml

from paceline.errors import ConfigError
from paceline.policies import tenants
from paceline.policies.limits import LimitsPolicy
from paceline.policies.tenants import PolicyFile, hash_key, new_key, parse_policy

HASH_A, HASH_B = hash_key("a"), hash_key("b")


def policy(text: str) -> str:
    return text.replace("HASH_A", HASH_A).replace("HASH_B", HASH_B)


def scope_of(parsed: PolicyFile, name: str) -> str:
    tenant = parsed.named(name)
    return tenant.scope(parsed.resolved(tenant).policy.sharing)


def test_keys_name_tenants() -> None:
    """Each key leads to its tenant; an unknown one to nobody; admin keys to no tenant."""
    parsed = parse_policy(
        policy(
            """
            tenants:
              - {name: shop, keys: [HASH_A], group: retail}
              - {name: bank, record: false, speculation: "off"}
            admin_keys: [HASH_B]
            """
        ),
        name="p.yaml",
    )
    shop = parsed.tenant_of("a")
    assert shop is not None
    assert shop.name == "shop"
    assert [scope_of(parsed, name) for name in ("shop", "bank")] == ["group:retail", "tenant:bank"]
    assert parsed.tenant_of("b") is None
    assert parsed.is_admin("b")
    assert not parsed.is_admin("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tenants: [", "is not YAML"),
        ("tenants: []", "tenants"),
        ("{}", "tenants"),
        ("just text", "the file"),
        ("tenants: [{name: 'a b'}]", r"tenants\.0\.name.*a b"),
        ("tenants: [{name: a, colour: red}]", r"tenants\.0\.colour.*red"),
        ("tenants: [{name: a, keys: [secret]}]", r"tenants\.0\.keys\.0"),
        ("tenants: [{name: a}, {name: a}]", "'a' appears 2 times"),
        ("tenants: [{name: a, keys: [HASH_A]}, {name: b, keys: [HASH_A]}]", "'a' and 'b'"),
        ("tenants: [{name: a, keys: [HASH_A, HASH_A]}]", "a key names one tenant"),
        ("tenants: [{name: a, speculation: maybe}]", r"speculation.*maybe"),
        ("tenants: [{name: a, allow: [everything]}]", r"allow\.0.*everything"),
        ("tenants: [{name: a, sharing: public}]", r"sharing.*public"),
        ("tenants: [{name: a, sharing: group}]", "sharing 'group' and no group"),
        ("tenants: [{name: a, sharing: private, group: g}]", "'private' and group 'g'"),
        ("tenants: [{name: a, sharing: global, group: g}]", "'global' and group 'g'"),
        ("tenants: [{name: a, memory: {capacity: 1}}]", r"memory\.capacity"),
        ("tenants: [{name: a, memory: {stored_tokens: 0}}]", r"memory\.stored_tokens"),
        ("tenants: [{name: a, memory: {retention_seconds: 0}}]", r"memory\.retention_seconds"),
        ("tenants: [{name: a, memory: {cellar: true}}]", r"memory\.cellar"),
        ("tenants: [{name: a, speculation: {draft_tokens: 129}}]", r"draft_tokens.*129"),
        ("tenants: [{name: a, speculation: {sources: [oracle]}}]", r"sources\.0.*oracle"),
        ("tenants: [{name: a, priority: -1}]", r"priority.*-1"),
        ("tenants: [{name: a, side_channel: shut}]", r"side_channel.*shut"),
        ("tenants: [{name: a, workloads: {'a b': {}}}]", r"workloads.*a b"),
        ("tenants: [{name: a, workloads: {w: {keys: []}}}]", r"workloads\.w\.keys"),
        (
            "tenants: [{name: a, workloads: {w: {memory: {capacity: 9}}}}]",
            r"memory\.capacity holds for all of a tenant's memory",
        ),
        ("tenants: [{name: a, drafter: 'my own'}]", r"drafter.*my own"),
        (
            "tenants: [{name: a, workloads: {w: {drafter: b}}}]",
            "a drafter is a tenant's; set it for the tenant",
        ),
        ("{defaults: {sharing: group}, tenants: [{name: a}]}", "groups are tenants' own"),
        ("{defaults: {name: a}, tenants: [{name: a}]}", r"defaults\.name"),
    ],
)
def test_mistakes_are_named(text: str, message: str) -> None:
    """A wrong file is refused with the file's name, the place and the value."""
    with pytest.raises(ConfigError, match=message) as error:
        parse_policy(policy(text), name="p.yaml")
    assert "p.yaml" in str(error.value)


def test_sharing_is_private_unless_the_file_says_otherwise() -> None:
    """A named group is enough to share with it; global has to be said."""
    parsed = parse_policy(
        """
        tenants:
          - {name: a}
          - {name: b, group: g}
          - {name: c, sharing: group, group: g}
          - {name: d, sharing: global, memory: {tenant: false, retention_seconds: 3600}}
        """,
        name="p.yaml",
    )
    assert [scope_of(parsed, name) for name in "abcd"] == [
        "tenant:a",
        "group:g",
        "group:g",
        "global",
    ]
    policies = [parsed.resolved(tenant).policy for tenant in parsed.tenants]
    assert [each.sharing for each in policies] == ["private", "group", "group", "global"]
    assert policies[3].memory.tiers == ("session", "workload")
    assert policies[0].memory.tiers == ("session", "workload", "tenant")


def test_new_keys_are_long_different_and_match_their_hash() -> None:
    """A new key has at least 256 random bits and its hash is what the file wants."""
    (first, hashed), (second, _) = new_key(), new_key()
    assert first != second
    assert len(first) >= 43
    assert hash_key(first) == hashed
    parse_policy(f"tenants: [{{name: a, keys: ['{hashed}']}}]", name="p")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("tenants:\n  - name: a\n    record: perhaps\n", 3),
        ("tenants:\n  - name: a\n  - name: b\n    memory:\n      capacity: 1\n", 5),
        ("tenants:\n  - name: a\n    colour: red\n", 3),
        ("defaults:\n  priority: 1001\ntenants: [{name: a}]\n", 2),
        ("tenants:\n  - keys: []\n", 2),
        ("admin_keys: []\n", 1),
        ("tenants:\n  - name: a\n    record: true\n    name: b\n", 4),
        ("tenants: [{name: a}]\n\ntenants: [{name: b}]\n", 3),
    ],
)
@pytest.mark.parametrize("loader", [yaml.SafeLoader, yaml.CSafeLoader])
def test_mistakes_are_found_in_their_line(
    text: str, line: int, loader: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, unknown and missing fields, and keys that are there twice; with either reader."""
    monkeypatch.setattr(tenants, "YAML_LOADER", loader)
    with pytest.raises(ConfigError, match=rf"p\.yaml: line {line}: "):
        parse_policy(text, name="p.yaml")


WORKLOADS = """
defaults:
  speculation: {draft_tokens: 12}
  learn: true
tenants:
  - name: a
    priority: 2
    workloads:
      sql-*: {speculation: {sources: [memory], draft_tokens: 99}}
      sql-night: {speculation: off, priority: 7, record: false}
      "*-chat": {learn: false, priority: 1}
  - {name: b, learn: false, workloads: {w: {learn: true}}}
  - {name: c}
"""


def test_a_workload_narrows_what_its_tenant_says() -> None:
    """Exact names before patterns, these in order; nothing is widened."""
    parsed = parse_policy(WORKLOADS, name="p.yaml")
    a, b, c = parsed.tenants

    def of(workload: str) -> tuple[str, int, bool, bool]:
        policy = parsed.resolved(a, workload).policy
        return str(policy.speculation), policy.priority, policy.record, policy.learn

    assert of("") == of("other") == ("memory,model; draft_tokens=12", 2, True, True)
    assert of("sql-day") == of("sql-chat") == ("memory; draft_tokens=12", 2, True, True)
    assert of("sql-night") == ("off", 7, False, True)
    assert of("fine-chat") == ("memory,model; draft_tokens=12", 2, True, False)
    assert not parsed.resolved(b, "w").policy.learn
    assert parsed.resolved(c).policy.learn
    with pytest.raises(ConfigError, match="no tenant 'd'; the policy file has a, b, c"):
        parsed.named("d")


def test_limits_of_a_workload_hold_beside_its_tenants() -> None:
    """The tenant's are the smaller of the defaults' and its own; a pattern's count all under it."""
    parsed = parse_policy(
        """
        defaults: {limits: {requests_per_minute: 100, concurrency: 8}}
        tenants:
          - name: a
            limits: {requests_per_minute: 500, tokens_per_minute: 9000, concurrency: 4}
            workloads:
              sql-*: {limits: {concurrency: 2}}
              quiet: {record: false}
          - {name: b}
        """,
        name="p.yaml",
    )
    a, b = parsed.tenants
    whole = LimitsPolicy(requests_per_minute=100, tokens_per_minute=9000, concurrency=4)
    assert parsed.limits_of(a, "") == parsed.limits_of(a, "quiet") == [("", whole)]
    part = "sql-*", LimitsPolicy(concurrency=2)
    assert parsed.limits_of(a, "sql-1") == parsed.limits_of(a, "sql-2") == [("", whole), part]
    assert parsed.limits_of(b, "sql-1") == [
        ("", LimitsPolicy(requests_per_minute=100, concurrency=8))
    ]
    assert parsed.resolved(a, "sql-1").policy.limits.concurrency == 2
    nothing = parse_policy("tenants: [{name: a}]", name="p.yaml")
    assert nothing.limits_of(nothing.tenants[0], "w") == []


def test_everybodys_drafter_has_one_name() -> None:
    """What policies call it is what records and the registry do."""
    from paceline.caches.records import SHARED_GROUP
    from paceline.policies.rules import SHARED_DRAFTER

    assert SHARED_DRAFTER == SHARED_GROUP
