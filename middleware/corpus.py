"""`paceline corpus`: text of your own to draft from, per tenant or group."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import click

from paceline.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from paceline.caches.corpus import CorpusManifest, CorpusStore, CorpusWriter
    from paceline.caches.text_source import TextSource
    from paceline.caches.tokenizer import TextTokenizer

STORE_VARIABLE: Final = "PACELINE_CORPUS_DIR"
LOCAL_TENANT: Final = "local"
PACKAGED: Final = "packaged SmolLM2"
BATCH_CHARACTERS: Final = 1_000_000
"""Text tokenised in one call: enough to keep every core busy, little beside a segment."""

_tenant = click.option(
    "--tenant", help=f"Tenant whose requests may draft from it.  [default: {LOCAL_TENANT}]"
)
_group = click.option("--group", help="Sharing group whose requests may draft from it.")
_store = click.option(
    "--store",
    envvar=STORE_VARIABLE,
    type=click.Path(path_type=Path),
    help=f"Folder of the corpora, also {STORE_VARIABLE}.  [default: per user]",
)


@click.group()
def corpus() -> None:
    """Text that drafts may come from before anybody has said it: code, documents, logs."""


@corpus.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the corpus; one of that name is replaced.")
@click.option(
    "--tokenizer",
    "tokenizer_source",
    help="The target's tokenizer: its Hugging Face folder or name.  [default: the packaged "
    "SmolLM2-135M's]",
)
@_tenant
@_group
@click.option(
    "--glob", "patterns", multiple=True, help="Take only files like this, as '*.py'; repeatable."
)
@click.option(
    "--field",
    "text_field",
    help="Field of JSON lines with the text or chat messages.  [default: messages, text, content]",
)
@click.option(
    "--max-file-mb",
    default=8.0,
    show_default=True,
    help="Skip larger text files and longer JSON lines.",
)
@click.option(
    "--segment-tokens",
    type=int,
    help="Tokens of one segment; building takes about 45 bytes each.  [default: 33554432]",
)
@_store
def add(
    sources: tuple[Path, ...],
    name: str,
    tokenizer_source: str | None,
    tenant: str | None,
    group: str | None,
    patterns: tuple[str, ...],
    text_field: str | None,
    max_file_mb: float,
    segment_tokens: int | None,
    store: Path | None,
) -> None:
    """Build a corpus from SOURCES: folders or files of text, code and JSON lines.

    Nothing changes until it is whole; running it again replaces it.
    """
    from paceline.caches.corpus import DEFAULT_SEGMENT_TOKENS
    from paceline.caches.text_source import TextSource

    started = time.monotonic()
    scope = scope_name(tenant, group)
    opened = open_store(store)
    if max_file_mb <= 0:
        raise ConfigError(f"--max-file-mb is {max_file_mb}; give a number above 0")
    text = TextSource(
        paths=sources,
        patterns=patterns,
        text_field=text_field,
        max_bytes=int(max_file_mb * 1024 * 1024),
    )
    size = DEFAULT_SEGMENT_TOKENS if segment_tokens is None else segment_tokens
    with opened.writing(scope, name, segment_tokens=size) as writer:
        replaced = _replaced(opened, scope, name)
        tokenizer = _tokenizer(tokenizer_source)
        _fill(writer, text, tokenizer)
        if not writer.num_documents:
            raise ConfigError(f"no text was found in {_listed(sources)}{_skipped(text.skipped)}")
        built = opened.publish(
            writer,
            scope=scope,
            name=name,
            tokenizer=tokenizer.digest,
            tokenizer_source=tokenizer_source or PACKAGED,
            sources=tuple(str(path.absolute()) for path in sources),
            skipped=dict(text.skipped),
        )
    click.echo(
        f"{name} of {scope}: {built.num_tokens:,} tokens of {built.num_documents:,} documents in "
        f"{len(built.segments)} segment(s), {_megabytes(built)} MB, "
        f"{time.monotonic() - started:.1f} s{replaced}{_skipped(text.skipped)}"
    )


@corpus.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the manifests as JSON.")
@_store
def list_corpora(as_json: bool, store: Path | None) -> None:
    """Show every corpus: who may draft from it, its size, where it came from."""
    import msgspec

    listing = open_store(store).listing()
    for fault in listing.faults:
        click.echo(f"left out: {fault}", err=True)
    if as_json:
        data = msgspec.json.encode(listing.manifests)
        click.echo(msgspec.json.format(data, indent=2).decode())
        return
    header = ("SCOPE", "NAME", "TOKENS", "DOCUMENTS", "SEGMENTS", "MB", "TOKENIZER", "CREATED")
    rows = [header, *(_row(manifest) for manifest in listing.manifests)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@corpus.command()
@click.argument("name")
@_tenant
@_group
@_store
def remove(name: str, tenant: str | None, group: str | None, store: Path | None) -> None:
    """Delete the corpus NAME of a tenant or group.

    Engines stop drafting from it within seconds.
    """
    scope = scope_name(tenant, group)
    open_store(store).remove(scope, name)
    click.echo(f"removed {name} of {scope}")


def scope_name(tenant: str | None, group: str | None) -> str:
    """Sharing scope of a tenant or a group, as requests have it.

    Raises:
        ConfigError: both are given, or a name that no policy file could have.
    """
    from pydantic import TypeAdapter, ValidationError

    from paceline.adapters.request_info import RequestInfo
    from paceline.policies.rules import Name

    if tenant is not None and group is not None:
        raise ConfigError("both --tenant and --group are given; name the one that may draft")
    owner = (tenant if group is None else group) or ""
    if tenant is None and group is None:
        owner = LOCAL_TENANT
    try:
        TypeAdapter(Name).validate_python(owner)
    except ValidationError as error:
        raise ConfigError(
            f"{owner!r} cannot be a tenant's or group's name; use up to 64 letters, digits, '.', "
            "'_' and '-', a letter or digit first"
        ) from error
    return RequestInfo(request_id="", tenant=owner, group="" if group is None else owner).scope


def open_store(folder: Path | None) -> CorpusStore:
    """The store in `folder`, None for the user's own."""
    from paceline.caches.corpus import CorpusStore
    from paceline.middleware.serve import CORPUS_FOLDER, user_data_folder

    return CorpusStore(user_data_folder() / CORPUS_FOLDER if folder is None else folder)


