"""`python -m paceline.adapters.embedded`: the embedded engine as a server of its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import click
import uvicorn
from prometheus_client import CollectorRegistry

from paceline.adapters.corpora import CorpusFeed
from paceline.adapters.drafter_following import follow_drafters
from paceline.adapters.drafter_settings import FollowSettings
from paceline.adapters.drafter_watch import DrafterWatch
from paceline.adapters.embedded.draft_options import draft_options
from paceline.adapters.embedded.drafter_host import EmbeddedDrafterHost
from paceline.adapters.embedded.engine import EmbeddedEngine
from paceline.adapters.embedded.engine_settings import EngineSettings
from paceline.adapters.embedded.heap import give_back_freed
from paceline.adapters.embedded.precision import DTYPES, FLOAT32
from paceline.adapters.embedded.server import EngineServer
from paceline.adapters.embedded.target import Target
from paceline.adapters.housekeeping import Housekeeping
from paceline.adapters.metrics import MemoryCollector, registry_of
from paceline.adapters.sharing import open_shared_journal, share_arms
from paceline.adapters.speculator import Speculator
from paceline.caches import DraftIndex, ModelFingerprint, tokenizer_digest
from paceline.caches.corpus import CorpusStore
from paceline.caches.journal import Journal
from paceline.caches.policy_sync import PolicySync
from paceline.caches.records import SHARED_GROUP
from paceline.caches.tier_settings import MemorySettings
from paceline.caches.tombstones import Tombstone
from paceline.errors import PacelineError
from paceline.load_file import EngineLoad
from paceline.models import PACKAGED_NAME
from paceline.policies.bandits import PolicyState

GRACE_SECONDS = 5
FLUSH_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Beside:
    """What runs beside the engine, in the order it is closed in; None for what does not run.

    Attributes:
        watch: follows the drafter's versions.
        housekeeping: lets the memory forget in time, and gives freed memory back.
        speculator: the memory.
        corpora: what is drafted from beside it.
        shared_arms: brings what other engines' bandits have learned.
        journal: shares the memory.
    """

    watch: DrafterWatch | None
    housekeeping: Housekeeping
    speculator: Speculator | None
    corpora: CorpusFeed | None
    shared_arms: PolicySync[PolicyState] | None
    journal: Journal | None

    def close(self) -> None:
        """Stop all of it; what is queued for Redis gets `FLUSH_SECONDS`."""
        for part in (self.watch, self.housekeeping, self.speculator, self.corpora):
            if part is not None:
                part.close()
        for shared in (self.shared_arms, self.journal):
            if shared is not None:
                shared.close(FLUSH_SECONDS)


def keep_house(speculator: Speculator | None) -> None:
    """What is to be done now and then."""
    give_back_freed()
    if speculator is not None:
        speculator.expire()


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8001, show_default=True)
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    help="Hugging Face folder.  [default: the packaged SmolLM2-135M]",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default=FLOAT32,
    show_default=True,
    help="What the model and its drafter compute in.",
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
@draft_options
@click.option(
    "--drafter",
    type=click.Path(path_type=Path),
    help="Hugging Face folder of a small model with the same tokenizer that drafts beside memory.",
)
@click.option(
    "--drafter-registry",
    envvar="PACELINE_DRAFTER_REGISTRY",
    default="",
    help="Folder of the drafter's versions to follow.  [default: keep the one given]",
)
@click.option(
    "--drafter-group",
    envvar="PACELINE_DRAFTER_GROUP",
    default=SHARED_GROUP,
    show_default=True,
    help="Whose drafter it is; another than shared drafts for that group's requests alone.",
)
@click.option(
    "--max-running", default=8, show_default=True, help="Requests answered at a time; others wait."
)
@click.option(
    "--kept-mib",
    default=1024,
    show_default=True,
    help="Memory for prompts that were read, for requests that begin alike; 0 keeps none.",
)
@click.option(
    "--always-draft",
    is_flag=True,
    help="Draft also where it is not expected to be worth its time.",
)
@click.option(
    "--bandit/--no-bandit",
    default=False,
    show_default=True,
    envvar="PACELINE_BANDIT",
    help="Let a bandit narrow who drafts, and how far, where that was slower.",
)
@click.option("--no-speculation", is_flag=True, help="Answer without drafts.")
def main(
    host: str,
    port: int,
    model: Path | None,
    dtype: str,
    model_name: str | None,
    redis_url: str | None,
    corpus_dir: str | None,
    max_draft_tokens: int,
    max_branches: int,
    min_probability: float,
    drafter: Path | None,
    drafter_registry: str,
    drafter_group: str,
    max_running: int,
    kept_mib: int,
    always_draft: bool,
    bandit: bool,
    no_speculation: bool,
) -> None:
    """Serve one model on this machine."""
    try:
        settings = EngineSettings(
            max_running=max_running,
            max_draft_tokens=max_draft_tokens,
            max_branches=max_branches,
            min_probability=min_probability,
            max_kept_bytes=kept_mib << 20,
            always_draft=always_draft,
            bandit=bandit,
        )
        following = FollowSettings(
            folder=drafter_registry, group=drafter_group, redis_url=redis_url or ""
        )
        target = Target.load(model, dtype=dtype)
        name = model_name or (PACKAGED_NAME if model is None else model.name)
        speculator = None if no_speculation else open_memory(settings.min_probability)
        fingerprint = fingerprint_of(target, name)
        corpora = corpus_feed(corpus_dir, speculator, fingerprint)
        wanted = None if no_speculation else drafter
        small = None if wanted is None else Target.load_drafter(wanted, dtype=dtype)
        engine = EmbeddedEngine(
            target,
            speculator,
            settings,
            drafter=small,
            drafter_name="drafter" if drafter is None else drafter.name,
            load=EngineLoad(Path(drafter_registry)) if drafter_registry else None,
        )
        journal, shared_arms = None, None
        if redis_url and speculator is not None:
            journal = open_journal(redis_url, speculator, fingerprint, engine)
            engine.decisions.is_apart = lambda: not journal.is_connected
            if engine.arms is not None:
                shared_arms = share_arms(
                    engine.arms, redis_url, fingerprint, replica=speculator.origin
                )
        watch = None
        if drafter_registry and not no_speculation:
            watch = follow_drafters(
                following,
                EmbeddedDrafterHost(engine),
                fingerprint,
                folder=drafter,
                model=small,
            )
    except PacelineError as error:
        raise click.ClickException(str(error)) from error

    housekeeping = Housekeeping(partial(keep_house, speculator))
    housekeeping.start()
    beside = Beside(watch, housekeeping, speculator, corpora, shared_arms, journal)
    server = EngineServer(
        engine,
        model_name=name,
        memory_metrics=None
        if speculator is None
        else metrics_of(speculator, journal, engine, watch),
        on_close=beside.close,
        drafter_group=drafter_group,
    )
    uvicorn.run(
        server.app(),
        host=host,
        port=port,
        access_log=False,
        log_level="warning",
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def open_memory(min_probability: float) -> Speculator:
    """An empty memory that drafts nothing less likely."""
    memory = MemorySettings()
    index = DraftIndex(min_probability=min_probability, max_session_tokens=memory.session.capacity)
    return Speculator(index, memory=memory)


def metrics_of(
    speculator: Speculator,
    journal: Journal | None,
    engine: EmbeddedEngine,
    watch: DrafterWatch | None,
) -> CollectorRegistry:
    """What an engine that drafts tells Prometheus beside its own counts."""
    return registry_of(
        MemoryCollector(
            speculator,
            journal,
            figures=engine.figures,
            drafter=None if watch is None else watch.figures,
            served=engine.decisions.served,
        )
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


def open_journal(
    redis_url: str, speculator: Speculator, fingerprint: ModelFingerprint, engine: EmbeddedEngine
) -> Journal:
    """Start sharing through Redis; what is forgotten there the engine forgets as well."""

    def forget(tombstone: Tombstone) -> None:
        speculator.forget_subject(tombstone)
        engine.forget_kept()

    journal = open_shared_journal(speculator, redis_url, fingerprint, on_forget=forget)
    journal.start()
    return journal


if __name__ == "__main__":
    main()
