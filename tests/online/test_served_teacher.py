"""A served teacher asks as vLLM wants it, keeps to its limits, and leaves when it has to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from paceline.errors import ConfigError, LearningError
from paceline.online.passages import Passage
from paceline.online.served_teacher import OwnRequests, ServedTeacher
from paceline.processes import free_port
from waiting import wait_until


class Engine:
    """Speaks as vLLM does of prompts' tokens; can fail, refuse and hang."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.failing: list[int] = []
        self.max_logprobs = 20
        self.hangs = threading.Event()
        self.left = threading.Event()
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(200, {"data": [{"id": "target"}, {"id": "lora"}]})

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                engine.asked.append(body)
                engine.keys.append(self.headers["authorization"])
                if engine.hangs.is_set():
                    assert self.connection.recv(1) == b""  # until the client goes away
                    engine.left.set()
                    return
                if engine.failing:
                    self.answer(engine.failing.pop(0), {"error": "busy"})
                elif body["prompt_logprobs"] > engine.max_logprobs:
                    message = (
                        f"Requested prompt logprobs of {body['prompt_logprobs']}, which is greater "
                        f"than max allowed: {engine.max_logprobs}"
                    )
                    self.answer(400, {"error": {"message": message}})
                else:
                    self.answer(200, engine.completion(body))

            def answer(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def completion(self, body: dict[str, Any]) -> dict[str, Any]:
        positions: list[Any] = [None]
        for place, token_id in enumerate(body["prompt"][1:]):
            told = {
                str(1000 + place + rank): {"logprob": -float(rank), "rank": rank}
                for rank in range(body["prompt_logprobs"], 0, -1)
            }
            positions.append({str(token_id): {"logprob": -9999.0, "rank": 77}, **told})
        return {"choices": [{"text": "x", "prompt_logprobs": positions}]}

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """One that answers."""
    made = Engine()
    yield made
    made.close()


def passage(*token_ids: int) -> Passage:
    return Passage(
        token_ids=np.array(token_ids, np.int32),
        is_said=np.arange(len(token_ids)) >= 2,
        tenant="a",
        scope="tenant:a",
        workload="",
        session="s",
        begun_at=1.0,
        finished_at=1.0,
    )


def no_wait(_seconds: float) -> None:
    """Tests do not sleep."""


def test_what_vllm_tells_becomes_a_lesson(engine: Engine) -> None:
    """The likeliest tokens in their order, without the prompt's own; one token is asked for."""
    teacher = ServedTeacher(engine.url, top_k=3, api_key="k")
    [lesson, _] = teacher.teach([passage(5, 6, 7), passage(8, 9)])
    assert lesson.token_ids.tolist() == [5, 6, 7]
    assert lesson.top_ids.tolist() == [[1001, 1002, 1003], [1002, 1003, 1004]]
    assert lesson.top_logprobs.tolist() == [[-1.0, -2.0, -3.0]] * 2
    assert lesson.num_prompt == 1
    assert lesson.weights is not None
    assert lesson.weights.tolist() == [0.25, 1.0]
    asked = {"model": "target", "prompt": [5, 6, 7], "max_tokens": 1, "temperature": 0}
    told = {"vllm_xargs": {"paceline_teaching": 1}}  # its engine counts it as no load
    assert engine.asked[0] == {**asked, "prompt_logprobs": 3, **told}
    assert engine.keys[0] == "Bearer k"
    assert teacher.stats()["taught_tokens"] == 5


def test_it_keeps_to_what_the_server_allows(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Fewer likeliest tokens from then on, said once with what would give all."""
    engine.max_logprobs = 2
    teacher = ServedTeacher(engine.url, top_k=5)
    lessons = teacher.teach([passage(5, 6, 7), passage(8, 9)])
    assert [lesson.top_ids.shape[1] for lesson in lessons] == [2, 2]
    assert [body["prompt_logprobs"] for body in engine.asked] == [5, 2, 2]
    assert caplog.text.count("--max-logprobs 5") == 1


def test_a_busy_server_is_asked_again(engine: Engine) -> None:
    """A few times, with longer waits in between; then it is said what the matter was."""
    waits: list[float] = []
    teacher = ServedTeacher(engine.url, wait=waits.append)
    engine.failing = [503, 429]
    assert len(teacher.teach([passage(5, 6)])) == 1
    assert waits == [1.0, 2.0]
    engine.failing = [500] * 3
    with pytest.raises(LearningError, match=r"3 attempts \(500: .*busy"):
        teacher.teach([passage(5, 6)])
    assert teacher.stats()["failed"] == 1


def test_a_server_that_is_away_or_refuses_is_named() -> None:
    """Its address and the reason are in the message."""
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(LearningError, match=f"{url} did not read .*refused"):
        ServedTeacher(url, wait=no_wait).teach([passage(5, 6)])


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_is_not_repeated(engine: Engine, status: int) -> None:
    """What the request itself is the reason for will not change."""
    engine.failing = [status]
    with pytest.raises(LearningError, match=rf"refuses .*\({status}\)"):
        ServedTeacher(engine.url, wait=no_wait).teach([passage(5, 6)])
    assert len(engine.asked) == 1


def test_what_is_no_answer_is_refused(engine: Engine) -> None:
    """A server that does not know prompt_logprobs teaches nothing."""
    engine.completion = lambda body: {"choices": [{"text": "x"}]}  # type: ignore[method-assign]
    with pytest.raises(LearningError, match="tells of 0 tokens of a prompt of 2"):
        ServedTeacher(engine.url).teach([passage(5, 6)])


def test_without_leave_the_reading_ends(engine: Engine) -> None:
    """The connection is closed while the server still reads; what was taught before is given."""
    is_open = threading.Event()
    is_open.set()
    own = OwnRequests()
    teacher = ServedTeacher(engine.url, top_k=2, may_go_on=is_open.is_set, own=own)
    assert len(teacher.teach([passage(5, 6)])) == 1
    assert [own.take_most() for _ in range(2)] == [1, 0], "one that has just ended counts once"
    engine.hangs.set()
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(teacher.teach([passage(5, 6, 7)])))
    thread.start()
    wait_until(lambda: len(engine.asked) == 2)
    assert not engine.left.is_set()
    assert [own.take_most() for _ in range(2)] == [1, 1]
    is_open.clear()
    thread.join(10)
    wait_until(engine.left.is_set)
    assert found == [[]]
    assert [own.take_most() for _ in range(2)] == [1, 0]
    assert teacher.teach([passage(5, 6)]) == []
    assert len(engine.asked) == 2
    assert teacher.stats()["cancelled"] == 1


def test_a_server_that_never_answers_is_given_up(engine: Engine) -> None:
    """After the longest time for one passage."""
    engine.hangs.set()
    teacher = ServedTeacher(
        engine.url, model="target", timeout_seconds=0.05, attempts=2, wait=no_wait
    )
    with pytest.raises(LearningError, match="no answer in 0 s"):
        teacher.teach([passage(5, 6)])
    assert len(engine.asked) == 2


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://h/", "http://"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigError, match="no address of a server"):
        ServedTeacher(url)
