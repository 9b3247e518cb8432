"""A served target as a teacher: vLLM says how likely it finds each token of a prompt."""

from __future__ import annotations

import http.client
import logging
import re
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.errors import ConfigError, LearningError
from paceline.load_file import TEACHING_KEY
from paceline.online.lessons import Lesson
from paceline.online.passage_teaching import READ_WEIGHT, lesson_of
from paceline.online.passages import Passage

logger = logging.getLogger("paceline.teacher")

POLL_SECONDS: Final = 0.02
RETRY_SECONDS: Final = 1.0
OK, BAD_REQUEST, TOO_MANY, SERVER_ERRORS = 200, 400, 429, 500
LEAST_LOGPROB: Final = float(np.finfo(np.float16).min)
_TOO_MANY_LOGPROBS: Final = re.compile(r"max(?:imum)? allowed[^0-9]{0,40}(\d+)")
COUNTERS: Final = ("asked", "taught_tokens", "cancelled", "retries", "failed")


class _Logprob(msgspec.Struct):
    logprob: float


class _Choice(msgspec.Struct):
    prompt_logprobs: list[dict[int, _Logprob] | None] | None = None


class _Completion(msgspec.Struct):
    choices: list[_Choice]


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


_completions: Final = msgspec.json.Decoder(_Completion)
_models: Final = msgspec.json.Decoder(_Models)


class OwnRequests:
    """How many requests of ours are at an engine, for what looks at its load now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num = self._most = 0

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Around a request."""
        with self._lock:
            self._num += 1
            self._most = max(self._most, self._num)
        try:
            yield
        finally:
            with self._lock:
                self._num -= 1

    def take_most(self) -> int:
        """Most at a time since the last call, so that one that has just ended is among them."""
        with self._lock:
            most, self._most = self._most, self._num
            return most


