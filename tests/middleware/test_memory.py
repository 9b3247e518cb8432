"""`paceline memory` on the embedded Valkey, beside engines that draft from it."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np
import pytest
import redis
from click.testing import CliRunner, Result

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.sharing import open_shared_journal
from paceline.adapters.speculator import Speculator
from paceline.caches import ModelFingerprint
from paceline.caches.embedded_store import EmbeddedStore
from paceline.caches.journal_keeper import StoreLimits
from paceline.middleware.cli import cli
from paceline.middleware.serve import STORE_FOLDER
from waiting import wait_until

pytestmark = pytest.mark.redis

MODEL = ModelFingerprint(model="m", tokenizer="t")
CANARY = list(range(41_000, 41_064))
CANARY_SESSION = "session-of-the-canary"


class Engine:
    """A draft memory and its journal."""

    def __init__(self, url: str) -> None:
        self.speculator = Speculator()
        limits = StoreLimits(segment_tokens=200, seal_after_seconds=0.0)
        self.journal = open_shared_journal(self.speculator, url, MODEL, limits=limits)
        self.journal.start()

    def say(self, name: str, tokens: list[int], *, tenant: str = "a", session: str = "") -> None:
        request = RequestInfo(request_id=name, tenant=tenant, session=session)
        self.speculator.begin(request, tokens[:8])
        self.speculator.commit(name, tokens[8:])
        self.speculator.finish(name)

    def drafts(self, tokens: list[int], *, tenant: str = "a") -> bool:
        asking = RequestInfo(request_id="ask", tenant=tenant, record=False)
        self.speculator.begin(asking, tokens[:8])
        tree = self.speculator.propose(["ask"], max_tokens=4)[0]
        self.speculator.finish("ask")
        return bool(len(tree.token_ids))


class Machine:
    """An embedded Valkey and two engines on it."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self.store = stack.enter_context(EmbeddedStore(folder / STORE_FOLDER))
        self.engines = [Engine(self.store.url) for _ in range(2)]
        for engine in self.engines:
            stack.callback(engine.journal.close, timeout=0.5)
            wait_until(engine.journal.warmed_up.is_set)

    def run(self, *arguments: str) -> Result:
        done = CliRunner().invoke(
            cli, ["memory", *arguments, "--data", str(self.folder)], catch_exceptions=False
        )
        assert done.exit_code == 0, done.output
        return done

    def values(self) -> Iterator[bytes]:
        """Every key and every value of it, whatever its type."""
        with closing(redis.Redis.from_url(self.store.url)) as client:
            for key in client.scan_iter("*"):
                yield key
                kind = client.type(key)
                if kind == b"string":
                    yield client.get(key)
                elif kind == b"stream":
                    for _, fields in client.xrange(key):
                        yield from fields.values()
                elif kind == b"hash":
                    for name, value in client.hgetall(key).items():
                        yield from (name, value)
                elif kind == b"set":
                    yield from client.smembers(key)
                else:
                    assert kind == b"zset", kind
                    yield from client.zrange(key, 0, -1)

    def holds(self, *needles: bytes) -> bool:
        return any(
            needle in plain
            for value in self.values()
            for plain in inflated(value)
            for needle in needles
        )


def inflated(value: bytes) -> Iterator[bytes]:
    """The value, and whatever can be inflated from anywhere in it."""
    yield value
    for start, byte in enumerate(value):
        if byte == 0x78:  # how a zlib stream begins
            inflater = zlib.decompressobj()
            try:
                yield inflater.decompress(value[start:])
            except zlib.error:
                continue


def as_stored(tokens: list[int]) -> tuple[bytes, bytes]:
    """A run of tokens in two bytes each and in four."""
    array = np.array(tokens)
    return array.astype("<u2").tobytes(), array.astype("<u4").tobytes()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """Ended after the test."""
    with ExitStack() as stack:
        yield Machine(tmp_path / "d", stack)


