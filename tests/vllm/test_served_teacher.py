"""A real vLLM teaches passages as the same target in this process does."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from paceline.errors import LearningError
from paceline.models import load_model
from paceline.online.idle import ServedLoad
from paceline.online.passage_teaching import TargetTeacher
from paceline.online.passages import Passage
from paceline.online.served_teacher import ServedTeacher
from vllm_server import VllmServer

pytestmark = [pytest.mark.vllm, pytest.mark.model, pytest.mark.timeout(900)]

TEXTS = (
    "def mean(values: list[float]) -> float:\n    total = 0.0\n    for value in values:\n"
    "        total += value\n    return total / len(values)\n\n\ndef test_mean() -> None:\n"
    "    assert mean([1.0, 2.0, 3.0]) == 2.0\n",
    'The tool answered {"status": "shipped", "order": 4711, "items": [{"sku": "A-1", "count": 2}, '
    '{"sku": "B-7", "count": 1}]}. So the order is on its way, and the customer asked for nothing '
    "else. Shall I close the ticket, or wait until the parcel has arrived?",
    "SELECT riders.name, COUNT(*) AS stages FROM riders JOIN results ON riders.id = "
    "results.rider_id WHERE results.place <= 3 GROUP BY riders.name ORDER BY stages DESC LIMIT 10;",
)


@pytest.fixture(scope="module")
def server(target_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    """A plain vLLM on the CPU, in float32."""
    made = VllmServer(target_folder, None, tmp_path_factory.mktemp("teacher"), "teacher")
    made.start()
    try:
        made.wait_ready()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def passages(target_folder: Path) -> list[Passage]:
    """Code, a tool's answer, a query; and all of it in one."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(target_folder)
    ids = [tokenizer(text)["input_ids"] for text in (*TEXTS, "\n".join(TEXTS))]
    return [
        Passage(
            token_ids=np.array(each, np.int32),
            is_said=np.arange(len(each)) >= len(each) // 3,
            tenant="a",
            scope="tenant:a",
            workload="",
            session=f"s{number}",
            begun_at=1.0,
            finished_at=1.0,
        )
        for number, each in enumerate(ids)
    ]


def test_both_teachers_say_the_same(
    server: VllmServer, target_folder: Path, passages: list[Passage]
) -> None:
    """The likeliest token at 99 of 100 positions at least, and probabilities but for rounding."""
    from paceline.online.teacher import Teacher

    model, _ = load_model(target_folder)
    here = TargetTeacher(Teacher(model.float(), top_k=16, temperature=0.0)).teach(passages)
    there = ServedTeacher(server.url, top_k=16).teach(passages)
    same: list[bool] = []
    apart: list[float] = []
    for mine, served, passage in zip(here, there, passages, strict=True):
        assert served.top_ids.shape == (len(passage.token_ids) - 1, 16)
        assert served.token_ids.tolist() == mine.token_ids.tolist()
        assert mine.weights is not None
        assert served.weights is not None
        assert served.weights.tolist() == mine.weights.tolist()
        same += (mine.top_ids[:, 0] == served.top_ids[:, 0]).tolist()
        for row in range(len(served.top_ids)):
            told = dict(zip(served.top_ids[row].tolist(), served.top_logprobs[row], strict=True))
            for token_id, logprob in zip(
                mine.top_ids[row].tolist(), mine.top_logprobs[row], strict=True
            ):
                if token_id in told:
                    apart.append(abs(float(told[token_id]) - float(logprob)))
    print(f"same {np.mean(same)} of {len(same)}, apart {np.mean(apart)} max {np.max(apart)}")
    assert len(same) > 250
    assert np.mean(same) >= 0.99
    assert len(apart) >= 0.99 * 16 * len(same)
    assert float(np.quantile(apart, 0.99)) < 0.02


def test_the_servers_own_limit_is_found(server: VllmServer, passages: list[Passage]) -> None:
    """VLLM allows 20 by default: more are not insisted on; a passage that is too long is named."""
    teacher = ServedTeacher(server.url, top_k=64)
    [lesson] = teacher.teach(passages[:1])
    assert lesson.top_ids.shape[1] == teacher.top_k == 20
    long = Passage(
        token_ids=np.ones(1024, np.int32),
        is_said=np.ones(1024, np.bool_),
        tenant="a",
        scope="tenant:a",
        workload="",
        session="long",
        begun_at=1.0,
        finished_at=1.0,
    )
    with pytest.raises(LearningError, match="1024"):
        ServedTeacher(server.url).teach([long])


def test_what_vllm_reads_ends_when_leave_is_taken(
    server: VllmServer, passages: list[Passage]
) -> None:
    """The request leaves the engine with the connection; the gate's source sees both."""
    source = ServedLoad(server.url, full_requests=1)
    assert source.load() == 0
    seen: list[float] = []

    def may_go_on() -> bool:
        seen.append(source.load() or 0.0)
        return seen[-1] == 0  # until the engine has begun

    whole = Passage(
        token_ids=np.tile(passages[-1].token_ids, 8)[:1000],
        is_said=np.ones(1000, np.bool_),
        tenant="a",
        scope="tenant:a",
        workload="",
        session="whole",
        begun_at=1.0,
        finished_at=1.0,
    )
    teacher = ServedTeacher(server.url, may_go_on=may_go_on)
    assert teacher.teach([whole]) == []
    assert max(seen) > 0
    assert teacher.stats()["cancelled"] == 1
    deadline = time.monotonic() + 60
    while source.load() != 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (lesson,) = ServedTeacher(server.url).teach(passages[:1])
    assert lesson.num_reply == len(passages[0].token_ids) - 1
