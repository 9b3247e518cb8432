"""Who drafts for whom, learned from made-up rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from paceline.adapters.arm_choice import FREE, HOLD_ROUNDS, ArmChoice
from paceline.adapters.arm_shadows import MOST_WATCHED, Shadows
from paceline.adapters.identity import DraftLimits
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.verify_budget import DraftingFigures, VerifyBudget
from paceline.caches import TokenTree, TreeBatch
from paceline.policies.bandits import decode_state
from paceline.policies.round_split import RoundTime

BASE, TOKEN, MODEL = 0.03, 0.001, 0.01
"""Seconds of a round without drafts, of each drafted token of all requests, and of the model."""
MEMORY_ALONE = DraftLimits(frozenset({"memory"}))


@dataclass
class World:
    """Requests whose drafts are right with a chance of their tenant's, and an engine's rounds."""

    arms: ArmChoice
    memory: Mapping[str, float]
    """Chance that a token of memory's is right, by tenant."""
    model: float = 0.0
    token: float = TOKEN
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    lengths: dict[str, int] = field(default_factory=dict)
    tenants: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    committed: int = 0

    def open(self, *names: str, tenant: str = "a", limits: DraftLimits | None = None) -> None:
        """Requests come."""
        for name in names:
            info = RequestInfo(request_id=name, tenant=tenant if tenant != "nobody" else "")
            self.arms.open(info, limits)
            self.lengths[name], self.tenants[name] = 100, tenant

    def run(self, num_rounds: int, names: Sequence[str] | None = None) -> list[str]:
        """Rounds of all open requests; the names of their arms in the last one."""
        ids = list(self.lengths if names is None else names)
        for _ in range(num_rounds):
            caps = self.arms.begin(ids, [self.lengths[i] for i in ids])
            self.arms.suppose(self, VerifyBudget())  # type: ignore[arg-type]  # as far as it is asked
            drafted = [max(cap) for cap in caps]
            with_model = [cap.model > 0 for cap in caps]
            has_model = any(with_model)
            self.arms.issued(
                [self.lengths[i] for i in ids],
                drafted,
                with_model=with_model if has_model else None,
                model_seconds=MODEL if has_model else 0.0,
            )
            news, alone = {}, {}
            for i, num, model in zip(ids, drafted, with_model, strict=True):
                by_memory = self._right(self.memory.get(self.tenants[i], 0.0), num)
                by_model = self._right(self.model, num) if model else 0
                if model:
                    alone[i] = num, by_memory
                came = max(by_memory, by_model) + 1
                self.lengths[i] += came
                self.committed += came
                news[i] = [7] * came
            seconds = BASE + self.token * sum(drafted)
            self.seconds += seconds + MODEL * has_model
            self.arms.seen(ids, [self.lengths[i] for i in ids], lambda got=news: got, alone)
            self.arms.took(RoundTime(len(ids), len(ids) + sum(drafted), seconds))
        return [self.arms.reason(i) for i in ids]

    def propose_batch(self, ids: Sequence[str], *, max_tokens: Mapping[str, int]) -> TreeBatch:
        """Memory's drafts, so many tokens of them as the target will say."""
        drafts = []
        for i in ids:
            num = self._right(self.memory.get(self.tenants[i], 0.0), max_tokens[i])
            drafts.append(TokenTree.chain([7] * num + [8] * (max_tokens[i] - num)))
        return TreeBatch.of(drafts)

    def propose_behind(
        self, ids: Sequence[str], token_ids: Sequence[Sequence[int]], *, max_tokens: Sequence[int]
    ) -> TreeBatch:
        """The same where memory is drafting as well."""
        assert not any(token_ids)
        return self.propose_batch(ids, max_tokens=dict(zip(ids, max_tokens, strict=True)))

    def _right(self, chance: float, most: int) -> int:
        num = 0
        while num < most and self.rng.random() < chance:
            num += 1
        return num

    @property
    def rate(self) -> float:
        """Tokens a second since the last look."""
        rate = self.committed / self.seconds
        self.committed, self.seconds = 0, 0.0
        return rate


def world(*, drafter: str = "", **changes: Any) -> World:
    known: dict[str, Any] = {"memory": {"a": 0.0}}
    return World(ArmChoice(max_tokens=8, drafter=drafter), **known | changes)


