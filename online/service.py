"""The learner as a process: what it needs is opened, scheduled, and closed in order.

APScheduler runs the job *learn*, which does the next thing there is to do (`Learner.consider`) and
can take an hour; following the journal and looking for idle time are threads of their own. Needs
torch.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import torch
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler
from prometheus_client import CollectorRegistry, start_http_server

from paceline.caches.drafter_registry import DrafterRegistry
from paceline.caches.journal_client import UNREACHABLE, RedisAddress
from paceline.caches.journal_store import JournalStore
from paceline.caches.keys import JournalKeys, namespace_of
from paceline.caches.records import ModelFingerprint, tokenizer_digest
from paceline.errors import PacelineError
from paceline.load_file import EngineFiles
from paceline.models import load_model, model_source, target_path
from paceline.online.idle import IdleGate, LoadSource, QuickSource
from paceline.online.journal_follower import JournalFollower
from paceline.online.learner import Learner
from paceline.online.learner_metrics import LearnerCollector
from paceline.online.learner_parts import LearnerParts
from paceline.online.learner_settings import LearnerSettings
from paceline.online.lesson_cache import LessonCache
from paceline.online.lessons import Lesson
from paceline.online.load_sources import GpuLoad, LoadAverage, ServedLoad, ToldLoad
from paceline.online.looks import Looks, StoppedError
from paceline.online.micro_steps import micro_steps, run_only_when_idle
from paceline.online.opened import torch_device
from paceline.online.passage_teaching import (
    CachedTeacher,
    PassageTeacher,
    TargetTeacher,
    TextTeacher,
)
from paceline.online.ranks import Ranks
from paceline.online.replay import Replay
from paceline.online.served_teacher import OwnRequests, ServedTeacher
from paceline.online.shared_work import NO_WORK, follow_first
from paceline.online.teacher import Teacher

logger = logging.getLogger("paceline.learner")

LEARN_SECONDS: Final = 0.5
"""Between two looks whether there is something to learn."""
POLL_SECONDS: Final = 0.2
LOUD_SECONDS: Final = 60.0
"""A failure that repeats is logged that often."""


def serve(settings: LearnerSettings, is_stopping: Callable[[], bool]) -> None:
    """Learn until asked to stop.

    Raises:
        ConfigError: a setting does not fit what is there.
        JournalError: the URL of Redis cannot be understood.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("apscheduler").setLevel(logging.ERROR)  # it tells of each look
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    device = torch_device(settings.device)
    ranks = Ranks.from_env(device=device.type)
    with closing(ranks):
        if not ranks.is_first:
            follow_first(ranks, device)
            return
        with LearnerService(settings, ranks, device) as service:
            while not is_stopping():
                time.sleep(POLL_SECONDS)
            logger.info("stopping: %s", service.learner.figures.reason)


