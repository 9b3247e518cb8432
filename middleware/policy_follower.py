"""Following the policy file."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry

from paceline.middleware.config import read_policy
from paceline.middleware.file_follower import FileFollower
from paceline.policies.tenants import PolicyFile


class PolicyFollower(FileFollower[PolicyFile]):
    """Reads the policy file again when it has changed.

    Args:
        path: the file.
        policy: what is known of it.
        registry: of the proxy's metrics.
    """

    def __init__(self, path: Path, policy: PolicyFile, registry: CollectorRegistry) -> None:
        super().__init__(path, policy, read_policy, "policy", registry)

    @property
    def policy(self) -> PolicyFile:
        """The last one that was right."""
        return self.value

    def is_same(self, value: PolicyFile, other: PolicyFile) -> bool:
        """Whether two policies say the same."""
        return value.model_dump() == other.model_dump()

    def summary(self, value: PolicyFile) -> str:
        """How many tenants it has."""
        return f"{len(value.tenants)} tenants"
