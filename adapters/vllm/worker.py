"""vLLM worker classes that draft from Paceline's memory: `CPUWorker` and `GPUWorker`.

Each is the platform's own worker with three additions: after the model is loaded it attaches a
`Speculator` to the proposer (on the one rank whose drafts vLLM uses) and opens what belongs to its
memory: journal, corpora, upkeep, metrics; before each step it closes the requests that left; at
shutdown it stops all of that and flushes the journal. The classes are made on first access, so that
a CPU process never imports the GPU platform's code paths before vLLM has chosen its platform.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from paceline.adapters.arm_choice import ArmChoice
from paceline.adapters.corpora import CorpusFeed
from paceline.adapters.decisions import RequestDecisions
from paceline.adapters.drafter_figures import DrafterFigures
from paceline.adapters.drafter_following import follow_drafters
from paceline.adapters.drafter_watch import DrafterWatch
from paceline.adapters.housekeeping import Housekeeping
from paceline.adapters.served_totals import Served, Who
from paceline.adapters.sharing import open_shared_journal, share_arms
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures
from paceline.adapters.vllm.cpu_sampling import mend
from paceline.adapters.vllm.drafter_host import VllmDrafterHost
from paceline.adapters.vllm.drafter_weights import why_not_swapped
from paceline.adapters.vllm.fused import FusedProposer
from paceline.adapters.vllm.proposer import DraftProposer
from paceline.adapters.vllm.seeding import make_rewindable
from paceline.adapters.vllm.settings import WorkerSettings
from paceline.adapters.vllm.step_load import StepLoad
from paceline.caches import DraftIndex, ModelFingerprint, tokenizer_digest
from paceline.caches.corpus import CorpusStore
from paceline.caches.journal import Journal
from paceline.caches.policy_sync import PolicySync
from paceline.errors import JournalError, PacelineError
from paceline.load_file import EngineLoad
from paceline.policies.bandits import PolicyState

logger = logging.getLogger("paceline.vllm")

SHUTDOWN_SECONDS = 2.0
"""Longest wait for the journal to take what is still queued when the engine stops."""


FUSED_METHODS: Final = ("draft_model", "eagle", "eagle3")
"""Of vLLM's speculative methods, those whose drafts are fused with memory's."""


class SpeculatingWorker:
    """What Paceline adds to a vLLM worker; mixed in before the platform's class."""

    model_runner: Any
    vllm_config: Any
    _proposer: DraftProposer | FusedProposer | None = None
    _speculator: Speculator | None = None
    _journal: Journal | None = None
    _housekeeping: Housekeeping | None = None
    _stop_metrics: Callable[[], None] | None = None
    _corpora: CorpusFeed | None = None
    _watch: DrafterWatch | None = None
    _load: StepLoad | None = None
    _shares: bool = False
    _shared_arms: PolicySync[PolicyState] | None = None

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the target, then open the draft memory on the rank whose drafts vLLM uses."""
        super().load_model(*args, **kwargs)  # type: ignore[misc]  # the platform's worker
        proposer = getattr(self.model_runner, "drafter", None)
        settings = WorkerSettings.from_env(os.environ)
        if isinstance(proposer, DraftProposer):
            # vLLM stops drafting for a whole batch when one request comes within K tokens of the
            # model's length. Our proposer keeps every draft inside the model's length by itself, so
            # that check can never be needed.
            self.model_runner.effective_drafter_max_model_len += proposer.num_speculative_tokens
            if drafts_count_here():
                speculator = self._open_memory(settings)
                proposer.attach(
                    self.model_runner,
                    speculator,
                    always_draft=settings.always_draft,
                    arms=self._open_arms(settings, speculator, proposer.num_speculative_tokens),
                )
                self._proposer = proposer
                proposer.decisions.is_apart = self._is_apart
        elif reason := why_not_fused(self.model_runner):
            if self.vllm_config.speculative_config is not None:
                logger.error("drafts are vLLM's own: %s", reason)
        else:
            self._fuse(settings)
        if settings.drafter_registry and drafts_count_here():
            self._load = StepLoad(EngineLoad(Path(settings.drafter_registry)))

    def _fuse(self, settings: WorkerSettings) -> None:
        """Draft beside vLLM's model drafter. A vLLM that it does not fit is left as it is."""
        speculator, arms = None, None
        if drafts_count_here():
            speculator = self._open_memory(settings)
            drafter = Path(str(self.model_runner.speculative_config.model)).name or "drafter"
            num_tokens = self.model_runner.num_spec_tokens
            arms = self._open_arms(settings, speculator, num_tokens, drafter=drafter)
        try:
            self._proposer = FusedProposer(
                self.model_runner,
                speculator,
                num_model_tokens=settings.drafter_tokens,
                min_probability=settings.min_probability,
                always_draft=settings.always_draft,
                drafter_group=settings.drafter_group,
                arms=arms,
            )
            self._proposer.decisions.is_apart = self._is_apart
        except (AttributeError, TypeError, ValueError):
            logger.exception("drafts are vLLM's own: its model drafter is not as we know it")
            return
        if settings.drafter_registry and speculator is not None:
            self._watch = follow(settings, self.model_runner, self._proposer)

    def _open_memory(self, settings: WorkerSettings) -> Speculator:
        """The draft memory and all that belongs to it."""
        memory = settings.memory()
        index = DraftIndex(
            min_probability=settings.min_probability, max_session_tokens=memory.session.capacity
        )
        self._speculator = speculator = Speculator(index, memory=memory)
        speculator.predictions.encode = text_encoder(self.vllm_config.model_config)
        self._housekeeping = Housekeeping(speculator.expire)
        self._housekeeping.start()
        self._journal = open_journal(settings, speculator, self.vllm_config.model_config)
        self._corpora = open_corpora(settings, speculator, self.vllm_config.model_config)
        self._stop_metrics = open_metrics(
            settings,
            MemoryParts(
                speculator,
                self._journal,
                self._figures,
                self._decisions,
                self._drafter_figures,
                self._served,
            ),
        )
        self._shares = bool(settings.redis_url)
        return speculator

    def _open_arms(
        self,
        settings: WorkerSettings,
        speculator: Speculator,
        num_draft_tokens: int,
        *,
        drafter: str = "",
    ) -> ArmChoice | None:
        """What chooses who drafts; None where the settings say that nothing does.

        Where the journal is shared, so is what arms have brought.
        """
        if not settings.bandit or settings.always_draft:
            return None
        arms = ArmChoice(max_tokens=num_draft_tokens, drafter=drafter)
        if self._journal is not None:
            try:
                self._shared_arms = share_arms(
                    arms,
                    settings.redis_url,
                    fingerprint(self.vllm_config.model_config),
                    replica=settings.replica or speculator.origin,
                )
            except JournalError as error:
                logger.error("what arms have brought stays in this engine: %s", error)
        return arms

    def _figures(self) -> DraftingFigures | None:
        return None if self._proposer is None else self._proposer.figures()

    def _drafter_figures(self) -> DrafterFigures | None:
        return None if self._watch is None else self._watch.figures()

    def _decisions(self, request_id: str) -> RequestDecisions | None:
        return None if self._proposer is None else self._proposer.decisions.find(request_id)

    def _served(self) -> Mapping[Who, Served]:
        return {} if self._proposer is None else self._proposer.decisions.served()

    def _is_apart(self) -> bool:
        """Whether memory is to be shared, and is not."""
        return self._shares and (self._journal is None or not self._journal.is_connected)

    def execute_model(self, scheduler_output: Any) -> Any:
        """Tell of requests that came and went, close those that left, then run the step."""
        if self._load is not None:
            self._load.begin(scheduler_output)
        if self._proposer is not None and scheduler_output.finished_req_ids:
            self._proposer.finish(scheduler_output.finished_req_ids)
        if self._proposer is not None:
            self._proposer.begin_step(scheduler_output)
        return super().execute_model(scheduler_output)  # type: ignore[misc]  # the platform's worker

    def shutdown(self) -> None:
        """Publish what is open, flush the journal, then shut the platform's worker down."""
        if self._load is not None:
            self._load.close()
        if self._watch is not None:
            self._watch.close()
        if self._stop_metrics is not None:
            self._stop_metrics()
        if self._housekeeping is not None:
            self._housekeeping.close()
        if self._speculator is not None:
            self._speculator.close()
        if self._corpora is not None:
            self._corpora.close()
        if self._shared_arms is not None:
            self._shared_arms.close(timeout=SHUTDOWN_SECONDS)
        if self._journal is not None:
            self._journal.close(timeout=SHUTDOWN_SECONDS)
        super().shutdown()  # type: ignore[misc]  # the platform's worker


