"""`paceline memory`: what a tenant has in Redis, all of it, or nothing any more."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from paceline.errors import JournalError

if TYPE_CHECKING:
    from paceline.caches.embedded_store import EmbeddedStore
    from paceline.caches.governance import MemoryGovernor, ModelMemory
    from paceline.caches.journal_client import Client
    from paceline.caches.records import SequenceRecord

_tenant = click.option("--tenant", required=True, help="Whose memory.")
_session = click.option("--session", default="", help="Only this session of it.")
redis_option = click.option(
    "--redis",
    "redis_url",
    envvar="PACELINE_REDIS_URL",
    help="Redis that holds the memory.  [default: the embedded Valkey]",
)
data_option = click.option(
    "--data",
    "data_folder",
    type=click.Path(path_type=Path),
    help="Folder of the embedded memory.  [default: per user]",
)


@click.group()
def memory() -> None:
    """What tenants have said and read, as Redis remembers it for every engine."""


@memory.command()
@_tenant
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@redis_option
@data_option
def stats(tenant: str, as_json: bool, redis_url: str | None, data_folder: Path | None) -> None:
    """Show how much a tenant has, model by model."""
    with _governor(redis_url, data_folder) as governor:
        found = governor.stats(tenant)
    if as_json:
        click.echo(json.dumps([_described(held) for held in found], indent=2))
        return
    if not found:
        click.echo(f"nothing of {tenant} is remembered")
    for held in found:
        click.echo(
            f"{held.model}: {held.sizes.num_tokens:,} tokens of {held.sizes.num_records:,} "
            f"requests in {held.sizes.num_bytes / 1e6:,.1f} MB ({held.num_segments} sealed "
            f"segments), scopes {', '.join(held.scopes)}"
        )


@memory.command()
@_tenant
@_session
@click.option(
    "--output",
    type=click.File("w", encoding="utf-8", atomic=True),
    default="-",
    help="File to write.  [default: standard output]",
)
@click.option(
    "--tokenizer", help="Hugging Face folder or name: adds the text where the model had it."
)
@redis_option
@data_option
def export(
    tenant: str,
    session: str,
    output: TextIO,
    tokenizer: str | None,
    redis_url: str | None,
    data_folder: Path | None,
) -> None:
    """Write everything that is remembered of a tenant, one JSON object a request."""
    from paceline.caches.tokenizer import TextTokenizer

    text = None if tokenizer is None else TextTokenizer(tokenizer)
    with _governor(redis_url, data_folder) as governor:
        for fingerprint, record in governor.export(tenant, session=session):
            line = _line(fingerprint.model, record)
            if text is not None and text.digest == fingerprint.tokenizer:
                line["text"] = text.decode(record.token_ids)
            output.write(json.dumps(line, ensure_ascii=False) + "\n")


@memory.command()
@_tenant
@_session
@click.option(
    "--before",
    type=click.DateTime(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]),
    help="Only what had begun by then (UTC).  [default: now]",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@redis_option
@data_option
def forget(
    tenant: str,
    session: str,
    before: datetime | None,
    yes: bool,
    redis_url: str | None,
    data_folder: Path | None,
) -> None:
    """Forget a tenant, or one session of it: in Redis now, in every engine within a second.

    There is no way back.
    """
    what = f"session {session} of {tenant}" if session else tenant
    if not yes:
        click.confirm(f"Forget everything that {what} has said and read?", abort=True)
    time = None if before is None else before.replace(tzinfo=UTC).timestamp()
    with _governor(redis_url, data_folder) as governor:
        receipt = governor.forget(tenant=tenant, session=session, before=time)
        if not redis_url:
            _embedded(data_folder).rewrite()
    click.echo(
        f"forgot {what} up to {datetime.fromtimestamp(receipt.before, UTC):%Y-%m-%d %H:%M:%S} UTC: "
        f"{receipt.removed.num_tokens:,} tokens of {receipt.removed.num_records:,} requests, "
        f"{receipt.num_kinds} kind(s) of work; {receipt.num_models} model(s) looked through"
    )


def _embedded(data_folder: Path | None) -> EmbeddedStore:
    from paceline.caches.embedded_store import EmbeddedStore
    from paceline.middleware.serve import STORE_FOLDER, user_data_folder

    return EmbeddedStore((data_folder or user_data_folder()) / STORE_FOLDER)


@contextmanager
def _governor(redis_url: str | None, data_folder: Path | None) -> Iterator[MemoryGovernor]:
    from paceline.caches.governance import MemoryGovernor

    with connected(redis_url, data_folder) as client:
        yield MemoryGovernor(client)


@contextmanager
def connected(redis_url: str | None, data_folder: Path | None) -> Iterator[Client]:
    """A client of the Redis that holds the memory, or of the embedded Valkey in its place.

    Raises:
        JournalError: it cannot be reached, or goes away while it is used.
    """
    from paceline.caches.journal_client import UNREACHABLE, RedisAddress
    from paceline.middleware.serve import memory as open_memory
    from paceline.middleware.serve import user_data_folder

    folder = data_folder or user_data_folder()
    with open_memory(redis_url, folder, lambda line: click.echo(line, err=True)) as url:
        address = RedisAddress(url)
        address.check_access()
        try:
            with closing(address.connect()) as client:
                yield client
        except UNREACHABLE as error:
            raise JournalError(
                f"{address.shown} cannot be used ({error}); check that it runs and may be reached"
            ) from error


def _described(held: ModelMemory) -> dict[str, object]:
    return {
        "model": held.model,
        "tokenizer": held.tokenizer,
        "scopes": list(held.scopes),
        "num_records": held.sizes.num_records,
        "num_tokens": held.sizes.num_tokens,
        "num_bytes": held.sizes.num_bytes,
        "num_segments": held.num_segments,
    }


def _line(model: str, record: SequenceRecord) -> dict[str, object]:
    return {
        "model": model,
        "scope": record.scope,
        "tenant": record.tenant,
        "session": record.session,
        "workload": record.workload,
        "request_id": record.request_id,
        "finished_at": record.finished_at,
        "num_prompt": record.num_prompt,
        "token_ids": record.token_ids.tolist(),
    }
