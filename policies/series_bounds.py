"""How many series a metric may have, whatever names clients invent."""

from __future__ import annotations

from typing import Final

OTHER: Final = "other"
"""Stands for every tenant, or workload of a tenant, beyond the bounds."""
MAX_TENANTS: Final = 64
MAX_WORKLOADS: Final = 12


class SeriesBounds:
    """Keeps the pairs of tenant and workload that are told apart to a bounded number.

    The first names that come keep their own series until the process ends, so that no counter ever
    falls. One tenant's workloads take no room from another's. Not thread-safe.

    Args:
        max_tenants: tenants told apart.
        max_workloads: workloads of each that are.
    """

    def __init__(self, max_tenants: int = MAX_TENANTS, max_workloads: int = MAX_WORKLOADS) -> None:
        self._max_tenants = max_tenants
        self._max_workloads = max_workloads
        self._known: dict[str, set[str]] = {}

    def labels(self, tenant: str, workload: str) -> tuple[str, str]:
        """The labels of a tenant's workload: its own names, or `OTHER` for what is beyond. O(1)."""
        known = self._known.get(tenant)
        if known is None:
            if len(self._known) >= self._max_tenants:
                return OTHER, OTHER
            known = self._known[tenant] = set()
        if workload not in known:
            if len(known) >= self._max_workloads:
                return tenant, OTHER
            known.add(workload)
        return tenant, workload