def fill(machine: Machine) -> None:
    """The canary and other sessions of the tenant, and another tenant; partly sealed."""
    a, b = machine.engines
    rng = np.random.default_rng(0)
    for number in range(10):
        other = rng.integers(0, 40_000, 64).tolist()
        a.say(f"a{number}", other, session=f"s{number % 3}")
        b.say(f"b{number}", other[::-1], tenant="b")
        if number in (2, 9):
            a.say(f"canary{number}", CANARY, session=CANARY_SESSION)
    wait_until(lambda: b.drafts(CANARY))
    wait_until(lambda: held(machine, "a") == (12, 3))


def held(machine: Machine, tenant: str) -> tuple[int, int]:
    """Records and sealed segments of a tenant, as `stats` has them."""
    (model,) = json.loads(machine.run("stats", "--tenant", tenant, "--json").stdout)
    return model["num_records"], model["num_segments"]


@pytest.mark.parametrize(
    "arguments", [[], ["--session", CANARY_SESSION]], ids=["tenant", "session"]
)
def test_a_canary_is_gone(machine: Machine, arguments: list[str]) -> None:
    """Nothing in Redis, inflated or not, nothing in its files, and no engine drafts it."""
    fill(machine)
    names = (CANARY_SESSION.encode(), *as_stored(CANARY[16:32]))
    assert machine.holds(names[0])
    assert machine.holds(*names[1:])
    told = time.monotonic()
    done = machine.run("forget", "--tenant", "a", "--yes", *arguments)
    assert f"{120 if arguments else 760} tokens" in done.stdout
    for engine in machine.engines:
        wait_until(lambda e=engine: not e.drafts(CANARY), seconds=1.0 + time.monotonic() - told)
    assert not machine.holds(*names)
    for file in (machine.folder / STORE_FOLDER).rglob("*"):
        assert not file.is_file() or CANARY_SESSION.encode() not in file.read_bytes()
    late = Engine(machine.store.url)
    try:
        wait_until(late.journal.warmed_up.is_set)
        assert not late.drafts(CANARY)
    finally:
        late.journal.close()
    left = json.loads(machine.run("stats", "--tenant", "b", "--json").stdout)
    assert left[0]["num_records"] == 10


def test_stats_and_export_print_what_is_there(machine: Machine) -> None:
    """Sizes in one line a model; one JSON object a request, by session if asked."""
    fill(machine)
    assert "m: 760 tokens of 12 requests" in machine.run("stats", "--tenant", "a").stdout
    assert "nothing of nobody" in machine.run("stats", "--tenant", "nobody").stdout
    lines = machine.run("export", "--tenant", "a", "--session", CANARY_SESSION).stdout.splitlines()
    records = [json.loads(line) for line in lines if line.startswith("{")]
    assert [r["token_ids"] for r in records] == [
        CANARY,
        CANARY[8:],
    ]
    assert {r["session"] for r in records} == {CANARY_SESSION}
    file = machine.folder / "export.jsonl"
    machine.run("export", "--tenant", "a", "--output", str(file))
    assert len(file.read_text().splitlines()) == 12


def test_forgetting_asks_first(machine: Machine) -> None:
    """Without --yes and without an answer nothing is removed."""
    fill(machine)
    done = CliRunner().invoke(
        cli, ["memory", "forget", "--tenant", "a", "--data", str(machine.folder)], input="n\n"
    )
    assert done.exit_code == 1
    assert "760 tokens" in machine.run("stats", "--tenant", "a").stdout


def test_a_redis_that_is_away_is_named_in_one_line() -> None:
    """No traceback, and what to look at."""
    done = CliRunner().invoke(
        cli, ["memory", "stats", "--tenant", "a", "--redis", "redis://127.0.0.1:1"]
    )
    assert done.exit_code == 1
    assert "Error: redis://127.0.0.1:1 cannot be used" in done.output
