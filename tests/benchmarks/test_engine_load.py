"""How a unit's requests are sent, and that no wrong reply is measured."""

from __future__ import annotations

import asyncio
import gzip
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from paceline.benchmarks.engine.arrivals import arrival_seconds
from paceline.benchmarks.engine.load import LoadLoop, in_order_of_arrival
from paceline.benchmarks.engine.records import Load, TraceForcingError, Unit, WorkRequest
from paceline.errors import ConfigError


def request(episode: int, turn: int) -> WorkRequest:
    return WorkRequest(
        tenant="t",
        session=f"s{episode}",
        episode_id=f"e{episode}",
        turn=turn,
        prompt_ids=(1, 2, 3),
        output_ids=(episode, turn, 7),
    )


def unit(num_episodes: int, load: Load, arrivals: tuple[float, ...] = ()) -> Unit:
    return Unit(
        variant="off",
        source="s",
        load=load,
        file="",
        episodes=tuple(tuple(request(e, t) for t in range(3)) for e in range(num_episodes)),
        arrival_seconds=arrivals,
    )


class Echo:
    """Says each request's recorded reply in two pieces, and notes who was in flight with whom."""

    def __init__(self, *, wrong: bool = False) -> None:
        self.running: set[tuple[str, int]] = set()
        self.most_running = 0
        self.order: list[tuple[str, int]] = []
        self._wrong = wrong

    async def generate(self, request: WorkRequest) -> AsyncIterator[Sequence[int]]:
        place = (request.episode_id, request.turn)
        assert request.episode_id not in {episode for episode, _ in self.running}
        self.running.add(place)
        self.order.append(place)
        self.most_running = max(self.most_running, len(self.running))
        yield request.output_ids[:2]
        await asyncio.sleep(0)
        yield (8,) if self._wrong else request.output_ids[2:]
        self.running.remove(place)


def run(server: Echo, work: Unit, *, max_in_flight: int = 256) -> list[tuple[str, int]]:
    done: list[int] = []
    loop = LoadLoop(
        server, time.monotonic, on_done=lambda: done.append(1), max_in_flight=max_in_flight
    )
    timings = asyncio.run(loop.run(work))
    assert len(done) == len(timings)
    assert all(t.chunk_tokens == (2, 1) and t.due <= t.chunk_times[0] for t in timings)
    return [(t.episode_id, t.turn) for t in timings]


@pytest.mark.parametrize("concurrency", [1, 2, 8])
def test_as_many_episodes_are_in_flight_as_asked_for(concurrency: int) -> None:
    """Turns follow one another; no more episodes run at once than the load says."""
    server = Echo()
    served = run(server, unit(4, Load(concurrency=concurrency)))
    assert served == [(f"e{e}", t) for e in range(4) for t in range(3)]
    assert server.most_running == min(concurrency, 4)


def test_arrivals_give_every_request_its_time_and_keep_the_turns_in_order() -> None:
    """First turns arrive first; a turn waits for the reply before it, and for room."""
    arrivals = tuple(i * 0.001 for i in range(9))
    server = Echo()
    served = run(server, unit(3, Load(arrivals="a"), arrivals), max_in_flight=1)
    assert served == [(f"e{e}", t) for e in range(3) for t in range(3)]
    assert server.most_running == 1
    assert [place for place in server.order if place[0] == "e1"] == [("e1", t) for t in range(3)]
    episodes = [[request(0, 0)], [request(1, 0), request(1, 1)]]
    assert in_order_of_arrival(episodes) == [(0, 0), (1, 0), (1, 1)]


def test_a_reply_that_is_not_the_recorded_one_ends_the_run() -> None:
    """The message says where the reply went astray."""
    with pytest.raises(ExceptionGroup) as caught:
        run(Echo(wrong=True), unit(1, Load()))
    assert caught.group_contains(TraceForcingError, match="from token 2 on")


def write(folder: Path, name: str, text: str) -> Path:
    with gzip.open(folder / name, "wt", encoding="utf-8") as file:
        file.write(text)
    return folder / name


def test_arrival_traces_are_read_in_both_formats(tmp_path: Path) -> None:
    """Seconds since the first arrival, stretched by the factor."""
    mooncake = write(
        tmp_path, "m.jsonl.gz", "".join(f'{{"timestamp": {t}}}\n' for t in (500, 500, 1500, 9000))
    )
    assert arrival_seconds(mooncake, 3, factor=0.5) == (0.0, 0.0, 0.5)
    azure = write(
        tmp_path,
        "a.csv.gz",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:05.4799600,110,27\n",
    )
    assert arrival_seconds(azure, 2) == (0.0, 1.5)


def test_unusable_arrivals_are_named(tmp_path: Path) -> None:
    """Too few, none, of another kind, or a factor of nothing."""
    file = write(tmp_path, "m.jsonl.gz", '{"timestamp": 0}\n')
    with pytest.raises(ConfigError, match="holds 1 arrivals, 2"):
        arrival_seconds(file, 2)
    with pytest.raises(ConfigError, match=r"the traces there are: m\.jsonl\.gz"):
        arrival_seconds(tmp_path / "n.jsonl.gz", 1)
    with pytest.raises(ConfigError, match="neither"):
        arrival_seconds(write(tmp_path, "x.gz", "0\n"), 1)
    with pytest.raises(ConfigError, match="--arrival-factor is 0"):
        arrival_seconds(file, 1, factor=0)
