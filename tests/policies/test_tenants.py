"""The policy file: what it may say, and what it says about mistakes."""

from __future__ import annotations

import pytest

from paceline.errors import ConfigError
from paceline.policies.tenants import hash_key, new_key, parse_policy

HASH_A, HASH_B = hash_key("a"), hash_key("b")


def policy(text: str) -> str:
    return text.replace("HASH_A", HASH_A).replace("HASH_B", HASH_B)


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
    assert (shop.name, shop.scope) == ("shop", "group:retail")
    assert parsed.tenants[1].scope == "tenant:bank"
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
    assert [tenant.scope for tenant in parsed.tenants] == [
        "tenant:a",
        "group:g",
        "group:g",
        "global",
    ]
    assert [tenant.sharing for tenant in parsed.tenants] == ["private", "group", "group", "global"]
    assert parsed.tenants[3].memory.tiers == ("session", "workload")
    assert parsed.tenants[0].memory.tiers == ("session", "workload", "tenant")


def test_new_keys_are_long_different_and_match_their_hash() -> None:
    """A new key has at least 256 random bits and its hash is what the file wants."""
    (first, hashed), (second, _) = new_key(), new_key()
    assert first != second
    assert len(first) >= 43
    assert hash_key(first) == hashed
    parse_policy(f"tenants: [{{name: a, keys: ['{hashed}']}}]", name="p")
