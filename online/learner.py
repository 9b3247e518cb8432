"""The learner: decides when the drafter learns, has it learn, and publishes what is better.

One drafter group of one model. `consider` is called now and then and does the next thing there is
to do; what takes long goes on in micro-steps while nobody else wants the machine. Needs torch.
"""

from __future__ import annotations

import logging
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from paceline.caches.drafter_versions import DrafterVersion, GateResult
from paceline.drafter_folder import Distilled
from paceline.errors import ConfigError
from paceline.online.cycle import CycleFolder, CyclePlan, train
from paceline.online.errors_first import emphasised
from paceline.online.greedy_replay import ReplayCounts, total
from paceline.online.learner_notes import OPEN_STATES, LearnerFigures, LearnerNotes
from paceline.online.learner_parts import LearnerParts
from paceline.online.learner_settings import LearnerSettings
from paceline.online.lessons import Lesson
from paceline.online.load_check import check_drafter
from paceline.online.looks import StoppedError
from paceline.online.micro_steps import micro_steps
from paceline.online.opened import OpenedDrafter, distilled_of, open_drafter, save_opened
from paceline.online.passages import Passage
from paceline.online.progress import progress_bar
from paceline.online.promotion import gathered, judge
from paceline.online.shared_work import SharedWork, cycle_limits
from paceline.online.student import Student, replay_lessons
from paceline.online.training import Trainer
from paceline.online.worthwhile import Decision, ExpectedGain, Loss, decide

logger = logging.getLogger("paceline.learner")

PROBED_PASSAGES: Final = 16
"""Read to find out how well the drafter does on what was said of late."""
SMOKE_PROMPTS: Final = 4
"""Held-out passages that a candidate has to draft from before it is published."""
TAUGHT_AT_ONCE: Final = 4
"""Passages that the teacher gets at a time."""
FIRST_CYCLE_SECONDS: Final = 300.0
"""What a cycle is taken to need before there was one."""


class DroppedError(Exception):
    """Somebody was forgotten whose words were being learned from."""


