"""Any thread may call any method, and none holds up the others' Python."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from paceline.caches import DraftIndex, TokenTree

NUM_TOKENS = 1_000_000
NUM_TRIES = 50


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def serve(index: DraftIndex, scope: int, private: int) -> int:
    """Requests of one thread, with tokens that only it says; returns how many were drafted."""
    rng = np.random.default_rng(private)
    read_scopes = i32(scope)
    num_drafted = 0
    for _ in range(15):
        prompt = rng.choice([0, 1, 2, private], 60).astype(np.int32)
        handle, _ = index.begin(prompt, read_scopes=read_scopes, session=private)
        batch = np.array([handle], np.int64)
        for _ in range(10):
            _, *columns = index.propose(batch, i32(8))
            tree = TokenTree(*columns)
            tree.validate()
            assert set(tree.token_ids.tolist()) <= {0, 1, 2, 3, private}
            num_drafted += len(tree)
            _, *columns = index.propose_behind(batch, i32(8), i32(1, 2), np.array([0, 2]))
            assert set(columns[0].tolist()) <= {0, 1, 2, 3, private}
            committed = np.append(tree.token_ids[:3], np.int32(1))
            index.commit(batch, committed, np.array([0, len(committed)], np.int64))
        index.truncate(handle, index.num_tokens(handle) - 2)
        new_tokens, num_prompt = index.finish(handle)
        assert num_prompt <= 60
        assert set(new_tokens.tolist()) <= {0, 1, 2, 3, private}
    return num_drafted


def test_requests_of_several_threads_and_a_writer_get_along() -> None:
    """Threads draft their own and the shared text while another fills, reads and drops scopes."""
    index = DraftIndex(shared_capacity=2000, max_sessions=3)
    scope = index.scope("shared")
    with ThreadPoolExecutor(4) as threads:
        served = [threads.submit(serve, index, scope, private) for private in (101, 102, 103, 104)]
        for i in range(300):
            index.append_shared(scope, np.arange(i, i + 40, dtype=np.int32) % 4)
            passing = index.scope("passing")
            index.append_shared(passing, i32(900, 901, 902))
            assert index.drop_scope(passing) == 4
            index.check_integrity()
        num_drafted = [future.result(timeout=60) for future in served]
    assert min(num_drafted) > 0
    stats = index.stats()
    assert stats["drafted"] == sum(num_drafted)
    assert (stats["requests"], stats["shared_tokens"], stats["sessions"]) == (0, 2000, 3)
    index.check_integrity()


def long_call(name: str) -> Callable[[], object]:
    """A call that takes the index some milliseconds, its arguments made: NumPy releases too."""
    tokens = np.arange(NUM_TOKENS, dtype=np.int32) % 1000
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, tokens)
    handle, _ = index.begin(tokens, read_scopes=i32(), write_scope=scope)
    batch, bounds = np.array([handle], np.int64), np.array([0, NUM_TOKENS], np.int64)
    many, limits = np.full(2000, handle, np.int64), np.full(2000, 16, np.int32)
    calls: dict[str, Callable[[], object]] = {
        "append_shared": partial(index.append_shared, scope, tokens),
        "begin": partial(index.begin, tokens, read_scopes=i32()),
        "check_integrity": partial(index.check_integrity),
        "commit": partial(index.commit, batch, tokens, bounds),
        "finish": partial(index.finish, handle),
        "propose": partial(index.propose, many, limits),
        "truncate": partial(index.truncate, handle, 0),
    }
    return calls[name]


@pytest.fixture
def threads_yield_only_by_releasing() -> Iterator[None]:
    """No thread is made to give up the GIL: another runs only where it is released."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_yield_only_by_releasing")
@pytest.mark.parametrize(
    "name",
    ["append_shared", "begin", "check_integrity", "commit", "finish", "propose", "truncate"],
)
def test_long_calls_release_the_gil(name: str) -> None:
    """While a call works, other threads run Python."""
    assert any(runs_beside(long_call(name)) for _ in range(NUM_TRIES))


def runs_beside(call: Callable[[], object]) -> bool:
    """Whether this thread got to run before a call in another thread was over.

    Never if the call holds the GIL. If not, then whenever this thread wakes up in time.
    """
    about_to_call = threading.Lock()
    about_to_call.acquire()
    is_over: list[bool] = []

    def work() -> None:
        about_to_call.release()
        call()
        is_over.append(True)

    worker = threading.Thread(target=work)
    worker.start()
    about_to_call.acquire()
    in_time = not is_over
    worker.join()
    return in_time


def test_a_long_sequence_keeps_nobody_from_drafting() -> None:
    """Other threads draft from a scope while a million tokens are being added to it."""
    tokens = np.arange(NUM_TOKENS, dtype=np.int32) % 1000
    index = DraftIndex()
    scope = index.scope("s")
    index.append_shared(scope, tokens[:5000])
    handle, _ = index.begin(i32(1, 2, 3, 4), read_scopes=i32(scope))
    batch, limits = np.array([handle], np.int64), i32(8)

    def drafts_beside_an_append() -> bool:
        is_over: list[bool] = []

        def append() -> None:
            index.append_shared(scope, tokens)
            is_over.append(True)

        num_before = index.stats()["shared_tokens"]
        writer = threading.Thread(target=append)
        writer.start()
        while index.stats()["shared_tokens"] == num_before and not is_over:
            pass  # it has not begun
        drafted = index.propose(batch, limits)[1].tolist()
        in_time = not is_over
        writer.join()
        assert drafted == list(range(5, 13))
        return in_time

    assert any(drafts_beside_an_append() for _ in range(NUM_TRIES))
    index.check_integrity()
