"""Which arm each request drafts with: a bandit above the choice by time, learned from rounds.

The choice by time (`paceline.adapters.verify_budget`, `model_gate`) believes the probabilities of
drafts and what rounds are expected to take. The bandit believes neither: it sees what was committed
and what rounds took, and narrows who may draft and how far where that was slower.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from paceline.adapters.arm_menu import NOWHERE, ArmCaps, Cell, Menu, arms_within, caps_of
from paceline.adapters.arm_rounds import (
    ArmRounds,
    ArmSums,
    Ints,
    RoundRows,
    Supposed,
    told_aside,
)
from paceline.adapters.arm_shadows import Shadows
from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import DRAFT_SOURCES, DraftLimits
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures
from paceline.caches import TreeBatch, count_likelier
from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    PolicyContext,
    PolicyState,
    Steady,
    batch_bucket,
    context_bucket,
    default_policy,
)
from paceline.policies.round_split import RoundSplit, RoundTime

logger = logging.getLogger("paceline.arms")

HOLD_ROUNDS: Final = 16
"""Rounds of the batch between two times at which arms are chosen anew."""
TAUGHT_A_ROUND: Final = 4
"""Contexts that are taught and choose anew in one round, at least; all of them within a hold."""
MOST_MENUS: Final = 16
"""Ways in which clients and policies narrow that are learned of; others draft by time alone."""
MOST_CELLS: Final = 1024
"""Contexts kept at hand; what is learned of them is the policy's."""
FREE: Final = "free"
"""Name of no arm: nothing is chosen."""


NOTHING: Final = ArmCaps(0, 0)


class Exchange(Protocol):
    """What is read of a `PolicySync`."""

    def exchange(self) -> None:
        """Take in what others have seen, and hand over, where due; must not block."""

    def stats(self) -> Mapping[str, int]:
        """Counters."""


@dataclass(slots=True, eq=False)
class _Opened:
    """An open request; without a menu nothing is chosen for it."""

    key: str
    workload: str
    menu: Menu | None
    is_own: bool
    label: str
    cell: Cell | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Issued:
    """What a round's requests were handed."""

    request_ids: list[str]
    num_tokens: Ints
    places: Ints
    drafted: Ints
    with_model: Sequence[bool] | None
    model_seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class _Closed:
    """What came of it, until it is known how long it took."""

    issued: _Issued
    committed: Ints
    memory_drafted: Ints
    memory_committed: Ints


