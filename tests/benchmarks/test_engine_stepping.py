"""Which tokens a trace-forced step must want, and what a step amounts to."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from paceline.benchmarks.engine.stepping import Row, StepLog, forced_tokens


class Ticks:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_every_verified_position_wants_its_recorded_token() -> None:
    """Rows of logits follow one another: drafts, then one more; past a reply's end none changes."""
    rows = [
        Row("prefill", (10, 11, 12), 0, 40),
        Row("decode", (20, 21, 22, 23, 24), 2, 3, draft_ids=(22, 99)),
        Row("unforced", None, 5, 2, draft_ids=(7,)),
        Row("last", (30, 31), 1, 4, draft_ids=(31, 0, 0)),
        Row("partial", (40,), 0, 16, is_partial=True),
    ]
    indices, token_ids = forced_tokens(rows)
    assert indices == [0, 1, 2, 3, 6, 10]
    assert token_ids == [10, 22, 23, 24, 31, 40]


@given(
    reply=st.lists(st.integers(0, 3), min_size=1, max_size=20),
    guesses=st.lists(st.lists(st.integers(0, 3), max_size=5), min_size=20, max_size=20),
)
def test_whatever_is_drafted_the_reply_is_the_recorded_one(
    reply: list[int], guesses: list[list[int]]
) -> None:
    """Greedy verification of any drafts against the forced tokens says the reply, once."""
    said: list[int] = []
    for draft in [[], *guesses]:
        if len(said) >= len(reply):
            break
        row = Row("r", reply, len(said), len(draft) + 1, draft_ids=draft)
        _, wanted = forced_tokens([row])
        accepted = 0
        while accepted < min(len(draft), len(wanted)) and draft[accepted] == wanted[accepted]:
            accepted += 1
        log = StepLog(Ticks())
        log.begin()
        log.observe([row])
        log.end()
        assert [step.num_accepted for step in log.take()] == [accepted if said else 0]
        said += wanted[: accepted + 1]
    assert said == reply


def test_a_step_knows_its_tokens_and_its_times() -> None:
    """Rounds are counted from the step before while a request goes on; drafting is kept apart."""
    clock = Ticks()
    log = StepLog(clock)

    def spend(seconds: float) -> float:
        clock.now += seconds
        return seconds

    log.begin()
    log.observe([Row("a", (5, 6, 7, 8), 0, 30)])
    spend(2.0)
    assert log.drafting(spend)(0.5) == 0.5
    log.end()
    spend(1.0)  # the scheduler
    log.begin()
    log.observe(
        [Row("a", (5, 6, 7, 8), 1, 4, draft_ids=(6, 7, 9)), Row("b", (1, 2), 0, 9, is_partial=True)]
    )
    spend(3.0)
    log.add_forcing(0.25)
    log.end()
    log.begin()
    log.drafting(spend)(0.125)  # a step that is never run
    spend(50.0)
    log.begin()
    log.observe([Row("c", (1,), 0, 3)])
    spend(1.0)
    log.end()
    first, second, third = log.take()
    assert log.take() == []
    assert (first.num_prefill, first.num_decoding, first.num_decoded) == (30, 0, 0)
    assert (first.round_seconds, first.draft_seconds) == (2.5, 0.5)
    assert second.round_seconds == 4.0
    assert (second.start, second.end, second.force_seconds) == (103.5, 106.5, 0.25)
    assert (second.num_requests, second.num_prefill, second.num_decoding) == (2, 9, 1)
    assert (second.num_verified, second.num_drafted) == (4, 3)
    assert (second.num_accepted, second.num_decoded) == (2, 3)
    assert (third.round_seconds, third.draft_seconds) == (1.0, 0.125)


def test_nothing_is_said_past_the_end() -> None:
    """Drafts beyond a reply's end count as drafted, not as accepted or said."""
    log = StepLog(Ticks())
    log.begin()
    log.observe([Row("a", (5, 6, 7), 1, 5, draft_ids=(6, 7, 7, 7))])
    log.end()
    (step,) = log.take()
    assert (step.num_drafted, step.num_accepted, step.num_decoded) == (4, 2, 2)


def test_of_a_tree_the_longest_right_path_is_accepted() -> None:
    """Every node counts as drafted, those on the recorded path as accepted."""
    log = StepLog(Ticks())
    log.begin()
    log.observe(
        [Row("a", (5, 6, 7, 8), 1, 6, draft_ids=(9, 6, 8, 7, 7), parents=(-1, -1, 1, 1, 0))]
    )
    log.end()
    (step,) = log.take()
    assert (step.num_drafted, step.num_accepted, step.num_decoded) == (5, 2, 3)


def test_a_preempted_request_reads_its_own_words_again() -> None:
    """What it computes anew is prefill; only its last token is verified."""
    log = StepLog(Ticks())
    log.begin()
    log.observe([Row("a", (5, 6, 7), 2, 32)])
    log.end()
    (step,) = log.take()
    assert (step.num_prefill, step.num_verified, step.num_decoded) == (31, 1, 1)