def test_drafts_that_are_never_right_end() -> None:
    """And the rounds are then as fast as without drafts."""
    made = world()
    made.open("1", "2", "3", "4")
    assert set(made.run(10 * HOLD_ROUNDS)) == {"none"}
    assert made.rate > 0.9 * 4 / BASE  # what finding out took
    assert set(made.run(100 * HOLD_ROUNDS)) == {"none"}
    assert made.rate > 0.98 * 4 / BASE
    assert made.arms.failures.count == 0


def test_drafts_that_are_right_stay() -> None:
    """With the widest arm, nothing is lost to trying others."""
    made = world(memory={"a": 0.95})
    made.open("1", "2", "3", "4")
    assert set(made.run(10 * HOLD_ROUNDS)) == {"memory-8"}
    assert set(made.run(100 * HOLD_ROUNDS)) == {"memory-8"}
    narrow = {k: v for k, v in made.arms.arm_rounds().items() if k not in {"memory-8", "timed"}}
    assert sum(narrow.values()) == 0
    assert made.arms.arm_rounds()["timed"] < 0.02 * 110 * HOLD_ROUNDS * 4


def test_what_tokens_cost_is_seen_and_not_believed() -> None:
    """Short drafts that are right one time of two pay where tokens are cheap, not where dear."""
    found = {}
    for token in (0.0005, 0.02):
        made = world(memory={"a": 0.5}, token=token)
        made.open("1", "2", "3", "4")
        found[token] = set(made.run(40 * HOLD_ROUNDS))
    assert found[0.0005] <= {"memory-2", "memory-4"}
    assert found[0.02] == {"none"}


def test_memory_comes_back_when_it_is_right_again() -> None:
    """What it would have said is heard while it may not draft, and verifying it is not paid for."""
    made = world()
    made.open("1", "2", "3", "4")
    made.run(40 * HOLD_ROUNDS)
    before = made.arms.arm_rounds()["memory-8"]
    made.memory = {"a": 0.95}
    made.run(25 * HOLD_ROUNDS)
    assert made.arms.arm_rounds()["memory-8"] > before
    assert set(made.run(HOLD_ROUNDS)) == {"memory-8"}


def test_one_scope_learns_nothing_of_another() -> None:
    """Each keeps its arm beside the other in one batch, and one that comes begins afresh."""
    made = world(memory={"a": 0.0, "b": 0.95, "c": 0.0})
    made.open("1", "2", tenant="a")
    made.open("3", "4", tenant="b")
    made.run(40 * HOLD_ROUNDS)
    assert made.run(1) == ["none", "none", "memory-8", "memory-8"]
    made.open("5", tenant="c")
    assert made.run(1)[-1] == "memory-8"


def test_what_others_said_does_not_change_what_a_scope_does() -> None:
    """With the same times, a scope's arms are the same whether others' drafts were right or not."""
    found = []
    for chance in (0.0, 0.9):
        arms = ArmChoice(max_tokens=8)
        ours = World(arms, {"a": 0.4})
        ours.open("1", tenant="a")
        ours.open("2", tenant="b")
        rng, names = np.random.default_rng(2), []
        for _ in range(30 * HOLD_ROUNDS):
            caps = arms.begin(["1", "2"], [ours.lengths["1"], ours.lengths["2"]])
            arms.issued([ours.lengths["1"], ours.lengths["2"]], [caps[0].memory, 4])
            first = min(caps[0].memory, ours._right(0.3, 8)) + 1
            second = 5 if rng.random() < chance else 1
            ours.lengths["1"] += first
            ours.lengths["2"] += second
            came = {"1": [7] * first, "2": [7] * second}
            arms.seen(["1", "2"], [ours.lengths["1"], ours.lengths["2"]], lambda got=came: got)
            num = 6 + caps[0].memory
            arms.took(RoundTime(2, num, BASE + TOKEN * num))
            names.append(arms.reason("1"))
        found.append(names)
    assert found[0] == found[1]


def test_requests_of_no_scope_learn_by_themselves() -> None:
    """Each begins afresh, and nothing of it is in what is shared."""
    made = world()
    made.open("1", tenant="nobody")
    assert made.run(20 * HOLD_ROUNDS) == ["none"]
    made.arms.finish("1")
    made.lengths.clear()
    made.open("2", tenant="nobody")
    assert made.run(1) == ["memory-8"]
    assert decode_state(made.arms.shared.state()).keys == []