class Learner:
    """Trains one group's drafter from live traffic.

    Args:
        settings: what was told.
        parts: what it works with.
        clock: monotonic seconds.
        wall_clock: Unix time in seconds.

    Attributes:
        figures: for whoever watches.
        goes_on: whether the last `consider` worked on a cycle, so that there may be more to do.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        parts: LearnerParts,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.figures = LearnerFigures(longest=parts.looks.longest)
        self.goes_on = False
        self._settings = settings
        self._parts = parts
        self._looks = parts.looks
        self._clock = clock
        self._wall_clock = wall_clock
        folder = Path(settings.data).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        self._candidate = folder / "candidate"
        self._cycle = CycleFolder(folder / "cycle")
        self._notes_file = folder / "learner.json"
        self._notes = LearnerNotes.read(self._notes_file)
        self._expected = ExpectedGain(settings.cycle.economics.prior_gain)
        for gained in self._notes.gains:
            self._expected.learn(gained)
        self._cycle_seconds = FIRST_CYCLE_SECONDS
        self._is_forgotten = threading.Event()
        self._thought_at = 0
        """Tokens that had been taken in when a cycle was last thought about."""
        self._looked_at = 0
        """The same when it was last looked whether the traffic has changed."""
        self._opened: tuple[int, OpenedDrafter] | None = None
        self._vocab_size = 0

    def consider(self) -> str:
        """Do the next thing there is to do; returns what it was, or why nothing was done.

        Raises:
            StoppedError: `stop` was set; what was begun goes on the next time.
            ConfigError: the version that runs cannot be trained.
        """
        self.goes_on = False
        try:
            with self._parts.gate.using():
                self.figures.reason = self._next()
        except StoppedError:
            self.figures.events["interrupted"] += 1
            raise
        except DroppedError:
            self._cycle.drop()
            self.figures.events["dropped"] += 1
            self.figures.reason = "what was being learned from was forgotten; a cycle begins anew"
        finally:
            self._enter("waiting")
        return self.figures.reason

    def forget(self) -> None:
        """Somebody was forgotten whose words may be among the lessons; from any thread."""
        self._is_forgotten.set()

    def _next(self) -> str:
        base = self._base()
        if base is None:
            return "there is no drafter yet: give drafter in the settings, or publish one"
        self.figures.base = base.version
        plan = self._cycle.plan()
        if plan is not None and plan.base != base.version:
            self._cycle.drop()
            plan = None
        if plan is None:
            if waiting := self._why_not(base):
                return waiting
            plan = self._begin(base)
        self.goes_on = True
        start = self._parts.registry.version(self._settings.group, plan.start)
        return self._run(base, start, plan)

    def _base(self) -> DrafterVersion | None:
        """The version that engines run; the first one is what the settings name."""
        registry, group = self._parts.registry, self._settings.group
        if current := registry.state(group).current:
            return registry.version(group, current)
        if not self._settings.drafter or registry.versions(group):
            return None
        first = registry.publish(
            group,
            Path(self._settings.drafter).expanduser(),
            parent=0,
            num_tokens=0,
            gate=None,
            reason="what learning begins with",
        )
        return registry.promote(group, first.version, reason="what learning begins with")

    def _why_not(self, base: DrafterVersion) -> str:
        """Why no cycle begins now; "" if one does."""
        versions = self._parts.registry.versions(self._settings.group)
        self._take_in(versions)
        if versions[-1].state in OPEN_STATES:
            return f"version {versions[-1].version} is being tried ({versions[-1].state})"
        found = self._parts.replay.stats()
        num_sessions, least = found["held_out_sessions"], self._settings.gate.min_sessions
        if num_sessions < least:
            return f"{num_sessions} of {least} held-out sessions are there"
        taken, usual = found["taken_tokens"], self._settings.cycle.min_new_tokens
        new, wanted = taken - self._thought_at, usual * self._notes.patience
        if new < usual or (new < wanted and taken - self._looked_at < usual):
            return f"{new:,} of {wanted:,} new tokens are there"
        self._enter("judging")
        measured = {it.conversation for it in self._held_out()}
        if len(measured) < least:
            self._thought_at = taken
            return f"{len(measured)} of {least} held-out sessions say what is not learned from"
        return self._why_not_worthwhile(base, taken, wanted)

    def _why_not_worthwhile(self, base: DrafterVersion, taken: int, wanted: int) -> str:
        """The same by how the drafter does: for want of a change, or of a gain.

        Args:
            base: version that runs.
            taken: tokens that have been taken in.
            wanted: that are to be new where the traffic has not changed.
        """
        loss, accepted_length = self._looked(base)
        self._looked_at, new = taken, taken - self._thought_at
        if new < wanted and not loss.has_changed:
            return f"{new:,} of {wanted:,} new tokens are there, much like those before"
        self._thought_at = taken
        decision = self._decided(loss, accepted_length)
        if decision.begins:
            logger.info("learning begins: %s", decision.reason)
            return ""
        self.figures.events["not_worthwhile"] += 1
        return decision.reason

    def _take_in(self, versions: Sequence[DrafterVersion]) -> None:
        """Learn what has become of versions since the last look."""
        known = self._notes.known
        for gained in self._notes.take_in(versions, self.figures.events):
            self._expected.learn(gained)
        if self._notes.known != known:
            self._notes.save(self._notes_file)

    def _decided(self, loss: Loss, accepted_length: float) -> Decision:
        """Whether a cycle is worth its cost."""
        return decide(
            self._settings.cycle.economics,
            accepted_length=accepted_length,
            expected_gain=self._expected.value,
            loss=loss,
            busy_share=self._parts.gate.stats().busy_share,
            cycle_seconds=self._cycle_seconds,
        )

    def _looked(self, base: DrafterVersion) -> tuple[Loss, float]:
        """(what was lost, accepted tokens a round) of the drafter on what was said of late."""
        self._enter("judging")
        opened = self._open(base)
        rng = np.random.default_rng(self._notes.num_cycles)
        recent = self._settings.cycle.min_new_tokens
        passages = self._parts.replay.newest(PROBED_PASSAGES, recent, rng)
        lessons = self._taught(passages)
        if not lessons:
            return Loss(), 0.0
        accepted = total(self._replayed(opened.student, passages, lessons)).accepted_length
        loss = self._notes.recent.look(base.version, accepted)
        if loss.has_changed:
            self._notes.patience = 1  # what earlier cycles came to says little
        self._notes.save(self._notes_file)
        return loss, accepted

    def _begin(self, base: DrafterVersion) -> CyclePlan:
        self._notes.num_cycles += 1
        self._notes.save(self._notes_file)
        self.figures.events["cycles"] += 1
        plan = CyclePlan(
            base=base.version,
            start=self._start(base).version,
            number=self._notes.num_cycles,
            num_passages=self._settings.cycle.passages,
            began_at=self._wall_clock(),
        )
        self._is_forgotten.clear()
        self._cycle.begin(plan)
        return plan

    def _start(self, base: DrafterVersion) -> DrafterVersion:
        """What to go on from: what the last cycle made, if it only was not surely better."""
        newest = self._parts.registry.versions(self._settings.group)[-1]
        is_better = newest.gate is not None and newest.gate.after > newest.gate.before
        is_next = newest.state == "rejected" and newest.parent == base.version
        return newest if is_next and is_better else base

    def _run(self, base: DrafterVersion, start: DrafterVersion, plan: CyclePlan) -> str:
        """From a plan to a published candidate, or to none; from wherever it was left."""
        used = self._parts.gate.stats().used_seconds
        opened = self._open(start)
        lessons = self._lessons(plan)
        if not lessons:
            self._cycle.drop()
            return "there is nothing to learn from yet"
        lessons = self._emphasised(opened.student, lessons)
        trainer = self._train(start, opened, lessons, plan)
        gate = self._judged(base, opened.student)
        trained = self._written(opened, lessons, trainer, gate)
        said = self._publish(base, start.num_tokens + trained.num_tokens, gate)
        self.figures.events["tokens"] += trained.num_tokens
        self._cycle_seconds = self._parts.gate.stats().used_seconds - used
        return said

    def _open(self, base: DrafterVersion) -> OpenedDrafter:
        """The base in memory, as it is in its folder."""
        if self._opened is None or self._opened[0] != base.version:
            self._opened = base.version, self._loaded(base)
            self._vocab_size = self._opened[1].record.vocab_size
        return self._opened[1]

    def _loaded(self, version: DrafterVersion) -> OpenedDrafter:
        before = self.figures.phase
        self._enter("storing")
        with self._looks.running("loading"):
            opened = open_drafter(
                Path(version.folder),
                target=Path(self._settings.target).name,
                device=self._parts.device,
                rest=self._looks.rest,
            )
        self._enter(before)
        return opened

    def _lessons(self, plan: CyclePlan) -> list[Lesson]:
        """The cycle's, from its folder or taught now."""
        shards = self._cycle.lessons
        if not shards.is_complete:
            passages = self._parts.replay.sample(
                plan.num_passages, np.random.default_rng(plan.number)
            )
            done = shards.num_shards * TAUGHT_AT_ONCE
            with progress_bar("teaching", len(passages)) as advance:
                advance(min(done, len(passages)))
                for first in range(done, len(passages), TAUGHT_AT_ONCE):
                    part = passages[first : first + TAUGHT_AT_ONCE]
                    shards.add(self._taught(part), seconds=0.0)
                    self._require_unforgotten()
                    advance(len(part))
            shards.complete()
        with self._looks.running("lessons"):
            return shards.read(pause=self._looks.pause)[0]

    def _taught(self, passages: Sequence[Passage]) -> list[Lesson]:
        """What the target would have said at each place; waits while there is no time."""
        self._enter("teaching")
        lessons: list[Lesson] = []
        with self._looks.running("teaching"):
            while len(lessons) < len(passages):
                self._looks.pause()
                lessons += self._parts.teacher.teach(passages[len(lessons) :])
        return lessons

    def _emphasised(self, student: Student, lessons: Sequence[Lesson]) -> list[Lesson]:
        """Lessons with more weight where the drafter is wrong."""
        self._enter("training")
        found: list[Lesson] = []
        pause = self._looks.pause
        with self._looks.running("replaying"), micro_steps(student.model, pause):
            for lesson in lessons:
                guesses = student.guesses([lesson], pause=pause).numpy()
                emphasis = self._settings.cycle.error_emphasis
                found.append(emphasised(lesson, guesses, emphasis=emphasis))
        return found

    def _train(
        self, start: DrafterVersion, opened: OpenedDrafter, lessons: list[Lesson], plan: CyclePlan
    ) -> Trainer:
        """Teach the opened drafter, which is what was opened no more from then on."""
        self._enter("training")
        self._opened = None
        work = SharedWork(
            start.folder,
            Path(self._settings.target).name,
            lessons,
            plan,
            str(self._cycle.folder),
            self._settings,
        )
        self._parts.ranks.from_first(work)  # the others wait for it
        self._looks.take_longest()
        self.figures.longest_part_seconds = 0.0
        limits = cycle_limits(self._settings)
        num_steps = limits.num_steps(len(lessons))
        with progress_bar("training", num_steps) as advance:

            def note(trainer: Trainer) -> None:
                self._require_unforgotten()
                advance(1)
                self.figures.events["steps"] += 1
                self.figures.progress = trainer.num_steps / num_steps
                self.figures.loss = trainer.loss
                self.figures.longest_part_seconds = max(
                    self.figures.longest_part_seconds, self._looks.take_longest()
                )

            return train(
                opened.student,
                lessons,
                plan,
                self._cycle,
                limits,
                looks=self._looks,
                ranks=self._parts.ranks,
                on_step=note,
                on_phase=self._enter,
                clock=self._clock,
            )

    def _judged(self, base: DrafterVersion, trained: Student) -> GateResult:
        """The gate's finding on held-out sessions, for the base and for what became of it."""
        self._enter("judging")
        passages = self._held_out(self._settings.judging.max_passages)
        lessons = self._taught(passages)
        self._enter("judging")
        before = self._replayed(self._loaded(base).student, passages, lessons)
        after = self._replayed(trained, passages, lessons)
        keys = [(it.conversation, it.workload) for it in passages]
        with self._looks.running("resampling"):
            sessions = gathered(keys, before, after)
            return judge(sessions, self._settings.gate, pause=self._looks.pause)

    def _held_out(self, num: int | None = None) -> list[Passage]:
        """What measures a drafter, at most `num` passages."""
        with self._looks.running("comparing"):
            return self._parts.replay.held_out(num, pause=self._looks.pause)

    def _replayed(
        self, student: Student, passages: Sequence[Passage], lessons: Sequence[Lesson]
    ) -> list[ReplayCounts]:
        """What greedy drafting would have accepted of what was said in each passage."""
        self._enter("judging")
        pause = self._looks.pause
        with self._looks.running("replaying"), micro_steps(student.model, pause):
            return replay_lessons(
                student,
                lessons,
                chain_tokens=self._settings.judging.chain_tokens,
                batch=1,
                said=[it.is_said[1:] for it in passages],
                pause=pause,
            )

    def _written(
        self,
        opened: OpenedDrafter,
        lessons: Sequence[Lesson],
        trainer: Trainer,
        gate: GateResult,
    ) -> Distilled:
        """Write what was trained into the candidate's folder; returns what is said of it there."""
        self._enter("storing")
        trained = distilled_of(
            gate,
            num_steps=trainer.num_steps,
            num_tokens=sum(lesson.num_reply for lesson in lessons),
            chain_tokens=self._settings.judging.chain_tokens,
        )
        shutil.rmtree(self._candidate, ignore_errors=True)
        with self._looks.finishing("writing"):
            save_opened(opened, trained, self._candidate, rest=self._looks.rest)
        return trained

    def _publish(self, base: DrafterVersion, num_tokens: int, gate: GateResult) -> str:
        """Look whether the candidate is whole, and publish it; the cycle ends.

        Raises:
            DroppedError: somebody was forgotten meanwhile.
        """
        registry, settings = self._parts.registry, self._settings
        rest = self._looks.rest
        held_out = self._held_out(SMOKE_PROMPTS)
        try:
            if held_out:
                with self._looks.finishing("checking"):
                    check_drafter(
                        self._candidate,
                        vocab_size=self._vocab_size,
                        prompts=[it.token_ids.tolist() for it in held_out],
                        rest=rest,
                    )
            self._require_unforgotten()  # the gate may have been closed for long
            with self._looks.finishing("publishing"):
                version = registry.publish(
                    settings.group,
                    self._candidate,
                    parent=base.version,
                    num_tokens=num_tokens,
                    gate=gate,
                    rest=rest,
                )
        except ConfigError as error:
            self.figures.events["unsound"] += 1
            return f"what was trained is not published: {error}"
        finally:
            shutil.rmtree(self._candidate, ignore_errors=True)
            self._cycle.drop()
        found = f"{gate.before:.3f} accepted tokens a round before, {gate.after:.3f} after"
        if not gate.passed:
            return f"version {version.version} is not better ({found}): {'; '.join(gate.reasons)}"
        self.figures.events["published"] += 1
        if not settings.judging.canary:
            registry.promote(
                settings.group, version.version, reason="the gate let it pass; no canary"
            )
        return f"version {version.version} is better: {found}"

    def _enter(self, phase: str) -> None:
        self.figures.phase = phase
        self._parts.gate.note(phase)

    def _require_unforgotten(self) -> None:
        if self._is_forgotten.is_set():
            raise DroppedError