def _tokenizer(source: str | None) -> TextTokenizer:
    """The tokenizer at `source`; None for the packaged model's, exported by its own process."""
    from paceline.caches.tokenizer import TextTokenizer

    if source is not None:
        return TextTokenizer(source)
    with TemporaryDirectory(prefix="paceline-") as folder:
        export = [sys.executable, "-m", "paceline.adapters.embedded.packaged", folder]
        done = subprocess.run(export, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            reason = done.stderr.strip().rpartition("\n")[2]
            raise ConfigError(f"the packaged model cannot be read ({reason}); give --tokenizer")
        return TextTokenizer(folder)


def _fill(writer: CorpusWriter, text: TextSource, tokenizer: TextTokenizer) -> None:
    """Read, tokenise and take in everything, with a bar on a terminal."""
    files = text.files()
    num_bytes = sum(size for _, size in files)
    with click.progressbar(
        length=num_bytes, label="reading", file=sys.stderr, width=0, show_pos=False
    ) as bar:
        for batch in _batches(_documents(files, text, bar.update)):
            for token_ids in tokenizer.encode(batch):
                writer.add(token_ids)
    if sys.stderr.isatty():
        click.echo("sorting the last segment", err=True)
    writer.flush()


def _documents(
    files: list[tuple[Path, int]], text: TextSource, advance: Callable[[int], None]
) -> Iterator[str]:
    for file, size in files:
        shown = 0
        for document, position in text.documents(file):
            yield document
            advance(min(position, size) - shown)
            shown = min(position, size)
        advance(size - shown)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    num_characters = 0
    for document in documents:
        batch.append(document)
        num_characters += len(document)
        if num_characters >= BATCH_CHARACTERS:
            yield batch
            batch, num_characters = [], 0
    if batch:
        yield batch


def _replaced(store: CorpusStore, scope: str, name: str) -> str:
    try:
        before = store.get(scope, name)
    except RecordError:
        return ", in place of one that could not be read"
    if before is None:
        return ""
    return f", in place of the {before.num_tokens:,} tokens of {_date(before.created_at)}"


def _skipped(skipped: dict[str, int]) -> str:
    if not skipped:
        return ""
    counts = ", ".join(f"{count:,} {reason}" for reason, count in sorted(skipped.items()))
    return f"; skipped: {counts}"


def _listed(sources: tuple[Path, ...]) -> str:
    return ", ".join(map(str, sources))


def _row(manifest: CorpusManifest) -> tuple[str, ...]:
    return (
        manifest.scope,
        manifest.name,
        f"{manifest.num_tokens:,}",
        f"{manifest.num_documents:,}",
        str(len(manifest.segments)),
        _megabytes(manifest),
        f"{manifest.tokenizer_source} ({manifest.tokenizer[:8]})",
        _date(manifest.created_at),
    )


def _megabytes(manifest: CorpusManifest) -> str:
    return f"{manifest.num_bytes / 1e6:,.1f}"


def _date(created_at: float) -> str:
    return datetime.fromtimestamp(created_at).astimezone().strftime("%Y-%m-%d %H:%M")
