"""Each drafter drafts what its method says: small cases by hand, the rest against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.benchmarks.peers.arctic import load_suffix_cache
from paceline.benchmarks.replay.base import Draft, Drafter
from paceline.benchmarks.replay.drafters.adjacency import AdjacencyDrafter, tree_shape
from paceline.benchmarks.replay.drafters.arctic import ArcticDrafter
from paceline.benchmarks.replay.drafters.automaton import ROOT, SuffixAutomaton
from paceline.benchmarks.replay.drafters.branches import join
from paceline.benchmarks.replay.drafters.hierarchy import FrequentPhrases, HierarchyDrafter
from paceline.benchmarks.replay.drafters.ngram import NgramDrafter
from paceline.benchmarks.replay.drafters.novelty import Novelty
from paceline.benchmarks.replay.drafters.paceline import PacelineDrafter, session_key
from paceline.benchmarks.replay.drafters.sam import SamDrafter

texts = st.lists(st.integers(0, 2), min_size=1, max_size=40)


def ids(*token_ids: int) -> np.ndarray:
    return np.array(token_ids, np.int32)


def ask(
    drafter: Drafter, prompt: list[int], said: list[int], *, session: str = "x", request: int = 1
) -> Draft:
    """A request's draft after `said`; the request is finished then."""
    drafter.start(request, session, "s", ids(*prompt))
    drafter.commit(request, said)
    draft = drafter.propose(request, 32)
    drafter.finish(request)
    return draft


def ngram_by_brute_force(tokens: list[int], num_tokens: int, *, first: bool) -> list[int]:
    for n in range(5, 1, -1):
        ends = [i for i in range(n, len(tokens)) if tokens[i - n : i] == tokens[-n:]]
        if ends and len(tokens) >= n:
            end = ends[0] if first else ends[-1]
            return tokens[end : end + num_tokens]
    return []


@settings(deadline=None)
@given(texts, st.integers(1, 12), st.booleans())
def test_ngram_copies_after_the_longest_match(
    tokens: list[int], num_tokens: int, first: bool
) -> None:
    """5 to 2 tokens, the most recent or the earliest place, never past the context's end."""
    drafter = NgramDrafter(num_tokens, first=first)
    draft = ask(drafter, tokens[:-1], tokens[-1:])
    assert list(draft.token_ids) == ngram_by_brute_force(tokens, num_tokens, first=first)


def repeated_suffix(tokens: list[int]) -> tuple[int, int]:
    for length in range(len(tokens) - 1, 0, -1):
        for end in range(length - 1, len(tokens) - 1):
            if tokens[end - length + 1 : end + 1] == tokens[-length:]:
                return end, length
    return -1, 0


@settings(deadline=None)
@given(texts)
def test_the_automaton_knows_the_longest_repeated_suffix(tokens: list[int]) -> None:
    """After every token: its length and where it ended first."""
    automaton = SuffixAutomaton()
    for length in range(1, len(tokens) + 1):
        automaton.extend(tokens[length - 1 : length])
        assert automaton.repeated_suffix() == repeated_suffix(tokens[:length])


def match_of(corpus: list[int], text: list[int]) -> tuple[int, int]:
    for length in range(len(text), 0, -1):
        for end in range(length - 1, len(corpus)):
            if corpus[end - length + 1 : end + 1] == text[-length:]:
                return end, length
    return -1, 0


@settings(deadline=None)
@given(texts, texts)
def test_a_text_is_followed_through_the_automaton(corpus: list[int], text: list[int]) -> None:
    """After every token the longest suffix that the corpus holds, and where it ended first."""
    automaton = SuffixAutomaton()
    automaton.extend(corpus)
    state, length = ROOT, 0
    for place, token in enumerate(text):
        state, length = automaton.step(state, length, token)
        end, expected = match_of(corpus, text[: place + 1])
        assert length == expected
        if length:
            assert automaton.first_end(state) == end


def sam_by_brute_force(replies: list[list[int]], tokens: list[int], num: int) -> list[int]:
    end, length = repeated_suffix(tokens)
    matches = [(match_of(reply, tokens), reply) for reply in replies]
    best = max((m[1] for m, _ in matches), default=0)
    if length >= best - 5 and length:
        return tokens[end + 1 : end + 1 + num]
    if not best:
        return []
    (static_end, _), reply = next((m, r) for m, r in matches if m[1] == best)
    return reply[static_end + 1 : static_end + 1 + num]


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=4), st.integers(1, 8))
def test_sam_drafts_from_the_longer_match(
    requests: list[tuple[list[int], list[int]]], num_tokens: int
) -> None:
    """Against brute force over the request and all earlier replies, each on its own."""
    drafter = SamDrafter(num_tokens)
    replies: list[list[int]] = []
    history: list[int] = []
    for prompt, reply in requests:
        history += prompt  # the session's next prompt begins with its last text
        draft = ask(drafter, history, reply)
        history += reply
        assert list(draft.token_ids) == sam_by_brute_force(replies, history, num_tokens)
        replies.append(reply)


def test_sam_prefers_the_request_unless_a_reply_matched_far_longer() -> None:
    """The static match must be more than five tokens longer."""
    reply = [1, 2, 3, 4, 5, 6, 7, 8, 100]
    for matched, expected in [(6, 200), (7, 100)]:
        drafter = SamDrafter(1)
        ask(drafter, [50], reply)
        draft = ask(drafter, [8, 200, *reply[8 - matched : 7]], [8], session="y")
        assert list(draft.token_ids) == [expected]