def test_clients_only_narrow() -> None:
    """An arm never lets anybody draft whom client or policy do not; arms come from what is left."""
    made = world(drafter="m", memory={"a": 0.7}, model=0.95)
    made.open("1", limits=DraftLimits(frozenset({"memory"}), 3))
    made.open("2", limits=DraftLimits(frozenset({"model"})))
    made.open("3", limits=DraftLimits(frozenset(), 0))
    made.open("4")
    for _ in range(20 * HOLD_ROUNDS):
        names = made.run(1)
        assert names[0] in {"none", "memory-2", "memory-3"}
        assert names[1].split("-")[0] in {"none", "model"}
        assert names[2] == FREE
    assert names == ["memory-3", "model-8", FREE, "both-8"]


def test_what_a_narrowed_request_could_not_have_is_not_held_against_it() -> None:
    """Requests that are narrowed to useless drafts teach nothing to those that are not."""
    made = world(drafter="m", memory={"a": 0.0}, model=0.97)
    made.open("1", "2", limits=MEMORY_ALONE)
    made.run(30 * HOLD_ROUNDS)
    assert made.run(1) == ["none", "none"]
    made.open("3")
    assert made.run(HOLD_ROUNDS)[-1] == "both-8"
    assert made.run(30 * HOLD_ROUNDS) == ["none", "none", "both-8"]


def test_a_model_that_adds_nothing_rests() -> None:
    """Memory goes on alone where the model takes time and memory would have been right too."""
    made = world(drafter="m", memory={"a": 0.95}, model=0.0)
    made.open("1", "2")
    assert set(made.run(40 * HOLD_ROUNDS)) == {"memory-8"}


def test_a_model_that_has_become_right_is_found() -> None:
    """Arms with the model are looked at again for a small part of the time."""
    made = world(drafter="m", memory={"a": 0.0}, model=0.0)
    made.open("1", "2")
    assert set(made.run(40 * HOLD_ROUNDS)) == {"none"}
    made.model = 0.97
    assert set(made.run(200 * HOLD_ROUNDS)) == {"both-8"}


def test_rounds_that_are_timed_teach_no_arm() -> None:
    """They are as no arm has them."""
    made, num_timed = world(memory={"a": 0.9}), 0
    made.open("1", "2")
    for _ in range(6 * HOLD_ROUNDS):
        before = len(made.arms._ledger._rounds)
        made.run(1)
        if made.arms.is_timing:
            num_timed += 1
            assert len(made.arms._ledger._rounds) in (before, 0)
    assert num_timed > 3


def test_another_drafter_is_looked_at_anew() -> None:
    """What was learned of the model goes with it; what memory has shown stays."""
    made = world(drafter="m", memory={"a": 0.95}, model=0.0)
    made.open("1", "2")
    made.run(40 * HOLD_ROUNDS)
    made.memory, made.model = {"a": 0.0}, 0.97
    made.arms.reset_drafter("n")
    assert set(made.run(1)) == {"both-8"}
    assert set(made.run(20 * HOLD_ROUNDS)) == {"both-8"}
    assert decode_state(made.arms.shared.state()).drafter == "n"
    assert made.arms.figures()["drafters_reset"] == 1


