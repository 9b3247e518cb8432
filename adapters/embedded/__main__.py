"""`python -m paceline.adapters.embedded`: the embedded engine as a server of its own."""

from __future__ import annotations

from pathlib import Path

import click
import uvicorn

from paceline.adapters.corpora import CorpusFeed
from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.packaged import PACKAGED_NAME
from paceline.adapters.embedded.server import EngineServer
from paceline.adapters.embedded.target import Target
from paceline.adapters.housekeeping import Housekeeping
from paceline.adapters.speculator import Speculator
from paceline.caches import ModelFingerprint, tokenizer_digest
from paceline.caches.corpus import CorpusStore
from paceline.caches.journal import Journal
from paceline.errors import PacelineError

GRACE_SECONDS = 5
FLUSH_SECONDS = 2.0


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8001, show_default=True)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Hugging Face folder.  [default: the packaged SmolLM2-135M]",
)
@click.option("--model-name", help="Name that clients use.  [default: the folder's, or smollm2]")
@click.option(
    "--redis", "redis_url", envvar="PACELINE_REDIS_URL", help="Journal to share the memory through."
)
@click.option(
    "--corpora",
    "corpus_dir",
    envvar="PACELINE_CORPUS_DIR",
    help="Folder of corpora to draft from (`paceline corpus`).",
)
@click.option(
    "--max-draft-tokens", default=8, show_default=True, help="Most tokens drafted a round."
)
@click.option("--no-speculation", is_flag=True, help="Answer without drafts.")
def main(
    host: str,
    port: int,
    model: Path | None,
    model_name: str | None,
    redis_url: str | None,
    corpus_dir: str | None,
    max_draft_tokens: int,
    no_speculation: bool,
) -> None:
    """Serve one model on this machine."""
    try:
        target = Target.load(model)
        name = model_name or (PACKAGED_NAME if model is None else model.name)
        speculator = None if no_speculation else Speculator()
        fingerprint = fingerprint_of(target, name)
        journal = _journal(redis_url, speculator, fingerprint)
        corpora = corpus_feed(corpus_dir, speculator, fingerprint)
        engine = EmbeddedEngine(target, speculator, max_draft_tokens=max_draft_tokens)
    except PacelineError as error:
        raise click.ClickException(str(error)) from error

    housekeeping = None if speculator is None else Housekeeping(speculator.expire)
    if housekeeping is not None:
        housekeeping.start()

    def close() -> None:
        if housekeeping is not None:
            housekeeping.close()
        if speculator is not None:
            speculator.close()
        if corpora is not None:
            corpora.close()
        if journal is not None:
            journal.close(FLUSH_SECONDS)

    server = EngineServer(engine, model_name=name, on_close=close)
    uvicorn.run(
        server.app(),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def fingerprint_of(target: Target, name: str) -> ModelFingerprint:
    """Whose tokens this engine speaks."""
    return ModelFingerprint(model=name, tokenizer=tokenizer_digest(target.tokenizer.get_vocab()))


def corpus_feed(
    corpus_dir: str | None, speculator: Speculator | None, fingerprint: ModelFingerprint
) -> CorpusFeed | None:
    """Start drafting from the corpora in a folder; None without a folder or a speculator."""
    if not corpus_dir or speculator is None:
        return None
    store = CorpusStore(Path(corpus_dir).expanduser())
    feed = CorpusFeed(speculator.index, store, fingerprint)
    feed.start()
    speculator.attach_corpora(feed)
    return feed


def _journal(
    redis_url: str | None, speculator: Speculator | None, fingerprint: ModelFingerprint
) -> Journal | None:
    if not redis_url or speculator is None:
        return None
    journal = Journal(redis_url, fingerprint, origin=speculator.origin, on_record=speculator.absorb)
    journal.start()
    speculator.attach_journal(journal)
    return journal


if __name__ == "__main__":
    main()
