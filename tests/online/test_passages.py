"""Passages are what the target read, and each token that it said is in one of them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from paceline.online.passages import Cutting, Passage, SessionText
from sessions import turn

SMALL = Cutting(num_tokens=16, num_context=4, num_session=64)


def text(cutting: Cutting = SMALL) -> SessionText:
    return SessionText(cutting, tenant="a", scope="tenant:a", session="s")


def shown(passage: Passage) -> list[str]:
    """Tokens, with a star where the passage is there for them."""
    return [
        f"{token}*" if said else str(token)
        for token, said in zip(passage.token_ids.tolist(), passage.is_said.tolist(), strict=True)
    ]


def test_turns_become_one_text() -> None:
    """What was read and said stands in its order, and a short session is one passage."""
    session = text()
    assert session.take(turn(1, [1, 2], [3], num_before=0)) == []
    assert session.take(turn(2, [4], [5, 6], num_before=3)) == []
    [passage] = session.passages(ends=True)
    assert shown(passage) == ["1", "2", "3*", "4", "5*", "6*"]
    assert (passage.begun_at, passage.finished_at, passage.num_said) == (99.0, 100.0, 3)


def test_a_passage_that_goes_on_is_not_taught_twice() -> None:
    """Behind one that has ended come further tokens with those before them as read."""
    session = text()
    session.take(turn(1, [1, 2], [3, 4], num_before=0))
    session.passages(ends=True)
    session.take(turn(2, [5], [6], num_before=4))
    [passage] = session.passages(ends=True)
    assert shown(passage) == ["1", "2", "3", "4", "5", "6*"]
    assert session.passages(ends=True) == []


def test_a_long_prompt_is_read_only_where_something_follows() -> None:
    """As much of it as there is room for, its end."""
    session = text()
    session.take(turn(1, list(range(40)), [100, 101], num_before=0))
    [passage] = session.passages(ends=True)
    assert shown(passage) == [*map(str, range(26, 40)), "100*", "101*"]


def test_a_full_passage_does_not_wait() -> None:
    """Long replies are cut at once, each further passage with context before it."""
    session = text()
    said = list(range(100, 140))
    passages = session.take(turn(1, [1, 2, 3, 4, 5], said, num_before=0))
    assert shown(passages[0])[:5] == ["2", "3", "4", "5", "100*"]
    assert len(passages) == 3
    passages += session.passages(ends=True)
    assert all(len(passage.token_ids) <= 16 for passage in passages)
    assert all(not passage.is_said[:4].any() for passage in passages)
    taught = [int(t) for p in passages for t in p.token_ids[p.is_said]]
    assert taught == said


def test_a_history_that_is_read_anew_adds_what_is_new() -> None:
    """Another engine reads the whole conversation: nothing of it is taught again."""
    session = text()
    session.take(turn(1, [1, 2], [3, 4], num_before=0))
    session.take(turn(2, [1, 2, 3, 4, 5], [6], num_before=0))
    [passage] = session.passages(ends=True)
    assert shown(passage) == ["1", "2", "3*", "4*", "5", "6*"]


def test_a_record_without_a_place_is_put_at_the_end_or_recognised() -> None:
    """What older engines wrote goes behind, unless it repeats all that is known."""
    session = text()
    session.take(turn(1, [1, 2], [3], num_before=-1))
    session.take(turn(2, [4], [5], num_before=-1))
    session.take(turn(3, [1, 2, 3, 4, 5, 6], [7], num_before=-1))
    [passage] = session.passages(ends=True)
    assert shown(passage) == ["1", "2", "3*", "4", "5*", "6", "7*"]


def test_two_branches_of_a_session_are_both_taught() -> None:
    """A parallel turn goes on from where the histories part; what the other said is not lost."""
    session = text()
    passages = session.take(turn(1, [1, 2], [3, 4], num_before=0))
    passages += session.take(turn(2, [9], [8], num_before=2))
    passages += session.passages(ends=True)
    assert [shown(passage) for passage in passages] == [
        ["1", "2", "3*", "4*"],
        ["1", "2", "9", "8*"],
    ]


def test_nothing_is_made_up_where_a_turn_is_missing() -> None:
    """Tokens that did not stand beside each other are never taught so."""
    session = text()
    passages = session.take(turn(1, [1, 2], [3], num_before=0))
    passages += session.take(turn(2, [6], [7], num_before=5))
    passages += session.passages(ends=True)
    assert [shown(passage) for passage in passages] == [["1", "2", "3*"], ["6", "7*"]]


def test_a_word_with_nothing_before_it_is_not_taught() -> None:
    """There is nothing that it could be predicted from."""
    session = text()
    assert session.take(turn(1, [], [3], num_before=7)) == []
    assert session.passages(ends=True) == []


turns = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=8)


@given(turns, st.integers(2, 20), st.integers(1, 19), st.booleans())
def test_each_said_token_is_taught_once_in_its_context(
    lengths: list[tuple[int, int]], most: int, context: int, has_place: bool
) -> None:
    """Whatever the turns: bounded passages, contiguous text, every said token once and in order."""
    cutting = Cutting(most, min(context, most - 1), max(most, 40))
    session, passages = text(cutting), []
    whole: list[int] = []
    said: list[int] = []
    for number, (num_read, num_said) in enumerate(lengths):
        new = list(range(len(whole), len(whole) + num_read + num_said))
        place = len(whole) if has_place else -1
        passages += session.take(
            turn(number, new[:num_read], new[num_read:], num_before=place, at=100.0 + number)
        )
        whole += new
        said += new[num_read:]
        assert len(session.token_ids) <= cutting.num_session
    passages += session.passages(ends=True)
    taught: list[int] = []
    for passage in passages:
        ids = passage.token_ids.tolist()
        assert 2 <= len(ids) <= most
        assert ids == list(range(ids[0], ids[0] + len(ids)))
        first = int(np.flatnonzero(passage.is_said)[0])
        assert first >= min(ids[first], cutting.num_context)
        assert not passage.is_said[0]
        taught += passage.token_ids[passage.is_said].tolist()
    assert taught == [token for token in said if token > 0]
