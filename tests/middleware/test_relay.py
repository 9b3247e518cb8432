"""Streams pass byte for byte and stop only between events."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from paceline.middleware import relay
from paceline.middleware.relay import BORDERS, EventHold

streams = st.lists(
    st.sampled_from([b"data: {}", b": keep-alive", b"\n", b"\r", b"\n\n", b"\r\n\r\n", b"\xc3\xa9"])
).map(b"".join)


@given(streams, st.lists(st.integers(0, 60)))
def test_any_chunking_comes_out_as_it_went_in(stream: bytes, cuts: list[int]) -> None:
    """However a stream is cut, its bytes come out unchanged, whole events at a time."""
    hold = EventHold()
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    out = b""
    for start, end in itertools.pairwise(edges):
        out += hold.push(stream[start:end])
        assert stream.startswith(out)
        assert out == b"" or out.endswith(BORDERS)
    assert out + hold.rest() == stream


def test_whole_events_are_never_delayed() -> None:
    """A chunk that ends an event passes at once."""
    hold = EventHold()
    assert hold.push(b"data: 1\n\ndata: 2\n\n") == b"data: 1\n\ndata: 2\n\n"
    assert hold.push(b"data: 3\n\ndata:") == b"data: 3\n\n"
    assert hold.push(b" 4\r\n\r\n") == b"data: 4\r\n\r\n"
    assert hold.rest() == b""


def test_an_endless_event_is_passed_on_in_parts() -> None:
    """Held bytes are bounded."""
    hold = EventHold()
    assert hold.push(b"x" * relay.MAX_HELD_BYTES) == b""
    assert len(hold.push(b"x")) == relay.MAX_HELD_BYTES + 1