class ServedTeacher:
    """Has a vLLM server read passages, one after the other.

    Each is a completion of one token with ``prompt_logprobs``. Ask the engine itself: through the
    proxy passages would be a tenant's requests, be limited and be recorded.

    Args:
        url: of the server, http:// or https://, without ``/v1``.
        top_k: likeliest tokens for each token. Where the server allows fewer
            (``--max-logprobs``, 20 by default), as many as it allows.
        model: name it answers under; the first of its models if None.
        api_key: sent as a bearer token, if given.
        read_weight: see `lesson_of`.
        may_go_on: asked before each passage and while one is read; False ends it: the connection is
            closed, upon which vLLM stops reading.
        own: is told of each request.
        attempts: how often a passage is tried while the server is away or busy.
        timeout_seconds: longest time for one passage.
        clock: monotonic seconds.
        wait: sleeps for so many seconds.

    Raises:
        ConfigError: the URL is not one, or a number is less than 1.
    """

    def __init__(
        self,
        url: str,
        *,
        top_k: int = 16,
        model: str | None = None,
        api_key: str | None = None,
        read_weight: float = READ_WEIGHT,
        may_go_on: Callable[[], bool] = lambda: True,
        own: OwnRequests | None = None,
        attempts: int = 3,
        timeout_seconds: float = 120.0,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigError(f"{url!r} is no address of a server; give http://HOST:PORT")
        if top_k < 1 or attempts < 1:
            raise ConfigError(f"top_k is {top_k} and attempts {attempts}; give 1 or more")
        self._parts = parts
        self._url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._model = model
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"
        self._read_weight = read_weight
        self._may_go_on = may_go_on
        self._own = OwnRequests() if own is None else own
        self._attempts = attempts
        self._timeout_seconds = timeout_seconds
        self._clock = clock
        self._wait = wait
        self._counts = Counter(dict.fromkeys(COUNTERS, 0))
        self._one_at_a_time = threading.Lock()
        self.top_k = top_k
        """Likeliest tokens asked for; less than told once the server has said so."""

    def teach(self, passages: Sequence[Passage]) -> list[Lesson]:
        """See `PassageTeacher`: ends where `may_go_on` says so.

        Raises:
            LearningError: the server is away, or refuses or answers something else.
        """
        lessons: list[Lesson] = []
        with self._one_at_a_time:
            for passage in passages:
                lesson = self._lesson(passage) if self._may_go_on() else None
                if lesson is None:
                    break
                lessons.append(lesson)
        return lessons

    def stats(self) -> dict[str, int]:
        """Counters since the start."""
        return dict(self._counts)

    def _lesson(self, passage: Passage) -> Lesson | None:
        """A passage's lesson, None if there is no leave any more."""
        token_ids = passage.token_ids.tolist()
        while True:
            if self._model is None:
                self._model = self._first_model()
                if self._model is None:
                    return None
            body = {
                "model": self._model,
                "prompt": token_ids,
                "max_tokens": 1,
                "temperature": 0,
                "prompt_logprobs": self.top_k,
                "vllm_xargs": {TEACHING_KEY: 1},
            }
            answer = self._asked("POST", "/v1/completions", msgspec.json.encode(body))
            if answer is None:
                return None
            status, data = answer
            if status == OK:
                self._counts["taught_tokens"] += len(token_ids)
                top_ids, top_logprobs = parse_prompt_logprobs(data, len(token_ids), self.top_k)
                return lesson_of(passage, top_ids, top_logprobs, self._read_weight)
            self._take_limit(status, data, len(token_ids))

    def _take_limit(self, status: int, data: bytes, num_tokens: int) -> None:
        """Ask for fewer likeliest tokens if that is what was refused."""
        text = data.decode("utf-8", "replace")
        found = _TOO_MANY_LOGPROBS.search(text) if "logprobs" in text else None
        most = int(found[1]) if found else 0
        if status == BAD_REQUEST and 1 <= most < self.top_k:
            logger.warning(
                "%s tells %d likeliest tokens, %d were wanted; start it with --max-logprobs %d "
                "for all",
                *(self._url, most, self.top_k, self.top_k),
            )
            self.top_k = most
            return
        self._counts["failed"] += 1
        raise LearningError(
            f"{self._url} refuses to read a passage of {num_tokens} tokens ({status}): {text:.300}"
        )

    def _first_model(self) -> str | None:
        answer = self._asked("GET", "/v1/models", None)
        if answer is None:
            return None
        status, data = answer
        try:
            return _models.decode(data).data[0].id
        except (msgspec.DecodeError, IndexError) as error:
            raise LearningError(
                f"{self._url}/v1/models answered {status} and names no model; give the model's name"
            ) from error

    def _asked(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        """Status and body of an answer that is not for the server's state; None if cancelled."""
        reason = ""
        for attempt in range(self._attempts):
            if attempt:
                self._counts["retries"] += 1
                self._wait(RETRY_SECONDS * 2 ** (attempt - 1))
                if not self._may_go_on():
                    return None
            try:
                with self._own.asking():
                    answer = self._exchange(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                reason = f"{type(error).__name__}: {error}"
                continue
            if answer is None or (answer[0] != TOO_MANY and answer[0] < SERVER_ERRORS):
                return answer
            reason = f"{answer[0]}: {answer[1][:200].decode('utf-8', 'replace')}"
        self._counts["failed"] += 1
        raise LearningError(
            f"{self._url} did not read a passage in {self._attempts} attempts ({reason}); it is "
            "asked again later"
        )

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes] | None:
        """One request and its answer; None if leave was taken meanwhile."""
        connection = self._connection()
        deadline = self._clock() + self._timeout_seconds
        try:
            self._counts["asked"] += 1
            connection.request(method, self._parts.path.rstrip("/") + path, body, self._headers)
            while not select.select([connection.sock], [], [], POLL_SECONDS)[0]:
                if not self._may_go_on():
                    self._counts["cancelled"] += 1
                    return None
                if self._clock() > deadline:
                    raise TimeoutError(f"no answer in {self._timeout_seconds:.0f} s")
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        kind = (
            http.client.HTTPSConnection
            if self._parts.scheme == "https"
            else http.client.HTTPConnection
        )
        assert self._parts.hostname is not None
        return kind(self._parts.hostname, self._parts.port, timeout=self._timeout_seconds)


def parse_prompt_logprobs(
    data: bytes, num_tokens: int, top_k: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float16]]:
    """Likeliest tokens of a completion's prompt, int32 and float16 (tokens - 1, up to k).

    vLLM lists k tokens at each position and the prompt's own besides, in any order.

    Args:
        data: body of the answer.
        num_tokens: of the prompt.
        top_k: how many are wanted.

    Raises:
        LearningError: it holds none, or of another prompt.
    """
    try:
        positions = _completions.decode(data).choices[0].prompt_logprobs
    except (msgspec.DecodeError, UnicodeDecodeError, IndexError) as error:
        raise LearningError(f"an answer of {len(data)} bytes is no completion: {error}") from error
    told = [each for each in positions or () if each]
    if len(told) != num_tokens - 1 or positions is None or len(positions) != num_tokens:
        raise LearningError(
            f"a completion tells of {len(told)} tokens of a prompt of {num_tokens}; the server has "
            "to know prompt_logprobs, as vLLM does"
        )
    most = min(top_k, *(len(each) for each in told))
    top_ids = np.empty((len(told), most), np.int32)
    logprobs = np.empty((len(told), most), np.float64)
    for row, each in enumerate(told):
        likeliest = sorted(each.items(), key=_by_likelihood)[:most]
        top_ids[row] = [token_id for token_id, _ in likeliest]
        logprobs[row] = [found.logprob for _, found in likeliest]
    return top_ids, np.maximum(logprobs, LEAST_LOGPROB).astype(np.float16)


def _by_likelihood(item: tuple[int, Any]) -> tuple[float, int]:
    return -item[1].logprob, item[0]
