"""`python -m paceline.benchmarks.learn.worker WORK`: what needs torch, in a process of its own.

Prints what it found as a line of JSON.
"""

from __future__ import annotations

import os
import sys
import time
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec

from paceline.benchmarks.learn.records import (
    AnswerWork,
    Asked,
    Examined,
    ExamineWork,
    Speed,
    SpeedWork,
    Work,
)

REPLY_BATCH = 8
TOP_K = 4
READ_BATCH = 4


def answer(work: AnswerWork) -> int:
    """How many replies were written."""
    from paceline.models import load_model, target_path
    from paceline.online.lessons import LessonShards
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
    from paceline.online.lessons import LessonShards
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


def speed(work: SpeedWork) -> Speed:
    """Of an embedded engine with memory and the drafter, if there is one."""
    from paceline.adapters.embedded.engine import EmbeddedEngine
    from paceline.adapters.embedded.engine_settings import EngineSettings
    from paceline.adapters.embedded.target import Target
    from paceline.adapters.speculator import Speculator
    from paceline.benchmarks.exact.answers import answer_all
    from paceline.models import target_path

    engine = EmbeddedEngine(
        Target.load(target_path(work.target)),
        Speculator(),
        EngineSettings(max_running=work.in_flight, max_draft_tokens=work.draft_tokens),
        drafter=Target.load_drafter(Path(work.drafter)) if work.drafter else None,
    )
    engine.start()
    try:
        warm, asked = work.prompts[: work.num_warm], work.prompts[work.num_warm :]
        answer_all(engine, _requests(warm, work, "warm"), clock=time.perf_counter)
        rounds, began = engine.counts.rounds, time.perf_counter()
        answers = answer_all(engine, _requests(asked, work, "asked"), clock=time.perf_counter)
        seconds = time.perf_counter() - began
    finally:
        engine.close()
    replies = [answer.token_ids for answer in answers]
    num_tokens = sum(map(len, replies))
    return Speed(
        tokens_per_second=num_tokens / seconds,
        tokens_per_round=(num_tokens - len(replies)) / max(engine.counts.rounds - rounds, 1),
        digest=blake2b(msgspec.json.encode(replies), digest_size=8).hexdigest(),
    )


def _requests(prompts: tuple[Asked, ...], work: SpeedWork, name: str) -> list[Any]:
    from paceline.adapters.embedded.requests import GenerationRequest
    from paceline.adapters.embedded.sampling import SamplingParams
    from paceline.adapters.request_info import RequestInfo

    return [
        GenerationRequest(
            info=RequestInfo(request_id=f"{name}-{i}", tenant="local", session=asked.session),
            prompt_ids=asked.token_ids,
            max_tokens=work.output_tokens,
            sampling=SamplingParams(temperature=0.0),
        )
        for i, asked in enumerate(prompts)
    ]


def main(work: Work) -> None:
    """Do it, on one core."""
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
    print(msgspec.json.encode(found).decode())


if __name__ == "__main__":
    told = msgspec.json.decode(sys.stdin.buffer.read(), type=Work)
    os.sched_setaffinity(0, {told.core})
    main(told)