class ArmChoice:
    """Chooses an arm for each request of an engine and learns from its rounds.

    A round is `begin`, `issued`, `seen` and `took`, in this order; the engine may have issued the
    next one before it says what one took. Not thread-safe, but for `figures`. Nothing here raises:
    an error is counted, and what was not chosen is not narrowed.

    What one sharing scope teaches stays with it; what is learned of all is time. A request of no
    scope has a policy of its own until it ends. A request that its client or policy narrows learns
    with those that are narrowed alike, and chooses from what is left.

    Args:
        max_tokens: most drafted tokens that the engine verifies for a request.
        drafter: id of the model that drafts beside memory, "" without one.
        rng: source of the policies' draws.

    Attributes:
        failures: what went wrong.
        shared: the policy of requests that nobody narrows, for a `PolicySync`.
    """

    def __init__(
        self, *, max_tokens: int, drafter: str = "", rng: random.Random | None = None
    ) -> None:
        self.failures = FailureLog(logger, "choosing who drafts")
        self._max_tokens = max_tokens
        self._drafter = drafter
        self._rng = random.Random(0) if rng is None else rng  # noqa: S311  no secret
        self._widest = ArmCaps(max_tokens, max_tokens if drafter else 0)
        self._split = RoundSplit()
        self._rounds = ArmRounds()
        self._menus: dict[tuple[frozenset[str], int], Menu] = {}
        self._caps: list[int] = []
        """Of all arms, rising."""
        everybody = DRAFT_SOURCES if drafter else frozenset({"memory"})
        self._policy = self._policy_of(everybody, max_tokens)
        self._menus[everybody, max_tokens] = Menu(self._policy)
        self.shared = SharedArms(self, self._policy)
        self._sync: Exchange | None = None
        self._open: dict[str, _Opened] = {}
        self._pulled: list[tuple[Cell, Arm]] = []
        """Of this hold: whose sums are kept at which place."""
        self._due: deque[tuple[Cell, Arm, ArmSums, int]] = deque()
        self._ids: list[str] = []
        self._places: Ints = np.zeros(0, np.int64)
        self._num_tokens: Sequence[int] = ()
        self._now: list[ArmCaps] = []
        self._shadows = Shadows()
        self._resolved: list[tuple[int, int, int]] = []
        """Place, drafted and committed tokens of drafts that nobody verified, of one round."""
        self._counted: Counter[str] = Counter()
        """Requests of the batch by arm."""
        self._is_stale = True
        self._rounds_left = 0
        self._num_held = 1
        """Requests in the batch when the hold began."""
        self._is_probing = False
        self._issued: _Issued | None = None
        self._closed: _Closed | None = None
        self._arm_rounds: Counter[str] = Counter()
        self._events = Counter(
            dict.fromkeys(("arms_changed", "rounds_timed", "drafters_reset", "requests_free"), 0)
        )

    @property
    def is_timing(self) -> bool:
        """Whether the round that began last is drafted for as none would be, to see its time."""
        return self._is_probing

    def share(self, sync: Exchange) -> None:
        """Exchange `shared` through `sync` from now on."""
        self._sync = sync

    def open(self, info: RequestInfo, limits: DraftLimits | None = None) -> None:
        """A request comes; `limits` are its client's and its policy's. An open one is kept."""
        if info.request_id in self._open:
            return
        try:
            menu = self._menu_of(DraftLimits() if limits is None else limits, own=not info.scope)
            label = FREE if menu is None else ""
            self._events["requests_free"] += menu is None
            self._open[info.request_id] = _Opened(
                info.scope or info.request_id, info.workload, menu, not info.scope, label
            )
        except Exception as error:  # noqa: BLE001  counted: the request drafts as if there were no arms
            self._fail(error)

    def begin(self, request_ids: Sequence[str], num_tokens: Sequence[int]) -> Sequence[ArmCaps]:
        """A round begins: the limits of each request, from its arm.

        In some rounds nobody drafts, or everybody, so that it is known what those take; they teach
        nothing else.

        Args:
            request_ids: that are being answered, each once.
            num_tokens: of each, prompt and reply so far.
        """
        try:
            return self._begun(list(request_ids), num_tokens)
        except Exception as error:  # noqa: BLE001  counted: drafting goes on without arms
            self._fail(error)
            return [self._widest] * len(request_ids)

    def issued(
        self,
        num_tokens: Sequence[int],
        drafted: Sequence[int] | Ints,
        *,
        with_model: Sequence[bool] | None = None,
        model_seconds: float = 0.0,
    ) -> None:
        """The round's requests, as `begin` was given them, were handed that.

        Args:
            num_tokens: of each, as in `begin`.
            drafted: tokens to verify of each.
            with_model: for whom the model has drafted; None for nobody.
            model_seconds: what that took.
        """
        try:
            if len(drafted) != len(self._ids):
                return
            self._issued = _Issued(
                self._ids,
                np.array(num_tokens, np.int64),
                self._places if not self._is_probing else np.full(len(self._ids), NOWHERE),
                np.asarray(drafted, np.int64),
                with_model,
                model_seconds,
            )
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def seen(
        self,
        request_ids: Sequence[str],
        num_tokens: Sequence[int],
        news: Mapping[str, Sequence[int]],
        memory: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """The target has verified what was issued last.

        Args:
            request_ids: that are there now; others teach nothing.
            num_tokens: of each by now.
            news: tokens that each of them got.
            memory: by request for which the model had drafted: how many tokens memory alone would
                have had verified, and how many of them accepted.
        """
        try:
            issued, self._issued, self._closed = self._issued, None, None
            if issued is None:
                return
            if issued.request_ids == request_ids:
                committed = np.array(num_tokens, np.int64) - issued.num_tokens
            else:
                now = dict(zip(request_ids, num_tokens, strict=True))
                before = zip(issued.request_ids, issued.num_tokens.tolist(), strict=True)
                committed = np.array([now.get(i, 0) - num for i, num in before], np.int64)
            alone = _alone(issued, committed, memory) if memory else (issued.drafted, committed)
            self._closed = _Closed(issued, committed, *alone)
            self._resolve(dict(zip(request_ids, num_tokens, strict=True)), news)
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def suppose(self, speculator: Speculator) -> None:
        """Hear what memory would draft for some requests that may not have as much of it.

        Behind `begin`. O(few requests).

        Args:
            speculator: drafts from memory; they are open in it, as far as they have come.
        """
        try:
            now = dict(zip(self._ids, self._num_tokens, strict=True))
            due = self._shadows.due(now)
            if not due:
                return
            drafts = self._drafts_of(speculator, due)
            # a further token, beside a round without drafts: as none were the better choice
            num, most = len(self._ids), self._max_tokens
            added = self._split.added(num, most) - self._split.added(num, 1.0)
            price = max(0.0, added) / max(1, most - 1)
            worth = count_likelier(drafts.offsets, drafts.parent, drafts.prob, price).tolist()
            for request_id, tokens, num in zip(due, drafts.token_lists(), worth, strict=True):
                if num or not tokens:  # what is all cut says nothing of what would be drafted
                    self._shadows.begin(request_id, now[request_id], tokens[:num])
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def took(self, time: RoundTime | None) -> None:
        """How long the round took of which `seen` told last; None if that says nothing."""
        try:
            closed, self._closed = self._closed, None
            if time is not None:
                self._timed(time, closed)
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def finish(self, request_id: str) -> None:
        """A request leaves; what one of no scope has taught goes with it."""
        opened = self._open.pop(request_id, None)
        if opened is not None and opened.is_own and opened.menu is not None:
            opened.menu.is_dropped = True

    def forget(self, key: int | str) -> None:
        """Drop what was learned for a sharing scope. O(contexts)."""
        for menu in self._menus.values():
            menu.policy.forget(key)
            for name in [each for each in menu.cells if each[0] == key]:
                menu.cells.pop(name).is_dropped = True
        for cell in (*(cell for cell, _ in self._pulled), *(each[0] for each in self._due)):
            cell.is_dropped = cell.is_dropped or cell.context.key == key
        for opened in self._open.values():
            if opened.key == key:
                opened.cell = None
        self._is_stale = True

    def reset_drafter(self, name: str) -> None:
        """Another model drafts from now on: forget what was learned of the one before.

        For the engine's thread, like all else.

        Args:
            name: id of the model, the same in all replicas.
        """
        try:
            self._drafter = name
            self._events["drafters_reset"] += 1
            self._rounds.clear()
            self._due.clear()
            self._issued = self._closed = None
            self._resolved = []
            menus = {id(m): m for m in self._menus.values()}
            menus |= {id(o.menu): o.menu for o in self._open.values() if o.menu is not None}
            for menu in menus.values():
                menu.policy.reset(name)
                for cell in menu.cells.values():
                    cell.arm, cell.place = menu.policy.pull(cell.context), NOWHERE
            self._pulled = []
            self._is_stale = True
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def reason(self, request_id: str) -> str:
        """Name of the arm that an open request drafts with.

        ``free`` where nothing is chosen: its client or policy lets nobody draft, or it narrows in a
        way that is not learned of. "" where it is not known.
        """
        opened = self._open.get(request_id)
        if opened is None:
            return ""
        return opened.label if opened.cell is None else opened.cell.arm.name

    def figures(self) -> dict[str, int]:
        """Counters since the start, by kind."""
        policy = self._policy
        return dict(self._events) | {
            "arms_pulled": policy.num_pulls,
            "arms_burned_in": policy.num_burned_in,
            "arms_looked_at": policy.num_looks,
            "arm_failures": self.failures.count,
        }

    def arm_rounds(self) -> dict[str, int]:
        """Rounds of requests by the name of their arm, since the start."""
        return dict(self._arm_rounds)

    def _begun(self, request_ids: list[str], num_tokens: Sequence[int]) -> Sequence[ArmCaps]:
        num = len(request_ids)
        if not num:
            self._ids, self._num_tokens, self._is_stale = [], (), True
            return []
        self._rounds_left -= 1
        if self._rounds_left <= 0 or not self._num_held < 2 * num < 4 * self._num_held:
            self._turn(num)
        self._teach(max(TAUGHT_A_ROUND, -(-len(self._due) // (HOLD_ROUNDS - 4))))
        if self._is_stale or request_ids != self._ids:
            self._enter(request_ids, num_tokens)
        self._num_tokens = num_tokens
        wanted = self._split.wanted(num)
        self._is_probing = wanted is not None
        if wanted is not None:
            self._events["rounds_timed"] += 1
            self._arm_rounds["timed"] += num
            return [self._widest if wanted else NOTHING] * num
        self._arm_rounds.update(self._counted)
        return self._now

    def _enter(self, request_ids: list[str], num_tokens: Sequence[int]) -> None:
        """The batch as it is now. O(requests)."""
        places, now = [], []
        counted: Counter[str] = Counter()
        for request_id, num in zip(request_ids, num_tokens, strict=True):
            opened = self._open.get(request_id)
            cell = None
            if opened is not None and opened.menu is not None:
                cell = opened.cell
                if cell is None:
                    cell = opened.cell = self._cell(opened, opened.menu, num)
            if cell is None:
                places.append(NOWHERE)
                now.append(self._widest)
                counted[FREE] += 1
                continue
            if cell.place == NOWHERE:
                cell.place = len(self._pulled)
                self._pulled.append((cell, cell.arm))
            places.append(cell.place)
            now.append(caps_of(cell.arm))
            counted[cell.arm.name] += 1
        self._shadows.watch(self._untold(request_ids))
        self._ids, self._places, self._now = request_ids, np.array(places, np.int64), now
        self._counted, self._is_stale = counted, False

    def _drafts_of(self, speculator: Speculator, request_ids: list[str]) -> TreeBatch:
        """The longest drafts of memory's; those who are drafted for as well learn nothing of it."""
        without = [i for i in request_ids if self.reason(i) == NO_DRAFTS.name]
        behind = [i for i in request_ids if i not in without]
        request_ids[:] = [*without, *behind]
        trees = []
        if without:
            limits = {i: self._most_by_memory(i) for i in without}
            trees += speculator.propose_batch(without, max_tokens=limits).trees()
        if behind:
            longest = [self._most_by_memory(i) for i in behind]
            nothing: list[list[int]] = [[]] * len(behind)
            trees += speculator.propose_behind(behind, nothing, max_tokens=longest).trees()
        return TreeBatch.of(trees)

    def _untold(self, request_ids: Sequence[str]) -> Iterator[str]:
        """Requests whose arm tells nothing of memory's longest drafts."""
        for request_id in request_ids:
            opened = self._open.get(request_id)
            cell = opened.cell if opened is not None else None
            most = self._most_by_memory(request_id) if cell is not None else 0
            if cell is not None and not cell.arm.has_model and cell.arm.max_tokens < most:
                yield request_id

    def _most_by_memory(self, request_id: str) -> int:
        menu = self._open[request_id].menu
        arms = () if menu is None else menu.policy.arms
        return max((arm.max_tokens for arm in arms if arm.sources == "memory"), default=0)

    def _resolve(self, num_tokens: Mapping[str, int], news: Mapping[str, Sequence[int]]) -> None:
        for request_id, drafted, committed in self._shadows.saw(num_tokens, news):
            opened = self._open.get(request_id)
            if opened is not None and opened.cell is not None:
                self._resolved.append((opened.cell.place, drafted, committed))

    def _suppose(self, time: RoundTime, base_seconds: float) -> None:
        """What drafts that nobody verified would have taken, in a round such as this one."""
        resolved, self._resolved = self._resolved, []
        for place, drafted, committed in resolved:
            if place == NOWHERE:
                continue
            share = self._split.added(time.num_requests, drafted)
            token = share * base_seconds / drafted if drafted else 0.0
            self._rounds.suppose(Supposed(place, drafted, committed, base_seconds, token))

    def _cell(self, opened: _Opened, menu: Menu, num_tokens: int) -> Cell:
        batch, context = batch_bucket(self._num_held), context_bucket(num_tokens)
        name = (opened.key, opened.workload, batch, context)
        cell = menu.cells.get(name)
        if cell is None:
            if len(menu.cells) >= MOST_CELLS:
                menu.cells.clear()
            where = PolicyContext(opened.key, opened.workload, batch, context)
            cell = menu.cells[name] = Cell(where, menu, menu.policy.pull(where))
        return cell

    def _turn(self, num_requests: int) -> None:
        """A hold ends: sum up its rounds; requests find their contexts anew."""
        self._teach(len(self._due))
        if len(self._rounds):
            sums = self._rounds.take(len(self._pulled), self._caps)
            for place, (cell, arm) in enumerate(self._pulled):
                if sums.memory[2, 0, place] > 0.0:
                    self._due.append((cell, arm, sums, place))
        for cell, _ in self._pulled:
            cell.place = NOWHERE
        self._pulled = []
        for opened in self._open.values():
            opened.cell = None
        self._issued = self._closed = None  # their places are gone
        self._resolved = []
        self._rounds_left, self._num_held = HOLD_ROUNDS, max(1, num_requests)
        self._is_stale = True
        if self._sync is not None:
            self._sync.exchange()

    def _teach(self, most: int) -> None:
        """Tell policies what came of some contexts' arms, and let them choose anew."""
        for _ in range(min(most, len(self._due))):
            cell, arm, sums, place = self._due.popleft()
            if cell.is_dropped or cell.menu.is_dropped:
                continue
            policy = cell.menu.policy
            aside = told_aside(sums, policy.arms, arm, place)
            policy.update(cell.context, arm, sums.outcome(arm, place), aside)
            chosen = policy.pull(cell.context)
            if chosen != cell.arm:
                self._events["arms_changed"] += 1
                cell.arm, cell.place, self._is_stale = chosen, NOWHERE, True

    def _timed(self, time: RoundTime, closed: _Closed | None) -> None:
        split = self._split.learn(time)
        if split is None or closed is None:
            self._resolved = []
            return
        self._suppose(time, split.base_seconds)
        issued, num = closed.issued, time.num_requests
        kept = (issued.places >= 0) & (closed.committed > 0)
        if not kept.any():
            return
        num_drafted = time.num_tokens - num
        model = None
        if issued.with_model is not None and issued.model_seconds > 0.0:
            has_model = np.asarray(issued.with_model, np.float64)
            model = (issued.model_seconds * num / max(1.0, has_model.sum()) * has_model)[kept]
        self._rounds.add(
            RoundRows(
                issued.places[kept],
                issued.drafted[kept],
                closed.committed[kept],
                closed.memory_drafted[kept],
                closed.memory_committed[kept],
                split.base_seconds,
                split.draft_seconds * num / num_drafted if num_drafted > 0 else 0.0,
                model,
            )
        )

    def _menu_of(self, limits: DraftLimits, *, own: bool = False) -> Menu | None:
        """The menu of requests that are narrowed so; None where nothing can be chosen."""
        by_memory = limits.most("memory", self._max_tokens)
        by_model = limits.most("model", self._max_tokens) if self._drafter else 0
        most = max(by_memory, by_model)
        if not most:
            return None
        may = frozenset(
            name for name, num in (("memory", by_memory), ("model", by_model)) if num
        )  # fmt: skip
        if own:
            return Menu(self._policy_of(may, most))
        menu = self._menus.get((may, most))
        if menu is None and len(self._menus) < MOST_MENUS:
            menu = self._menus[may, most] = Menu(self._policy_of(may, most))
        return menu

    def _policy_of(self, may: frozenset[str], most: int) -> Steady:
        arms = arms_within(may, most)
        self._caps = sorted({*self._caps, *(arm.max_tokens for arm in arms)})
        drafter = self._drafter if "model" in may else ""
        return default_policy(arms, rng=self._rng, drafter=drafter, is_told_aside=True)

    def _fail(self, error: Exception) -> None:
        """Count it, and drop what rounds are half known."""
        self.failures.record(error)
        self._issued = self._closed = None
        self._rounds.clear()
        self._due.clear()
        for cell, _ in self._pulled:
            cell.place = NOWHERE
        self._pulled, self._ids, self._resolved = [], [], []
        self._shadows.clear()
        self._is_stale = True


class SharedArms:
    """The policy that replicas share, as a `PolicySync` wants it; see `Policy`."""

    def __init__(self, choice: ArmChoice, policy: Steady) -> None:
        self._choice = choice
        self._policy = policy

    @property
    def kind(self) -> str:
        """Name of the algorithm."""
        return self._policy.kind

    def state(self) -> bytes:
        """Its own evidence."""
        return self._policy.state()

    def load(self, state: bytes) -> None:
        """Add own evidence from before."""
        self._policy.load(state)

    def merge(self, others: Mapping[str, PolicyState]) -> None:
        """Take others' evidence in place of what they had."""
        self._policy.merge(others)

    def forget(self, key: int | str) -> None:
        """Drop a key, in what is not shared too."""
        self._choice.forget(key)


def _alone(
    issued: _Issued, committed: Ints, memory: Mapping[str, tuple[int, int]]
) -> tuple[Ints, Ints]:
    """Drafted and committed tokens of each request, had memory drafted alone."""
    rows = zip(issued.request_ids, issued.drafted.tolist(), committed.tolist(), strict=True)
    pairs = [
        (known[0], known[1] + 1) if (known := memory.get(i)) is not None else (drafted, came)
        for i, drafted, came in rows
    ]
    drafted, came = np.array(pairs, np.int64).reshape(-1, 2).T
    return drafted, came


def with_arms(figures: DraftingFigures, arms: ArmChoice | None) -> DraftingFigures:
    """The figures, those of arms among them where arms are chosen."""
    if arms is None:
        return figures
    events = {**figures.events, **arms.figures()}
    return replace(figures, events=events, arms=arms.arm_rounds())
