"""`python -m paceline.adapters.embedded`: the embedded engine as a server of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import uvicorn

from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.packaged import PACKAGED_NAME
from paceline.adapters.embedded.server import EngineServer
from paceline.adapters.embedded.target import Target
from paceline.adapters.speculator import Speculator
from paceline.caches import ModelFingerprint, tokenizer_digest
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
    "--max-draft-tokens", default=8, show_default=True, help="Most tokens drafted a round."
)
@click.option("--no-speculation", is_flag=True, help="Answer without drafts.")
def main(
    host: str,
    port: int,
    model: Path | None,
    model_name: str | None,
    redis_url: str | None,
    max_draft_tokens: int,
    no_speculation: bool,
) -> None:
    """Serve one model on this machine."""
    try:
        target = Target.load(model)
        name = model_name or (PACKAGED_NAME if model is None else model.name)
        speculator = None if no_speculation else Speculator()
        journal = _journal(redis_url, speculator, name, target.tokenizer)
        engine = EmbeddedEngine(target, speculator, max_draft_tokens=max_draft_tokens)
    except PacelineError as error:
        raise click.ClickException(str(error)) from error

    def close() -> None:
        if speculator is not None:
            speculator.close()
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


def _journal(
    redis_url: str | None, speculator: Speculator | None, name: str, tokenizer: Any
) -> Journal | None:
    if not redis_url or speculator is None:
        return None
    fingerprint = ModelFingerprint(model=name, tokenizer=tokenizer_digest(tokenizer.get_vocab()))
    journal = Journal(
        redis_url,
        fingerprint,
        origin=speculator.origin,
        on_record=speculator.absorb,
        on_again=speculator.absorb_again,
        on_forget=speculator.forget_subject,
        on_phrases=speculator.absorb_phrases,
        on_warmed_up=speculator.drop_phrases,
    )
    journal.start()
    speculator.attach_journal(journal)
    return journal


if __name__ == "__main__":
    main()
