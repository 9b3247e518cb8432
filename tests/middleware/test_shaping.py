"""Shaped streams say what the engine said, in sizes that say nothing."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware.relay import EventHold
from paceline.middleware.shaping import (
    BUCKETS,
    Grid,
    Tick,
    TickQueue,
    as_event,
    bucket_for,
    filler,
    padded_json,
)
from strict_events import parse_events

SIZE = 1024
FILLER = re.compile(rb"(?::[ ]*\n|\n)+")
"""What `filler` makes; only sound where the engine's own bytes have no such lines."""

events = st.builds(
    lambda border, text: b'data: {"content":"' + text.encode() + b'"}' + border,
    st.sampled_from([b"\n\n", b"\r\n\r\n", b"\r\r"]),
    st.text("aé\N{SNOWMAN}", max_size=700),
)
streams = st.lists(st.lists(events, max_size=4), max_size=12)
endings = st.sampled_from([b"", b"data: [DONE]", b"data: [DONE]\n\n", b'data: {"error":1}\n\n'])


def padded(round_ticks: int = 1) -> TickQueue:
    return TickQueue(bytes_per_tick=SIZE, round_ticks=round_ticks)


def take_all(queue: TickQueue, first_tick: int) -> list[Tick]:
    """Every tick until the last one."""
    ticks = []
    for number in itertools.count(first_tick):
        ticks.append(queue.take(number, 0.0))
        if ticks[-1].is_last:
            return ticks
    raise AssertionError


@given(streams, endings, st.integers(1, 7))
def test_a_padded_stream_has_the_engines_events_in_ticks_of_one_size(
    stream: list[list[bytes]], ending: bytes, round_ticks: int
) -> None:
    """Every tick is as long as the others, the last is a multiple, no event changes."""
    queue = padded(round_ticks)
    ticks = []
    for number, events_of_tick in enumerate(stream, 1):
        for event in events_of_tick:
            queue.push(event, 0.0)
        ticks.append(queue.take(number, 0.0))
    queue.end(ending, 0.0)
    ticks += take_all(queue, len(ticks) + 1)
    sent = b"".join(tick.data for tick in ticks)
    said = b"".join(itertools.chain.from_iterable(stream)) + ending
    assert {len(tick.data) for tick in ticks} == {SIZE}
    assert len(ticks) % round_ticks == 0
    assert parse_events(sent) == parse_events(said)
    assert sent.endswith(ending)
    assert queue.totals.num_padding == len(sent) - len(said)
    assert queue.totals.num_ticks == len(ticks)


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_filler_is_as_long_as_asked_for_and_means_nothing(before: int, behind: int) -> None:
    """Any number of bytes; only comments of bounded length and empty lines."""
    data = filler(before) + b"data: x\n\n" + filler(behind) + b"data: y\n\n"
    assert len(data) == before + behind + 18
    assert parse_events(data) == [("message", "x"), ("message", "y")]
    assert FILLER.sub(b"", filler(before)) == b""
    assert max(map(len, filler(before).splitlines(keepends=True)), default=0) <= 1024


def test_without_filler_the_bytes_are_the_engines() -> None:
    """Taking the comments out gives back what went in, byte for byte."""
    queue, said = padded(), b""
    sent = []
    for number in range(1, 30):
        event = b'data: {"n":%d,"text":"%b"}\n\n' % (number, b"x" * (number * 97 % 1900))
        said += event
        queue.push(event, 0.0)
        sent.append(queue.take(number, 0.0).data)
    queue.push(b"data: [DONE]\n\n", 0.0)
    queue.end(b"", 0.0)
    sent += [tick.data for tick in take_all(queue, 30)]
    lines = b"".join(sent).splitlines(keepends=True)
    kept = b"".join(line + b"\n" for line in lines if line.startswith(b"data:"))
    assert kept == said + b"data: [DONE]\n\n"


@given(streams, endings)
def test_aggregated_bytes_are_the_engines(stream: list[list[bytes]], ending: bytes) -> None:
    """Nothing is added, a tick has all that came since the last, silence sends nothing."""
    queue = TickQueue()
    sent = []
    for number, events_of_tick in enumerate(stream, 1):
        for event in events_of_tick:
            queue.push(event, 0.0)
        assert queue.is_due == any(events_of_tick)
        tick = queue.take(number, 0.0)
        assert tick == Tick(b"".join(events_of_tick))
        sent.append(tick.data)
    queue.end(ending, 0.0)
    last = queue.take(99, 0.0)
    assert last == Tick(ending, is_last=True)
    assert b"".join(sent) + last.data == b"".join(itertools.chain.from_iterable(stream)) + ending
    assert queue.totals.num_padding == 0