class LearnerService:
    """Everything one learner needs, running from `__enter__` to `__exit__`.

    Args:
        settings: what was told.
        ranks: processes that share the training; this is the first one.
        device: torch's, where is trained.

    Attributes:
        learner: what decides.
    """

    learner: Learner

    def __init__(self, settings: LearnerSettings, ranks: Ranks, device: Any) -> None:
        self._settings = settings
        self._ranks = ranks
        self._device = device
        self._stop = threading.Event()
        self._stack = ExitStack()
        self._num_failures = 0
        self._logged_at = float("-inf")

    def __enter__(self) -> LearnerService:
        with ExitStack() as stack:
            self._open(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._stop.set()
        self._stack.close()

    def _open(self, stack: ExitStack) -> None:
        settings = self._settings
        folder = Path(settings.data).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        fingerprint = fingerprint_of(settings)
        own = OwnRequests()
        files = stack.enter_context(closing(EngineFiles(Path(settings.registry))))
        gate = stack.enter_context(
            IdleGate(
                load_sources(settings, own), settings.idle, quick=quick_sources(settings, files)
            )
        )
        cache = LessonCache(
            folder / "lessons",
            teacher=teacher_name(settings, fingerprint),
            max_bytes=settings.teacher.cache_mib << 20,
        )
        replay = Replay.open(
            folder / "replay",
            namespace=namespace_of(fingerprint),
            group=settings.group,
            settings=settings.replay,
            on_gone=cache.drop,
        )
        cache.keep(replay.passages())
        client = stack.enter_context(closing(RedisAddress(settings.redis_url).connect()))
        registry = DrafterRegistry(
            JournalStore(client, JournalKeys(namespace_of(fingerprint))),
            Path(settings.registry).expanduser(),
        )
        looks = Looks(gate, self._stop)
        teacher: PassageTeacher = open_teacher(settings, looks, self._device, own)
        if settings.teacher.kind != "text":
            teacher = CachedTeacher(teacher, cache, read_weight=settings.cycle.read_weight)
        parts = LearnerParts(
            replay=replay,
            teacher=teacher,
            registry=registry,
            gate=gate,
            looks=looks,
            ranks=self._ranks,
            device=self._device,
        )
        self.learner = Learner(settings, parts)
        follower = JournalFollower(settings.redis_url, replay, on_forget=self.learner.forget)
        follower.start()
        stack.callback(follower.close)
        stack.callback(self._ranks.from_first, NO_WORK)
        if settings.metrics.port:
            stack.enter_context(self._metrics(replay, follower, gate, cache, looks))
        self._schedule(stack, registry)

    def _schedule(self, stack: ExitStack, registry: DrafterRegistry) -> None:
        """Start the jobs; they end before anything they use is closed."""
        scheduler = BackgroundScheduler(
            timezone=UTC,
            executors={
                "default": ThreadPoolExecutor(1),
                # what computes runs only where a core is idle, and so do the threads it starts
                "idle": ThreadPoolExecutor(1, pool_kwargs={"initializer": run_only_when_idle}),
            },
            job_defaults={"coalesce": True, "max_instances": 1, "misfire_grace_time": None},
        )
        scheduler.add_job(
            self._learn,
            "interval",
            args=(registry,),
            seconds=LEARN_SECONDS,
            executor="idle",
            id="learn",
        )
        scheduler.start()
        stack.callback(scheduler.shutdown, wait=True)
        stack.callback(self._stop.set)

    def _learn(self, registry: DrafterRegistry) -> None:
        """Do what there is to do, until there is nothing more."""
        goes_on = True
        while goes_on:
            before = self.learner.figures.reason
            try:
                said = self.learner.consider()
                registry.prune(self._settings.group, keep=self._settings.keep_versions)
            except StoppedError:
                return
            except (PacelineError, OSError, *UNREACHABLE) as error:
                self._failed(error)
                return
            if said != before and not said.endswith("are there"):
                logger.info("%s", said)
            goes_on = self.learner.goes_on

    def _failed(self, error: Exception) -> None:
        self._num_failures += 1
        if (now := time.monotonic()) - self._logged_at >= LOUD_SECONDS:
            self._logged_at = now
            logger.warning("learning waits: %s: %s", type(error).__name__, error)

    @contextmanager
    def _metrics(
        self,
        replay: Replay,
        follower: JournalFollower,
        gate: IdleGate,
        cache: LessonCache,
        looks: Looks,
    ) -> Iterator[None]:
        """Tell Prometheus; a port that cannot be had costs metrics alone."""

        def stats() -> Mapping[str, float]:
            seen = gate.stats()._asdict()
            del seen["source"], seen["spells"]
            named = {"replay": replay.stats(), "journal": follower.stats(), "gate": seen}
            named["lesson_cache"] = cache.stats()
            reactions = looks.reactions
            named["reaction"] = {
                "count_total": reactions.num,
                "seconds_total": reactions.seconds,
                "longest_seconds": reactions.longest_seconds,
            }
            numbers = {f"{part}_{k}": v for part, its in named.items() for k, v in its.items()}
            return numbers | {"failures_total": self._num_failures}

        registry = CollectorRegistry()
        registry.register(
            LearnerCollector(
                self._settings.group,
                self.learner.figures,
                stats,
                lambda: gate.stats().spells,
            )
        )
        told = self._settings.metrics
        try:
            server, thread = start_http_server(told.port, addr=told.host, registry=registry)
        except OSError as error:
            logger.error("no metrics of the learner: %s", error)
            yield
            return
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


def fingerprint_of(settings: LearnerSettings) -> ModelFingerprint:
    """Whose words are learned from: the name that engines serve, and the target's tokenizer."""
    from transformers import AutoTokenizer

    where = model_source(target_path(settings.target))
    tokenizer = AutoTokenizer.from_pretrained(**where)
    return ModelFingerprint(model=settings.model, tokenizer=tokenizer_digest(tokenizer.get_vocab()))


def load_sources(settings: LearnerSettings, own: OwnRequests) -> list[LoadSource]:
    """What tells whether there is time.

    Args:
        settings: which they are.
        own: requests of the teacher's, which are no load of the engine that it asks.

    Raises:
        ConfigError: a URL is none, or a GPU cannot be asked.
    """
    told = settings.load
    sources: list[LoadSource] = [
        ServedLoad(
            url,
            full_requests=told.full_requests,
            own=own.take_most if _asks(settings, url) else _none,
        )
        for url in told.engines
    ]
    sources += [GpuLoad(index) for index in told.gpus]
    if told.load_average:
        sources.append(LoadAverage())
    return sources


def quick_sources(settings: LearnerSettings, files: EngineFiles) -> list[QuickSource]:
    """What tells at any moment whether there is time, where requests at engines are to count."""
    told = settings.load
    if not (told.engines and told.files):
        return []
    return [ToldLoad(files, full_requests=told.full_requests)]


def _none() -> int:
    return 0


def _asks(settings: LearnerSettings, url: str) -> bool:
    """Whether the teacher is that engine."""
    told = settings.teacher
    return told.kind == "served" and urlsplit(told.url).netloc == urlsplit(url).netloc


def teacher_name(settings: LearnerSettings, fingerprint: ModelFingerprint) -> str:
    """What lessons in the cache are of: another target's are none of this one's."""
    told = settings.teacher
    return f"{told.kind}:{settings.target}:{fingerprint.model}:{fingerprint.tokenizer}:{told.top_k}"


def open_teacher(
    settings: LearnerSettings,
    looks: Looks,
    device: Any,
    own: OwnRequests,
) -> PassageTeacher:
    """The teacher of the settings.

    Raises:
        ConfigError: the target or the server's address is none.
    """
    told, read_weight = settings.teacher, settings.cycle.read_weight
    if told.kind == "text":
        return TextTeacher()
    if told.kind == "served":
        return ServedTeacher(
            told.url,
            top_k=told.top_k,
            model=settings.model,
            api_key=told.api_key or None,
            read_weight=read_weight,
            may_go_on=looks.may_go_on,
            own=own,
        )
    target, _ = load_model(target_path(settings.target))
    target = target.to(device)
    teacher = Teacher(target, top_k=told.top_k, temperature=0.0)
    reader = PausingReader(teacher, target, looks)
    return TargetTeacher(reader, read_weight=read_weight)


class PausingReader:
    """A target that stands still between its parts while others want the machine.

    Args:
        teacher: reads.
        target: it reads with.
        looks: at the gate.
    """

    def __init__(self, teacher: Teacher, target: Any, looks: Looks) -> None:
        self._teacher = teacher
        self._target = target
        self._looks = looks

    def readings(self, texts: Sequence[Sequence[int]]) -> list[Lesson]:
        """As `Teacher.readings`.

        Raises:
            StoppedError: the learner was asked to stop.
        """
        with micro_steps(self._target, self._looks.pause):
            read: list[Lesson] = self._teacher.readings(texts, pause=self._looks.pause)
        return read