class SafeSampling:
    """Keeps sampling on a CPU exact, and engines alive whose clients want a `seed` or `top_k`.

    See `seeding` and `cpu_sampling`.
    """

    model_runner: Any

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Mend vLLM's sampling, then load the target."""
        from vllm.v1.sample import rejection_sampler
        from vllm.v1.sample.ops import topk_topp_sampler

        mend(rejection_sampler, topk_topp_sampler)
        super().load_model(*args, **kwargs)  # type: ignore[misc]  # the platform's worker

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Make the batch's generators rewindable, then sample."""
        make_rewindable(self.model_runner)
        return super().sample_tokens(grammar_output)  # type: ignore[misc]  # the platform's worker


def drafts_count_here() -> bool:
    """Whether this rank is the one whose drafts the scheduler reads.

    The first tensor rank of the last stage.
    """
    from vllm.distributed.parallel_state import get_pp_group, get_tp_group

    return bool(get_pp_group().is_last_rank and get_tp_group().rank_in_group == 0)


def open_journal(
    settings: WorkerSettings, speculator: Speculator, model_config: Any
) -> Journal | None:
    """Start sharing `speculator`'s memory through Redis; None if no URL is set or Redis refuses us.

    A journal that cannot be used never keeps the target from serving: the reason is logged and
    memory stays local.
    """
    if not settings.redis_url:
        return None
    try:
        journal = open_shared_journal(
            speculator,
            settings.redis_url,
            fingerprint(model_config),
            warm_up_tokens=settings.warm_up_tokens,
        )
        journal.start()
    except JournalError as error:
        logger.error("the draft memory stays local to this engine: %s", error)
        return None
    return journal


