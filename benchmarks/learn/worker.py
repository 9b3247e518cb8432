"""`python -m paceline.benchmarks.learn.worker WORK`: what needs torch, in a process of its own.

Prints what it found as a line of JSON.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from paceline.benchmarks.learn.records import (
    AnswerWork,
    Asked,
    Examined,
    ExamineWork,
    InTurnWork,
    Replayed,
    Speed,
    SpeedWork,
    TeachWork,
    TrainWork,
    Work,
)
from paceline.online.lessons import Lesson, LessonShards

REPLY_BATCH = 8
TOP_K = 4
READ_BATCH = 4


def answer(work: AnswerWork) -> int:
    """How many replies were written."""
    from paceline.models import load_model, target_path
    from paceline.online.teacher import Teacher

    target, _ = load_model(target_path(work.target))
    teacher = Teacher(target, top_k=TOP_K, temperature=0.0)
    shards = LessonShards(Path(work.out))
    for first in range(0, len(work.prompts), REPLY_BATCH):
        part = [list(asked.token_ids) for asked in work.prompts[first : first + REPLY_BATCH]]
        shards.add(teacher.replies(part, max_tokens=work.output_tokens, seed=0), seconds=0.0)
    shards.complete()
    return len(work.prompts)


def examine(work: ExamineWork) -> list[list[Examined]]:
    """A list for each drafter, of what it comes to on each folder of lessons."""
    from paceline.online.opened import open_drafter
    from paceline.online.student import examine as examined

    found = []
    for folder in work.drafters:
        student = open_drafter(Path(folder), target="").student
        mine = []
        for lessons in work.lessons:
            read, _ = LessonShards(Path(lessons)).read()
            held_out = examined(student, read, chain_tokens=work.chain_tokens, batch=READ_BATCH)
            mine.append(Examined(held_out.accepted_length, held_out.agreement))
        found.append(mine)
    return found


def speed(work: SpeedWork) -> list[Speed]:
    """Of an embedded engine with each way to draft, in their order.

    The engines answer the same prompts one after the other, forwards and backwards by turns: what
    the machine's speed does meanwhile is in all of them. They share the target's weights.
    """
    from paceline.adapters.embedded.__main__ import open_memory
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings
    from paceline.adapters.embedded.target import Target
    from paceline.models import target_path

    target = Target.load(target_path(work.target), dtype=work.dtype)
    settings = EngineSettings(
        max_running=work.in_flight,
        max_draft_tokens=work.draft_tokens,
        max_branches=work.branches,
        min_probability=work.min_probability,
    )
    with ExitStack() as stack:
        runs = []
        for folder in work.drafters:
            drafter = Target.load_drafter(Path(folder), dtype=work.dtype) if folder else None
            memory = None if folder is None else open_memory(work.min_probability)
            engine = EmbeddedEngine(target, memory, settings, drafter=drafter)
            engine.start()
            stack.callback(engine.close)
            runs.append(_EngineRun(engine, work))
        for is_warm, prompts in (
            (True, work.prompts[: work.num_warm]),
            (False, work.prompts[work.num_warm :]),
        ):
            for number, first in enumerate(range(0, len(prompts), work.in_flight)):
                turn = prompts[first : first + work.in_flight]
                for run in runs if number % 2 == 0 else reversed(runs):
                    run.answer(turn, name=f"{is_warm}-{number}", counts=not is_warm)
        return [run.speed() for run in runs]


class _EngineRun:
    """What one engine has come to so far.

    Args:
        engine: a started embedded engine.
        work: what is asked of it.
    """

    def __init__(self, engine: Any, work: SpeedWork) -> None:
        self._engine = engine
        self._work = work
        self._num_tokens: list[int] = []
        self._seconds: list[float] = []
        self._num_rounds = 0
        self._replies: list[Sequence[int]] = []

    def answer(self, prompts: Sequence[Asked], *, name: str, counts: bool) -> None:
        """Answer some prompts at once.

        Args:
            prompts: as many as are in flight, at most.
            name: of the turn, each another one.
            counts: whether the turn is measured.
        """
        from paceline.benchmarks.exact.answers import answer_all

        requests = _requests(prompts, self._work, name)
        rounds, began = self._engine.counts.rounds, time.perf_counter()
        answers = answer_all(self._engine, requests, clock=time.perf_counter)
        seconds = time.perf_counter() - began
        if not counts:
            return
        self._seconds.append(seconds)
        self._num_rounds += self._engine.counts.rounds - rounds
        self._replies += [answer.token_ids for answer in answers]
        self._num_tokens.append(sum(len(answer.token_ids) for answer in answers))

    def speed(self) -> Speed:
        """Of all turns that counted."""
        further = sum(self._num_tokens) - len(self._replies)
        return Speed(
            num_tokens=tuple(self._num_tokens),
            seconds=tuple(self._seconds),
            tokens_per_round=further / max(self._num_rounds, 1),
            digest=blake2b(msgspec.json.encode(self._replies), digest_size=8).hexdigest(),
        )


def _requests(prompts: Sequence[Asked], work: SpeedWork, name: str) -> list[Any]:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams
    from paceline.adapters.request_info import RequestInfo

    return [
        GenerationRequest(
            info=RequestInfo(
                request_id=f"{name}-{i}",
                tenant=f"{name}-{i}" if work.apart else "local",
                session=asked.session,
            ),
            prompt_ids=asked.token_ids,
            max_tokens=work.output_tokens,
            sampling=SamplingParams(temperature=0.0),
        )
        for i, asked in enumerate(prompts)
    ]


def in_turn(work: InTurnWork) -> int:
    """How many were done; each tells of itself on standard error."""
    for each in work.works:
        if isinstance(each, TeachWork):
            teach(each)
        else:
            train(each)
        print(f"{each.out}: done", file=sys.stderr, flush=True)
    return len(work.works)


def teach(work: TeachWork) -> None:
    """Write the lessons that are not there yet."""
    from paceline.models import load_model, target_path
    from paceline.online.teacher import Teacher

    target, _ = load_model(target_path(work.target))
    teacher = Teacher(target, top_k=work.top_k, temperature=0.0)
    shards = LessonShards(Path(work.out))
    for first in range(shards.num_shards * REPLY_BATCH, len(work.prompts), REPLY_BATCH):
        part = [list(asked.token_ids) for asked in work.prompts[first : first + REPLY_BATCH]]
        replies = teacher.replies(part, max_tokens=work.output_tokens, seed=0)
        read = teacher.readings([reply.token_ids.tolist() for reply in replies])
        shards.add(
            [_passage(*both) for both in zip(replies, read, strict=True)],
            seconds=0.0,
        )
    shards.complete()


def _passage(reply: Lesson, read: Lesson) -> Lesson:
    """The whole text, in which what was said counts and what was read does not."""
    weights = np.zeros(read.num_reply, np.float16)
    weights[-reply.num_reply :] = 1
    return replace(read, weights=weights)


def train(work: TrainWork) -> None:
    """Write what the trained drafter does on each held-out lesson."""
    from paceline.online.opened import open_drafter
    from paceline.online.training import Trainer, TrainingLimits

    student = open_drafter(Path(work.drafter), target="").student
    held_out, _ = LessonShards(Path(work.held_out)).read()
    if work.seed is not None:
        cycle = work.cycle
        lessons = _weighted(student, LessonShards(Path(work.lessons)).read()[0], work)
        limits = TrainingLimits(
            steps=max(1, cycle.epochs * len(lessons) // cycle.batch),
            seconds=None,
            batch=cycle.batch,
            learning_rate=cycle.learning_rate,
            seed=work.seed,
            objective=cycle.objective,
        )
        for _ in Trainer(student, lessons, limits, clock=time.monotonic).run():
            pass
    found = [_replayed(student, lesson, work.chain_tokens) for lesson in held_out]
    out = Path(work.out)
    beside = out.with_suffix(".new")
    beside.write_bytes(msgspec.json.encode(found))
    beside.rename(out)


def _weighted(student: Any, lessons: Sequence[Lesson], work: TrainWork) -> list[Lesson]:
    """Lessons weighted as a learner's are when a cycle begins."""
    from paceline.online.errors_first import emphasised

    found = []
    for lesson in lessons:
        is_said = np.asarray(lesson.weights) > 0
        weights = np.where(is_said, 1.0, work.cycle.read_weight).astype(np.float16)
        guesses = student.guesses([lesson]).numpy()
        plain = replace(lesson, weights=weights)
        found.append(emphasised(plain, guesses, emphasis=work.cycle.error_emphasis))
    return found


def _replayed(student: Any, lesson: Lesson, chain_tokens: int) -> Replayed:
    from paceline.online.greedy_replay import count_replay

    guesses = student.guesses([lesson]).numpy()
    is_said = np.asarray(lesson.weights) > 0
    counts = count_replay(
        guesses,
        lesson.token_ids[lesson.num_prompt :],
        lesson.top_ids[:, 0],
        is_said=is_said,
        chain_tokens=chain_tokens,
    )
    is_guess = lesson.top_ids == guesses[:, None]
    chances = np.where(is_guess, np.exp(lesson.top_logprobs.astype(np.float64)), 0.0).sum(-1)
    return Replayed(counts, float(chances[is_said].sum()))


def main(work: Work) -> None:
    """Do it, on one thread."""
    import torch

    torch.set_num_threads(1)
    found: Any
    match work:
        case AnswerWork():
            found = answer(work)
        case ExamineWork():
            found = examine(work)
        case SpeedWork():
            found = speed(work)
        case InTurnWork():
            found = in_turn(work)
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    if told.core is not None:
        os.sched_setaffinity(0, {told.core})
    main(told)
