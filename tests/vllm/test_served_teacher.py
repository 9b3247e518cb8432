"""A real vLLM teaches passages as the same target in this process does."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import numpy as np
import openai
import pytest

from captured import metric_in
from paceline.errors import LearningError
from paceline.models import load_model
from paceline.online.load_sources import ServedLoad
from paceline.online.passage_teaching import TargetTeacher
from paceline.online.passages import Passage
from paceline.online.served_teacher import ServedTeacher
from vllm_server import VllmServer
from waiting import wait_until

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
    long = replace(passages[0], token_ids=np.ones(1024, np.int32), is_said=np.ones(1024, np.bool_))
    with pytest.raises(LearningError, match="passage of 1024 tokens"):
        ServedTeacher(server.url).teach([long])


def num_answered(server: VllmServer) -> float:
    """Completions that came to their end."""
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=10) as response:  # noqa: S310  our own
        text = response.read().decode()
    return metric_in(text, "vllm:request_success_total", finished_reason="length")


def test_what_vllm_reads_ends_when_leave_is_taken(
    server: VllmServer, passages: list[Passage]
) -> None:
    """The request leaves the engine with the connection, unanswered, and the next one is read."""
    whole = replace(
        passages[-1],
        token_ids=np.tile(passages[-1].token_ids, 8)[:1000],
        is_said=np.ones(1000, np.bool_),
    )
    before = num_answered(server)
    looks = count()
    teacher = ServedTeacher(server.url, model="target", may_go_on=lambda: next(looks) < 3)
    assert teacher.teach([whole]) == []
    assert teacher.stats()["cancelled"] == 1
    [lesson] = ServedTeacher(server.url).teach(passages[:1])
    assert lesson.num_reply == len(passages[0].token_ids) - 1
    wait_until(lambda: num_answered(server) == before + 1)


def test_the_gate_sees_vllms_requests(server: VllmServer) -> None:
    """An idle engine is no load, one that answers is."""
    source = ServedLoad(server.url, full_requests=2)
    assert source.load() == 0
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as api:
        asking = {"prompt": "one two", "max_tokens": 200, "extra_body": {"ignore_eos": True}}
        thread = threading.Thread(
            target=lambda: api.completions.create(model="target", **asking)  # type: ignore[call-overload]
        )
        thread.start()
        wait_until(lambda: source.load() == 0.5, seconds=60)
        thread.join()
    wait_until(lambda: source.load() == 0)