def open_corpora(
    settings: WorkerSettings, speculator: Speculator, model_config: Any
) -> CorpusFeed | None:
    """Start drafting from the corpora in the settings' folder; None if none is set.

    The folder may be missing or empty: corpora are noticed when they come.
    """
    if not settings.corpus_dir:
        return None
    store = CorpusStore(Path(settings.corpus_dir).expanduser())
    feed = CorpusFeed(speculator.index, store, fingerprint(model_config))
    feed.start()
    speculator.attach_corpora(feed)
    return feed


def follow(settings: WorkerSettings, runner: Any, proposer: FusedProposer) -> DrafterWatch | None:
    """Start to follow the registry of drafters; None where the model cannot change.

    Whatever keeps us from it is logged and leaves the drafter that vLLM was started with.
    """
    draft_config = runner.vllm_config.speculative_config.draft_model_config
    folder = str(getattr(draft_config, "model", ""))
    if reason := why_not_swapped(runner, folder):
        logger.error("the drafter stays the one that vLLM was started with: %s", reason)
        return None
    host = VllmDrafterHost(proposer, Path(folder), pin=runner.device.type == "cuda")
    try:
        return follow_drafters(
            settings.following(),
            host,
            fingerprint(runner.vllm_config.model_config),
            folder=Path(folder),
        )
    except PacelineError as error:
        logger.error("the drafter stays the one that vLLM was started with: %s", error)
        return None


def why_not_fused(runner: Any) -> str:
    """Why drafts of this runner's drafter are not fused with memory's; "" where they are."""
    method = getattr(getattr(runner, "speculative_config", None), "method", None)
    if method not in FUSED_METHODS:
        return (
            f"speculative method {method!r} is not fused with memory; those that are: "
            f"{', '.join(FUSED_METHODS)}"
        )
    if not hasattr(runner, "propose_draft_token_ids"):
        return "vLLM chose its V2 model runner; set VLLM_USE_V2_MODEL_RUNNER=0"
    if getattr(runner, "use_async_scheduling", False):
        return "scheduling is asynchronous; start vLLM with --no-async-scheduling"
    return ""


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """What an engine tells Prometheus about.

    Attributes:
        speculator: whose memory.
        journal: the one it publishes to, None without one.
        figures: reads those of drafting, None where nothing drafts yet.
        find: the record of a request.
        drafter: reads those of the model drafter's versions, None where they are not followed.
        served: reads what was served, by tenant and workload.
    """

    speculator: Speculator
    journal: Journal | None
    figures: Callable[[], DraftingFigures | None]
    find: Callable[[str], RequestDecisions | None]
    drafter: Callable[[], DrafterFigures | None] = lambda: None
    served: Callable[[], Mapping[Who, Served]] = dict


def open_metrics(settings: WorkerSettings, parts: MemoryParts) -> Callable[[], None] | None:
    """Tell Prometheus about the memory on the port of the settings; returns what stops it.

    A port that cannot be had, or a missing prometheus_client, is logged and costs metrics alone.
    """
    if not settings.metrics_port:
        return None
    try:
        from paceline.adapters.metrics import MemoryCollector, serve_metrics

        return serve_metrics(
            MemoryCollector(
                parts.speculator,
                parts.journal,
                figures=parts.figures,
                drafter=parts.drafter,
                served=parts.served,
            ),
            host=settings.metrics_host,
            port=settings.metrics_port,
            find=parts.find,
        )
    except (ImportError, OSError) as error:
        logger.error("no metrics of the draft memory: %s", error)
        return None


def fingerprint(model_config: Any) -> ModelFingerprint:
    """Whose tokens this engine speaks: the served model's name and its tokenizer's digest."""
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model_config)
    served = model_config.served_model_name
    name = served[0] if isinstance(served, list) else served
    digest = tokenizer_digest(tokenizer.get_vocab()) if tokenizer is not None else ""
    return ModelFingerprint(model=name or model_config.model, tokenizer=digest)


def text_encoder(model_config: Any) -> Callable[[str], Sequence[int]] | None:
    """Makes tokens of what clients predict, as the model would say it; None without a tokenizer."""
    from vllm.tokenizers import cached_tokenizer_from_config

    tokenizer = cached_tokenizer_from_config(model_config)
    if tokenizer is None:
        return None
    return lambda text: tokenizer.encode(text, add_special_tokens=False)


def __getattr__(name: str) -> type:
    if name == "CPUWorker":
        from vllm.v1.worker.cpu_worker import CPUWorker as PlatformCPUWorker

        worker = type(name, (SafeSampling, SpeculatingWorker, PlatformCPUWorker), {})
    elif name == "GPUWorker":
        from vllm.v1.worker.gpu_worker import Worker as PlatformGPUWorker

        worker = type(name, (SpeculatingWorker, PlatformGPUWorker), {})
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    worker.__module__ = __name__
    globals()[name] = worker
    return worker