def test_the_end_is_not_to_be_seen_before_its_tick() -> None:
    """A client that leaves at [DONE] would show when the reply ended: it comes last, with the end.

    The reply's own events do not wait.
    """
    queue = padded(round_ticks=10)
    queue.push(b'data: {"content":"bye"}\n\ndata: [DONE]\n\n', 0.0)
    queue.end(b"", 0.0)
    ticks = take_all(queue, 3)
    assert ticks[0].data.startswith(b'data: {"content":"bye"}\n\n')
    assert [b"[DONE]" in tick.data for tick in ticks] == [False] * 7 + [True]


def test_a_longer_ending_fills_its_ticks_without_a_break() -> None:
    """No filler parts an error event longer than a tick, and it ends on a multiple all the same."""
    ending = b"data: " + b"e" * 2500
    queue = padded(round_ticks=4)
    queue.push(b"data: x\n\n", 0.0)
    queue.end(ending, 0.0)
    ticks = take_all(queue, 1)
    sent = b"".join(tick.data for tick in ticks)
    assert len(sent) == 4 * SIZE
    assert sent.endswith(ending)


def test_an_event_that_comes_in_parts_is_not_parted_by_filler() -> None:
    """While its rest is missing only full ticks are sent; afterwards all goes on as before."""
    queue = padded()
    queue.push(b"data: " + b"x" * 1500, 0.0)
    first, silent = queue.take(1, 0.0), queue.take(2, 0.0)
    assert (len(first.data), silent) == (SIZE, Tick(b""))
    queue.push(b"x\n\n", 0.0)
    after = queue.take(3, 0.0)
    assert len(after.data) == SIZE
    assert parse_events(first.data + after.data) == [("message", "x" * 1501)]
    broken = padded()
    broken.push(b"data: " + b"x" * 1500, 0.0)
    broken.end(b"yz", 0.0)
    ticks = take_all(broken, 1)
    assert b"".join(tick.data for tick in ticks) == b"data: " + b"x" * 1500 + b"yz"


@given(st.lists(st.integers(1, 300), max_size=8))
def test_it_takes_what_an_event_hold_lets_through(cuts: list[int]) -> None:
    """However the engine's bytes are cut, padded events come whole."""
    said = b'data: {"a":"\xc3\xa9"}\n\n: keep-alive\n\nevent: usage\r\ndata: {}\r\n\r\n' * 5
    hold, queue = EventHold(), padded()
    edges = [0, *sorted(min(cut, len(said)) for cut in cuts), len(said)]
    for start, end in itertools.pairwise(edges):
        queue.push(hold.push(said[start:end]), 0.0)
    queue.end(hold.rest(), 0.0)
    sent = b"".join(tick.data for tick in take_all(queue, 1))
    assert parse_events(sent) == parse_events(said)


def test_what_waits_is_counted_until_its_last_byte_has_left() -> None:
    """Held seconds are those of pieces, from coming to leaving whole."""
    queue = padded()
    queue.push(b"data: " + b"x" * 1400 + b"\n\n", 1.0)
    queue.take(1, 1.5)
    assert queue.totals.num_held == 0
    assert queue.num_pending == 1408 - SIZE
    queue.push(b"data: y\n\n", 1.75)
    queue.take(2, 2.0)
    assert (queue.totals.num_held, queue.totals.held_seconds) == (2, 1.25)


def test_the_grid_begins_with_the_request_and_makes_up_for_nothing() -> None:
    """Ticks are multiples of the interval after the start; passed ones are left out."""
    grid = Grid(100.0, 0.25)
    assert grid.next_tick(100.0, 0) == 1
    assert grid.time_of(1) == 100.25
    assert grid.next_tick(100.2499, 1) == 2  # a timer that fired early
    assert grid.next_tick(100.26, 1) == 2
    assert grid.next_tick(101.6, 2) == 7


@pytest.mark.parametrize(
    ("num_choices", "num_logprobs", "size"),
    [(1, None, 4096), (0, None, 4096), (2, None, 8192), (1, 0, 8192), (1, 5, 16384),
     (3, 20, 65536), (10**9, None, 65536)],
)  # fmt: skip
def test_a_tick_is_chosen_by_the_form_that_was_asked_for(
    num_choices: int, num_logprobs: int | None, size: int
) -> None:
    """More choices and log probabilities take more room; the largest bucket bounds it."""
    assert bucket_for(4096, num_choices=num_choices, num_logprobs=num_logprobs) == size
    assert size in BUCKETS


@given(st.integers(0, 70_000))
def test_padded_json_is_the_same_json(length: int) -> None:
    """Its length is the unit times a power of two, and no shorter bucket would do."""
    body = json.dumps("x" * length).encode()
    data = padded_json(body, SIZE)
    assert json.loads(data) == json.loads(body)
    assert len(data) % SIZE == 0
    assert (len(data) // SIZE).bit_count() == 1
    assert len(data) == SIZE or len(data) < 2 * len(body)


def test_a_whole_answer_becomes_one_event() -> None:
    """An error for a client that has been promised a stream, written over several lines or none."""
    assert parse_events(as_event(b'{\n "error": 1\n}')) == [("message", '{\n "error": 1\n}')]
    assert parse_events(as_event(b"")) == []