def test_a_forgotten_scope_begins_afresh() -> None:
    """In what is shared, in what is not, and in rounds that were not summed up yet."""
    made = world(memory={"a": 0.0, "b": 0.0})
    made.open("1", tenant="a")
    made.open("2", tenant="a", limits=DraftLimits(max_tokens=4))
    made.open("3", tenant="b")
    made.run(20 * HOLD_ROUNDS + 3)
    made.arms.shared.forget("tenant:a")
    assert [key.key for key in decode_state(made.arms.shared.state()).keys] == ["tenant:b"]
    assert made.run(1) == ["memory-8", "memory-4", "none"]
    made.run(HOLD_ROUNDS // 2)
    for name in ("1", "2"):
        made.arms.finish(name)
        del made.lengths[name]
    made.arms.shared.forget("tenant:a")
    made.run(2 * HOLD_ROUNDS)
    assert [key.key for key in decode_state(made.arms.shared.state()).keys] == ["tenant:b"]


@pytest.mark.parametrize("method", ["_begun", "_turn", "_teach", "_enter", "_place_of", "_untold"])
def test_errors_leave_drafting_alone(method: str) -> None:
    """Whatever fails is counted, and everybody may draft as if nothing chose."""
    made = world()
    made.open("1", "2")
    made.run(20 * HOLD_ROUNDS)

    def broken(*_: Any) -> Any:
        raise RuntimeError("broken on purpose")

    setattr(made.arms, method, broken)
    made.run(2 * HOLD_ROUNDS)
    assert made.arms.failures.count > 0
    caps = made.arms.begin(["1", "2"], [1, 1])
    if method == "_begun":
        assert [tuple(each) for each in caps] == [(8, 0), (8, 0)]
    delattr(made.arms, method)
    assert set(made.run(20 * HOLD_ROUNDS)) == {"none"}


def test_rows_that_do_not_fit_are_not_learned() -> None:
    """Requests that left or were away teach nothing; calls out of order break nothing."""
    made = world()
    made.open("1", "2")
    arms = made.arms
    arms.took(RoundTime(2, 2, BASE))
    arms.issued([100, 100], [8, 8])
    arms.seen(["1"], [100], dict)
    for _ in range(3 * HOLD_ROUNDS):
        arms.begin(["1", "2"], [100, 100])
        arms.issued([100, 100], [8, 8])
        arms.seen(["2", "unknown"], [100, 9], lambda: {"2": [], "unknown": [3]})
        arms.took(RoundTime(2, 18, BASE))
    arms.begin(["1", "unknown"], [100, 100])
    arms.begin([], [])
    arms.suppose(made, VerifyBudget())  # type: ignore[arg-type]  # nobody is there to be drafted for
    arms.finish("unknown")
    assert arms.reason("unknown") == ""
    assert arms.failures.count == 0
    assert decode_state(arms.shared.state()).keys == []


def test_arms_come_through_a_state() -> None:
    """Another replica that takes the evidence in begins where this one stands."""
    made, other = world(), world()
    made.open("1", "2")
    made.run(40 * HOLD_ROUNDS)
    other.arms.shared.merge({"made": decode_state(made.arms.shared.state())})
    other.open("1", "2")
    other.run(2 * HOLD_ROUNDS)
    assert set(other.run(1)) == {"none"}


def test_what_is_chosen_is_counted() -> None:
    """Rounds by arm, pulls, changes, looks and failures stand beside the other figures."""
    from paceline.adapters.arm_choice import with_arms

    made = world(drafter="m", memory={"a": 0.0}, model=0.0)
    made.open("1", "2")
    made.run(400 * HOLD_ROUNDS)
    figures = with_arms(DraftingFigures({"failures": 3}, 0.0, {}), made.arms)
    assert sum(figures.arms.values()) == 2 * 400 * HOLD_ROUNDS
    assert figures.arms["none"] > 0.9 * sum(figures.arms.values())
    assert figures.events["failures"] == 3
    for name in ("arms_pulled", "arms_changed", "arms_looked_at", "rounds_timed"):
        assert figures.events[name] > 0
    assert with_arms(figures, None) is figures


def test_a_draft_that_nobody_verified_is_held_against_what_was_said() -> None:
    """It would have committed what it has right and one more; then the next one begins there."""
    shadows = Shadows()
    shadows.watch(["a", "b"])
    assert shadows.due({"a": 10, "c": 5}) == ["a"]
    shadows.begin("a", 10, [1, 2, 3])
    assert shadows.saw({"a": 11}, {"a": [1]}) == []
    assert shadows.due({"a": 11}) == []
    assert shadows.saw({"a": 13}, {"a": [2, 9]}) == [("a", 3, 3)]
    assert shadows.due({"a": 12}) == []
    assert shadows.due({"a": 13}) == ["a"]
    shadows.begin("a", 13, [4])
    assert shadows.saw({"a": 14}, {"a": [4]}) == [("a", 1, 2)]
    assert shadows.due({"a": 14}) == []  # its round would have gone one token further
    assert shadows.due({"a": 15}) == ["a"]


def test_what_was_missed_is_not_guessed() -> None:
    """After a step whose tokens did not come, the draft that waits is left."""
    shadows = Shadows()
    shadows.watch(["a"])
    shadows.begin("a", 10, [1, 2, 3])
    assert shadows.saw({"a": 13}, {"a": [3]}) == []
    assert shadows.due({"a": 13}) == ["a"]


def test_few_requests_are_watched() -> None:
    """Who is watched stays so while it may be."""
    shadows = Shadows()
    names = [str(i) for i in range(9)]
    shadows.watch(names)
    watched = shadows.due(dict.fromkeys(names, 1))
    assert len(watched) == MOST_WATCHED
    shadows.watch(names[1:])
    assert set(watched[1:]) < set(shadows.due(dict.fromkeys(names, 1)))
    shadows.clear()
    assert shadows.due(dict.fromkeys(names, 1)) == []
