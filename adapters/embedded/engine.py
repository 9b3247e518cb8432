"""The engine: one thread that reads and answers several requests at once, speculating for each."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

import torch

from paceline.adapters.arm_choice import ArmChoice, with_arms
from paceline.adapters.decisions import FAILURE, LENGTH, OFF, DecisionLog, Tally
from paceline.adapters.drafter_swap import SwapSlot
from paceline.adapters.drafter_tally import DrafterTally
from paceline.adapters.embedded.drafts import NO_DRAFT, Drafts, Wish
from paceline.adapters.embedded.engine_settings import EngineCounts, EngineSettings
from paceline.adapters.embedded.model_drafter import ModelDrafter
from paceline.adapters.embedded.prefixes import PrefixStore, owner_of
from paceline.adapters.embedded.reply import Reply
from paceline.adapters.embedded.requests import GenerationRequest, Job, Progress
from paceline.adapters.embedded.round_budget import DraftCounts, RoundBudget
from paceline.adapters.embedded.running import Running
from paceline.adapters.embedded.sampling import NextDraws, TokenLogprobs, logprobs_of, verify
from paceline.adapters.embedded.target import PREFILL_TOKENS, Row, Target
from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import DraftLimits
from paceline.adapters.served_totals import UNKNOWN
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures
from paceline.errors import EngineError
from paceline.load_file import EngineLoad
from paceline.policies.round_split import RoundTime

logger = logging.getLogger("paceline.embedded")

MAX_WAITING: Final = 256


class EmbeddedEngine:
    """Serves requests on a thread of its own, several in each forward pass.

    A step reads the next part of the prompts that are not read yet, and for every request that is
    being answered its last token and its draft.

    Args:
        target: the model.
        speculator: where drafts come from, None for no speculation.
        settings: limits.
        drafter: a small model that drafts beside memory, None for none.
        drafter_name: its id, which what is learned of it goes by; the same in all replicas.
        prefixes: kept keys and values of the same target, shared with other engines; None for a
            store of its own.
        clock: monotonic seconds; what is worth its time is decided by it.
        on_swap: told of the drafter's version that drafts from now on, on the engine's thread.
        load: told of requests as they come and go, from those that wait on; closed with the engine.

    Attributes:
        counts: totals since the start.
        decisions: what was decided for each request.
        tally: how often the drafter is right.
        drafter_swaps: takes drafters from other threads; they draft from the next round on.
    """

    def __init__(
        self,
        target: Target,
        speculator: Speculator | None = None,
        settings: EngineSettings | None = None,
        *,
        drafter: Target | None = None,
        drafter_name: str = "drafter",
        prefixes: PrefixStore | None = None,
        clock: Callable[[], float] = time.perf_counter,
        on_swap: Callable[[int], None] | None = None,
        load: EngineLoad | None = None,
    ) -> None:
        self.target = target
        self._speculator = speculator
        self.settings = settings or EngineSettings()
        self.counts = EngineCounts()
        self.decisions = DecisionLog()
        self._clock = clock
        self.tally = DrafterTally()
        self._budget = RoundBudget(always_draft=self.settings.always_draft, clock=clock)
        self.arms: ArmChoice | None = None
        is_drafting = speculator is not None or drafter is not None
        if self.settings.bandit and not self.settings.always_draft and is_drafting:
            self.arms = ArmChoice(
                max_tokens=self.settings.max_draft_tokens,
                drafter=drafter_name if drafter is not None else "",
            )
        if prefixes is None:
            prefixes = PrefixStore(self.settings.max_kept_bytes)
        self._prefixes = prefixes
        self._drafts = Drafts(
            speculator,
            None if drafter is None else self._model_drafter(drafter),
            max_branches=self.settings.max_branches,
            budget=self._budget,
            make_drafter=self._model_drafter,
            arms=self.arms,
        )
        self.drafter_swaps = SwapSlot(
            lambda swap: self._drafts.swap(swap.model),
            self.tally,
            on_swap=self._swapped,
            clock=clock,
        )
        self._on_swap = on_swap
        self._load = load
        self._committed: dict[str, list[int]] = {}
        """What came of the round so far."""
        self._spent = UNKNOWN
        """What the round is expected to take."""
        self._waiting: queue.Queue[Job | None] = queue.Queue(MAX_WAITING)
        self._running: list[Running] = []
        self._thread = threading.Thread(
            target=self._serve_forever, name="paceline-engine", daemon=True
        )

    def _model_drafter(self, drafter: Target) -> ModelDrafter:
        return ModelDrafter(
            drafter,
            self.target,
            max_steps=self.settings.max_draft_steps,
            max_branches=self.settings.max_branches,
            min_probability=self.settings.min_probability,
            budget=self._budget,
            tally=self.tally,
            memory=self._speculator,
            prefixes=self._prefixes,
        )

    @property
    def is_judging(self) -> bool:
        """Whether a new version of the drafter is judged, and asked more often where it rests."""
        return self._budget.is_judging

    @is_judging.setter
    def is_judging(self, is_judging: bool) -> None:
        self._budget.is_judging = is_judging
        if self.arms is not None:
            self.arms.is_judging = is_judging

    @property
    def draft_failures(self) -> FailureLog:
        """What went wrong in drafting."""
        return self._drafts.failures

    @property
    def num_drafter_passes(self) -> int:
        """Forward passes of the model drafter so far, 0 without one."""
        return self.draft_counts.model_passes

    @property
    def draft_counts(self) -> DraftCounts:
        """When the model drafted, and what was cut as not worth its time."""
        return self._budget.counts

    def figures(self) -> DraftingFigures:
        """What is told of drafting beside `draft_counts`."""
        budget = self._budget
        costs = {"target": budget.verify.target, "model": budget.drafter}
        events = {"tokens_cut": budget.verify.num_cut, "failures": self.draft_failures.count}
        return with_arms(DraftingFigures(events, budget.verify.price, costs), self.arms)

    def start(self) -> None:
        """Start serving."""
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            EngineError: too many are waiting.
        """
        job.submitted_at = self._clock()
        if self._load is not None:
            self._load.begin(job)
        try:
            self._waiting.put_nowait(job)
        except queue.Full:
            self._has_ended(job)
            raise EngineError(
                f"{MAX_WAITING} requests are waiting already; try again later"
            ) from None

    def close(self) -> None:
        """Finish the running jobs, drop the waiting ones and stop."""
        while True:
            try:
                job = self._waiting.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job.on_progress(Progress(finish_reason="abort"))
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join()
        if self._load is not None:
            self._load.close()

    def _has_ended(self, job: Job) -> None:
        if self._load is not None:
            self._load.end(job)

    def generate(self, request: GenerationRequest) -> Iterator[Progress]:
        """Generate on the caller's thread; only while the engine is not started.

        Each step of the reply, the last with a finish reason.

        Raises:
            EngineError: the engine failed.
        """
        steps: deque[Progress] = deque()
        job = Job(request, steps.append)
        self.admit(job)
        try:
            while True:
                self.step()
                while steps:
                    progress = steps.popleft()
                    if progress.error is not None:
                        raise EngineError(progress.error)
                    yield progress
                    if progress.finish_reason is not None:
                        return
        finally:
            job.aborted.set()
            self._drop_aborted()

    def _swapped(self, version: int) -> None:
        """Records say from now on which version drafted; what arms know of the last one goes."""
        if self._speculator is not None:
            self._speculator.drafter_version = version
        if self.arms is not None:
            self.arms.reset_drafter(f"version {version}")
        if self._on_swap is not None:
            self._on_swap(version)

    def sizes(self) -> dict[str, int]:
        """Requests waiting and running, sequences kept and their bytes."""
        return {
            "waiting": self._waiting.qsize(),
            "running": len(self._running),
            "kept_sequences": len(self._prefixes),
            "kept_bytes": self._prefixes.num_bytes,
        }

    def forget_kept(self) -> None:
        """Keep no keys and values of what was read so far; from any thread."""
        self._prefixes.clear()

    def step(self) -> None:
        """One forward pass for all requests that run; does nothing if none does."""
        self.drafter_swaps.take()
        self._drop_aborted()
        if not self._running:
            return
        drafting_at = self._clock()
        self._draft()
        began_at = self._clock()
        rows = self._rows()
        is_reading = any(not running.is_answering for running, _ in rows)
        num_tokens = sum(len(row.token_ids) for _, row in rows)
        self._spent = UNKNOWN if is_reading else self._budget.spent(num_tokens)
        self.counts.steps += 1
        for running, row, logits in self._forward(rows):
            if row.num_logits == 0:
                continue
            try:
                self._take(running, row, logits)
            except Exception as error:  # noqa: BLE001  logged: it must not end the other requests
                self._fail(running, error)
        took = None
        if not is_reading:
            ended_at = self._clock()
            if self.arms is None or not self.arms.is_odd:
                self._budget.note_target(len(rows), num_tokens, ended_at - began_at)
            seconds = ended_at - drafting_at - self._budget.drafting_seconds
            took = RoundTime(len(rows), num_tokens, seconds)
        self._drafts.note_round(self._committed, took)

    def _serve_forever(self) -> None:
        is_open = True
        while is_open or self._running:
            while is_open and len(self._running) < self.settings.max_running:
                try:
                    job = self._waiting.get(block=not self._running)
                except queue.Empty:
                    break
                if job is None:
                    is_open = False
                else:
                    self._admit_or_fail(job)
            try:
                self.step()
            except Exception as error:  # noqa: BLE001  logged: the engine must go on serving
                for running in list(self._running):
                    self._fail(running, error)

    def _admit_or_fail(self, job: Job) -> None:
        try:
            self.admit(job)
        except Exception as error:  # noqa: BLE001  logged: it must not end the other requests
            self._failed(job, error)

    def admit(self, job: Job) -> None:
        """Take a job in at once: for the engine's thread, or while it is not started."""
        request = job.request
        self.counts.requests += 1
        if job.submitted_at:
            self.counts.waiting_seconds += self._clock() - job.submitted_at
        self.counts.prompt_tokens += len(request.prompt_ids)
        reply = Reply(request, self.target)
        owner, generation = owner_of(request.info), self._prefixes.generation
        key_values = self._prefixes.take(owner, reply.tokens) if owner else None
        is_drafting = self._drafts.begin(
            request.info,
            request.prompt_ids,
            DraftLimits(request.draft_sources, request.max_draft_tokens),
            request.predicted_ids,
        )
        running = Running(
            job, reply, self.target.sequence() if key_values is None else key_values,
            is_drafting=is_drafting,
            generation=generation,
            tally=self._tally(request, is_drafting=is_drafting),
        )  # fmt: skip
        running.num_cached = len(running.key_values)
        self.counts.cached_tokens += running.num_cached
        self._running.append(running)

    def _tally(self, request: GenerationRequest, *, is_drafting: bool) -> Tally:
        """Counts a request from its beginning."""
        limited_by = request.limits.limited_by(self.settings.max_draft_tokens)
        if self._drafts.is_empty or request.max_draft_tokens == 0 or not request.draft_sources:
            limited_by.append(OFF)
        elif not is_drafting:
            limited_by.append(FAILURE)
        tally = self.decisions.open(request.info.request_id, limited_by)
        tally.who = request.info.tenant, request.info.workload
        return tally

    def _drop_aborted(self) -> None:
        for running in [r for r in self._running if r.job.aborted.is_set()]:
            self.counts.aborted += 1
            self._leave(running)
            running.job.on_progress(Progress(finish_reason="abort"))

    def _rows(self) -> list[tuple[Running, Row]]:
        """What the step reads for each request: answers first, then prompts while there is room."""
        rows: list[tuple[Running, Row]] = []
        room = PREFILL_TOKENS
        for running in self._running:
            held = len(running.key_values)
            if running.is_answering:
                rows.append((running, running.answering_row()))
            elif room > 0:
                num_read = min(room, running.num_unread)
                room -= num_read
                token_ids = running.job.request.prompt_ids[held : held + num_read]
                is_whole = num_read == running.num_unread
                rows.append((
                    running,
                    Row(
                        request_id=running.request_id,
                        key_values=running.key_values,
                        token_ids=token_ids,
                        num_logits=1 if is_whole else 0,
                    ),
                ))  # fmt: skip
        return rows

    def _forward(
        self, rows: list[tuple[Running, Row]]
    ) -> Iterator[tuple[Running, Row, torch.Tensor]]:
        """Logits of each row; where the pass fails, each request's own, without those that fail."""
        try:
            logits = self.target.forward([row for _, row in rows])
        except Exception as error:  # which request is to blame is found out below
            if len(rows) == 1:
                self._fail(rows[0][0], error)
                return
            logger.exception("a forward pass of %d requests failed; trying each alone", len(rows))
            for pair in rows:
                yield from self._forward([pair])
            return
        for (running, row), row_logits in zip(rows, logits, strict=True):
            yield running, row, row_logits

    def _take(self, running: Running, row: Row, logits: torch.Tensor) -> None:
        """Say what the target says, as far as the draft agrees and one token further."""
        reply, request = running.reply, running.job.request
        was_answering = running.is_answering
        tokens, path = verify(
            logits, running.draft.token_ids, row.parents, request.sampling, reply.num_said
        )
        # behind the text, the last token read before the draft and the accepted nodes stay
        before = len(row.key_values) - len(row.parents)
        row.key_values.keep(before, path)
        num_taken, text = reply.take(tokens)
        logprobs: list[TokenLogprobs] = []
        if request.num_logprobs is not None:
            followed = [0, *(node + 1 for node in path)][:num_taken]
            logprobs = logprobs_of(logits[followed], tokens[:num_taken], request.num_logprobs)
        if was_answering:
            self.counts.rounds += 1
            self.counts.draft_tokens += len(row.parents)
            self.counts.accepted_tokens += len(path)
            sources = running.draft.sources
            accepted = bytes([sources[node] for node in path])
            running.tally.note_round(sources, accepted, self._spent)
        elif num_taken:
            running.tally.begin()
        self.counts.generated_tokens += num_taken
        self._committed[running.request_id] = tokens[:num_taken]
        running.draft = NO_DRAFT
        if reply.finish_reason is not None:
            self._leave(running)
        running.job.on_progress(
            Progress(
                text=text,
                token_ids=tuple(tokens[:num_taken]),
                finish_reason=reply.finish_reason,
                logprobs=tuple(logprobs),
                num_cached=0 if was_answering else running.num_cached,
                matched_stop=reply.matched_stop,
            )
        )

    def _fail(self, running: Running, error: Exception) -> None:
        self._leave(running, keep=False)
        self._failed(running.job, error)

    def _failed(self, job: Job, error: Exception) -> None:
        self._has_ended(job)
        self.counts.failed += 1
        logger.error("request %s failed", job.request.info.request_id, exc_info=error)
        job.on_progress(Progress(error=f"the engine failed: {type(error).__name__}"))

    def _leave(self, running: Running, *, keep: bool = True) -> None:
        """Close a request and keep its keys and values for the next that begins alike."""
        if running not in self._running:
            return
        self._running.remove(running)
        self._has_ended(running.job)
        if self.arms is not None:
            request_id = running.request_id
            self.decisions.choose(request_id, self.arms.reason(request_id))
        self.decisions.close(running.request_id)
        if running.is_drafting:
            self._drafts.finish(running.job.request.info, running.reply.tokens)
        owner = owner_of(running.job.request.info)
        if keep and owner:
            tokens = running.reply.tokens
            running.key_values.crop(len(tokens))
            held = tokens[: len(running.key_values)]
            self._prefixes.keep(owner, held, running.key_values, running.generation)

    def _draft(self) -> None:
        """Draft for all requests that are being answered, in one call."""
        answering = [r for r in self._running if r.is_answering]
        num_context = sum(len(r.reply.tokens) for r in answering)
        self._committed = {}
        self._budget.begin(len(answering), num_context=num_context)
        drafting = [r for r in answering if r.is_drafting]
        wishes = [
            Wish(
                info=r.job.request.info,
                tokens=r.reply.tokens,
                max_tokens=self._limit(r),
                draws=NextDraws(r.job.request.sampling, r.reply.num_said),
                sources=r.job.request.draft_sources,
                num_left=r.reply.room,
            )
            for r in drafting
        ]
        num_failures = self.draft_failures.count
        for running, draft in zip(drafting, self._drafts.propose(wishes), strict=True):
            running.draft = draft
            running.tally.num_cut += draft.num_cut
            running.tally.model_rounds += draft.has_model
        if self.draft_failures.count > num_failures:
            self.decisions.failed()

    def _limit(self, running: Running) -> int:
        """Most tokens to draft for a request now."""
        request = running.job.request
        asked = request.max_draft_tokens
        most = self.settings.max_draft_tokens
        most, room = most if asked is None else min(asked, most), running.reply.room - 1
        if room < most:
            running.tally.limits.add(LENGTH)
        return min(most, room)