def test_a_cut_prompt_builds_the_automaton_anew() -> None:
    """A prompt that lost its front is not taken for a continuation."""
    drafter = SamDrafter(2)
    ask(drafter, [1, 2, 3, 4], [5])
    assert list(ask(drafter, [3, 4, 5, 9, 3], [4]).token_ids) == [5, 9]


def test_phrases_are_ranked_by_how_often_they_followed() -> None:
    """The most frequent first; of equals the one that came first."""
    phrases = FrequentPhrases()
    for phrase, times in [([1, 1, 1, 1], 1), ([2, 2, 2, 2], 3), ([3, 3, 3, 3], 2)]:
        for _ in range(times):
            phrases.add([0, *phrase])
    assert phrases.following(0) == [(2, 2, 2, 2), (3, 3, 3, 3), (1, 1, 1, 1)]
    assert phrases.following(7) == []
    for number in range(10, 30):
        phrases.add([0, number, 0, 0, 0])
    assert len(phrases.following(0)) == 8
    for _ in range(3):
        phrases.add([0, 29, 0, 0, 0])
    assert phrases.following(0)[0] == (29, 0, 0, 0)


def test_the_databases_are_asked_in_the_order_of_locality() -> None:
    """The context's most recent phrase, then earlier replies', then what was read."""
    drafter = HierarchyDrafter()
    ask(drafter, [9, 31, 32, 33, 34, 5], [9, 21, 22, 23, 24], session="y")
    prompt = [9, 11, 12, 13, 14, 9, 16, 17, 18, 19, 4]
    draft = ask(drafter, prompt, [9])
    assert list(draft.token_ids)[:12] == [16, 17, 18, 19, 11, 12, 13, 14, 21, 22, 23, 24]
    assert list(draft.token_ids)[12:16] == [31, 32, 33, 34]
    assert draft.parent is not None
    assert list(draft.parent)[:6] == [-1, 0, 1, 2, -1, 4]


def test_phrases_share_their_beginnings() -> None:
    """One node for a common beginning; the budget cuts the last phrase."""
    assert join([(1, 2), (1, 3), (4,)], 32) == ([1, 2, 3, 4], [-1, 0, 0, -1], None)
    assert join([(1, 2), (4, 5)], 3) == ([1, 2, 4], [-1, 0, -1], None)


def test_the_tree_of_successors_has_its_best_ranks_first() -> None:
    """Parents precede children, a rank its next; all slots are filled."""
    shape = tree_shape(32)
    assert len(set(shape)) == 32
    for place, (parent, rank) in enumerate(shape):
        assert -1 <= parent < place
        assert rank == 0 or (parent, rank - 1) in shape[:place]
    assert shape[:3] == [(-1, 0), (0, 0), (-1, 1)]


def test_successors_are_the_latest_distinct_ones() -> None:
    """The latest first, each once; a node without successors ends its branch."""
    drafter = AdjacencyDrafter()
    draft = ask(drafter, [1, 2, 1, 3, 1, 2, 8], [1])
    roots = [t for t, p in zip(draft.token_ids, draft.parent or (), strict=True) if p < 0]
    assert roots == [2, 3]
    assert 0 not in draft.token_ids
    assert set(draft.token_ids) <= {1, 2, 3, 8}


short_texts = st.lists(st.integers(0, 2), min_size=1, max_size=12)


@settings(deadline=None)
@given(short_texts, short_texts, texts)
def test_novelty_is_what_follows_the_last_text(
    prompt: list[int], reply: list[int], more: list[int]
) -> None:
    """The session's next prompt shows only its new part, also when its front was cut off."""
    novelty = Novelty()
    text = ids(*range(100, 140), *prompt, *reply)
    assert novelty.new_part("x", text).tolist() == text.tolist()
    novelty.remember("x", text)
    assert novelty.new_part("x", ids(*text, *more)).tolist() == more
    assert novelty.new_part("x", ids(*text[5:], *more)).tolist() == more
    assert novelty.new_part("y", ids(*text, *more)).tolist() == [*text, *more]


def test_paceline_remembers_session_and_scope() -> None:
    """It drafts what another session's reply said, with probabilities, as a chain."""
    drafter = PacelineDrafter(min_probability=0.05)
    reply = list(range(40, 60))
    ask(drafter, [1, 2, 3], reply, session="a")
    draft = ask(drafter, [4, 5], reply[:6], session="b")
    assert list(draft.token_ids)[:3] == [46, 47, 48]
    assert draft.parent is not None
    assert draft.prob is not None
    assert list(draft.parent) == list(range(-1, len(draft.token_ids) - 1))
    assert all(0 < p <= 1 for p in draft.prob)
    memory = drafter.memory()
    assert memory is not None
    assert memory.num_tokens >= 23
    assert memory.num_bytes > memory.num_tokens
    assert 0 < session_key("a") != session_key("b") < 2**63


@pytest.mark.timeout(600)
def test_arctic_is_driven_as_vllm_drives_it(peers_folder: Path) -> None:
    """Drafts grow with the match by the factor, from the prompt's tree or from earlier replies."""
    cache = load_suffix_cache(peers_folder)
    for factor, expected in [(1.0, [8, 9, 10]), (2.0, [8, 9, 10, 11, 12, 13])]:
        drafter = ArcticDrafter(cache, depth=24, factor=factor)
        assert list(ask(drafter, [*range(5, 20), 5, 6], [7]).token_ids) == expected
    drafter = ArcticDrafter(cache, depth=24, factor=1.0)
    ask(drafter, [1], list(range(30, 40)))
    assert list(ask(drafter, [2], [30, 31], request=2).token_ids) == [32, 33]
    memory = drafter.memory()
    assert memory is not None
    assert memory.num_tokens == 12
