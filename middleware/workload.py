"""`paceline workload`: the kinds of work that proxies have found by the wording of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from paceline.errors import RecordError
from paceline.middleware.memory import connected, data_option, redis_option

if TYPE_CHECKING:
    from paceline.caches.workload_store import StoredKinds


@dataclass(frozen=True, slots=True, kw_only=True)
class ShownKind:
    """One kind of work, as it is shown.

    Attributes:
        scope: sharing scope that knows it.
        tenants: whose requests the scope's kinds are made of.
        name: the workload's name.
        told_by: ``prompt``, system prompt or tools, or ``text``, the first message.
        requests: requests counted.
        texts: different texts among them.
        first_seen: Unix time of its first text.
        last_seen: Unix time of its last request.
        examples: fingerprints of its latest texts.
        aliases: names of kinds that were merged into it.
    """

    scope: str
    tenants: tuple[str, ...]
    name: str
    told_by: str
    requests: int
    texts: int
    first_seen: float
    last_seen: float
    examples: tuple[str, ...]
    aliases: tuple[str, ...]


@click.group()
def workload() -> None:
    """Kinds of work, as proxies with `workloads` in their configuration have found them."""


@workload.command(name="list")
@click.option("--tenant", default="", help="Only kinds of scopes that this tenant shares in.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@redis_option
@data_option
def list_kinds(tenant: str, as_json: bool, redis_url: str | None, data_folder: Path | None) -> None:
    """Show each kind: requests, when it was seen last, fingerprints of examples; never a text."""
    from paceline.caches.workload_store import WorkloadStore

    with connected(redis_url, data_folder) as client:
        shown = [
            kind
            for stored in WorkloadStore(client).stored(tenant=tenant)
            for kind in _shown(stored)
        ]
    if as_json:
        click.echo(json.dumps([asdict(kind) for kind in shown], indent=2))
        return
    if not shown:
        click.echo(f"no kinds of work are known{f' of {tenant}' if tenant else ''}")
    for kind in shown:
        seen = datetime.fromtimestamp(kind.last_seen, UTC)
        click.echo(
            f"{kind.scope}  {kind.name}  {kind.requests:,} requests of {kind.texts:,} texts "
            f"({kind.told_by}), last {seen:%Y-%m-%d %H:%M:%S} UTC"
        )
        click.echo(f"    examples {' '.join(kind.examples)}")
        if kind.aliases:
            click.echo(f"    also named {' '.join(kind.aliases)}")


def _shown(stored: StoredKinds) -> Iterator[ShownKind]:
    """The kinds of a scope, most used first; those of a newer Paceline are left out."""
    from paceline.policies.workload_clusters import TEXT, decode_cluster

    found: list[ShownKind] = []
    for name, record in stored.records.items():
        try:
            cluster = decode_cluster(record)
        except RecordError as error:
            click.echo(f"{stored.scope}  {name}: {error}", err=True)
            continue
        used = stored.use.get(name)
        found.append(
            ShownKind(
                scope=stored.scope,
                tenants=stored.tenants,
                name=name,
                told_by="text" if cluster.parts >> TEXT & 1 else "prompt",
                requests=used.num_requests if used else 0,
                texts=cluster.num_texts,
                first_seen=cluster.first_at,
                last_seen=max(cluster.last_at, used.last_at if used else 0.0),
                examples=tuple(e.rpartition("-")[2] for e in cluster.examples),
                aliases=tuple(sorted(a for a, by in stored.aliases.items() if by == name)),
            )
        )
    yield from sorted(found, key=lambda kind: (-kind.requests, kind.name))
