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
from itertools import chain
from typing import Final, Protocol

from paceline.adapters.arm_ledger import ArmLedger, Issued, News
from paceline.adapters.arm_menu import (
    NOWHERE,
    ArmCaps,
    Cell,
    Menu,
    Menus,
    SharedArms,
)
from paceline.adapters.arm_rounds import ArmSums, told_aside
from paceline.adapters.failures import FailureLog
from paceline.adapters.identity import DraftLimits
from paceline.adapters.request_info import RequestInfo
from paceline.adapters.speculator import Speculator
from paceline.adapters.verify_budget import DraftingFigures, VerifyBudget
from paceline.caches import TreeBatch, count_likelier
from paceline.policies.bandits import (
    NO_DRAFTS,
    Arm,
    batch_bucket,
    context_bucket,
    next_bucket,
)
from paceline.policies.round_split import RoundTime

logger = logging.getLogger("paceline.arms")

HOLD_ROUNDS: Final = 16
"""Rounds of the batch between two times at which arms are chosen anew."""
MANY_CONTEXTS: Final = 8
"""With more of them in a hold the next one is twice as long: so is what each is taught from."""
MOST_ROWS: Final = 256
"""Requests' rounds that are learned from in a hold; of a larger batch not every round is."""
WATCHED_HOLDS: Final = 2
"""In one of so many holds drafts are supposed."""
TEACHING_ROUNDS: Final = 12
"""Rounds over which contexts are taught and choose anew, so that no round waits for all."""
TAUGHT_A_ROUND: Final = 4
"""Contexts that are taught in one round where there are any, at least."""
FREE: Final = "free"
"""Name of no arm: nothing is chosen."""
TIMED: Final = "timed"
"""Name of no arm: the round is as it is to see what such rounds take."""
NOTHING: Final = ArmCaps(0, 0)
EVENTS: Final = ("arms_changed", "rounds_timed", "drafters_reset", "requests_free")


class Exchange(Protocol):
    """What is asked of a `PolicySync`."""

    def exchange(self) -> None:
        """Take in what others have seen, and hand over, where due; must not block."""


@dataclass(slots=True, eq=False)
class _Opened:
    """An open request; without a menu nothing is chosen for it."""

    key: str
    workload: str
    menu: Menu | None
    is_own: bool
    cell: Cell | None = None
    until: int = 0
    """Tokens at which its context is another one."""


class ArmChoice:
    """Chooses an arm for each request of an engine and learns from its rounds.

    A round is `begin`, `suppose`, `issued`, `seen` and `took`, in this order; the engine may have
    issued the next one before it says what one took. Not thread-safe, but for `figures` and
    `arm_rounds`. None of these raises: an error is counted, and what was not chosen is not
    narrowed. A round is O(requests that came or went) beside some array operations; all that was
    held is summed up once in `HOLD_ROUNDS` rounds.

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
        is_timing: the round that began last is as it is to see what such rounds take.
        is_free: in it, all that may be drafted is to be verified.
        is_odd: in it, nobody drafts: the cost of rounds, for which all are alike, learns nothing.
        is_judging: whether a new version of the model is judged: nobody is narrowed and nothing is
            learned meanwhile.
    """

    def __init__(
        self, *, max_tokens: int, drafter: str = "", rng: random.Random | None = None
    ) -> None:
        self.failures = FailureLog(logger, "choosing who drafts")
        rng = random.Random(0) if rng is None else rng  # noqa: S311  no secret
        self._menus = Menus(max_tokens=max_tokens, drafter=drafter, rng=rng)
        self.shared = SharedArms(self._menus.main.policy, self.forget)
        self._sync: Exchange | None = None
        self._ledger = ArmLedger()
        self._open: dict[str, _Opened] = {}
        self._held: list[tuple[Cell, Arm]] = []
        """Whose rounds are summed up at which place in this hold."""
        self._due: deque[tuple[Cell, Arm, ArmSums, int]] = deque()
        """What policies have not been taught yet of the hold before."""
        self._rounds_left = 0
        self._batch = 1
        self._stride = 1
        """Of so many rounds one is learned from."""
        self._num_turns = 0
        self._num_contexts = 0
        """In the hold before."""
        self._is_watching = True
        self._num_held = 1
        """Requests in the batch when the hold began."""
        self._ids: list[str] = []
        self._num_tokens: Sequence[int] = ()
        self._places: list[int] = []
        self._caps: list[ArmCaps] = []
        self._counted: list[tuple[str, int]] = []
        """Requests of the batch by arm."""
        self._is_stale = True
        self.is_timing = self.is_free = self.is_odd = False
        self.is_judging = False
        self._has_drafted = False
        self._price = 0.0
        """Chance below which tokens were not verified when some were drafted last."""
        self._further: float | None = None
        """What a further drafted token of each adds to a round, in this hold; None if not asked."""
        self._arm_rounds: Counter[str] = Counter()
        self._events = Counter(dict.fromkeys(EVENTS, 0))

    def share(self, sync: Exchange) -> None:
        """Exchange `shared` through `sync` from now on."""
        self._sync = sync

    def open(self, info: RequestInfo, limits: DraftLimits | None = None) -> None:
        """A request comes; `limits` are its client's and its policy's. An open one is kept."""
        if info.request_id in self._open:
            return
        try:
            is_own = not info.scope
            menu = self._menus.of(DraftLimits() if limits is None else limits, own=is_own)
            self._events["requests_free"] += menu is None
            key = info.scope or info.request_id
            self._open[info.request_id] = _Opened(key, info.workload, menu, is_own)
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
            return [self._menus.widest] * len(request_ids)

    def suppose(self, speculator: Speculator, budget: VerifyBudget) -> None:
        """Hear what memory would draft for some requests that may not have as much of it.

        O(few requests).

        Args:
            speculator: drafts from memory; they are open in it, as far as they have come.
            budget: what is verified in its rounds with drafts would be of these.
        """
        try:
            if self._has_drafted:  # it forgets what tokens take where none are drafted
                self._price = budget.price
            if not self._ledger.shadows:
                return
            now = self._ledger.shadows.among(self._ids, self._num_tokens)
            if due := self._ledger.shadows.due(now):
                self._suppose(speculator, due, now)
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def issued(
        self,
        num_tokens: Sequence[int],
        drafted: Sequence[int],
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
            if len(drafted) != len(self._ids):  # begin has failed
                return
            self._has_drafted = not self.is_timing and any(drafted)
            is_taught = not self.is_timing and self._rounds_left % self._stride == 0
            places = self._places if is_taught else None
            self._ledger.issue(
                Issued(self._ids, num_tokens, places, drafted, with_model, model_seconds)
            )
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def seen(
        self,
        request_ids: Sequence[str],
        num_tokens: Sequence[int],
        news: News,
        memory: Mapping[str, tuple[int, int]] | None = None,
    ) -> None:
        """The target has verified what was issued last.

        Args:
            request_ids: that are there now; others teach nothing.
            num_tokens: of each by now.
            news: gives the tokens that each of them got.
            memory: by request for which the model had drafted: how many tokens memory alone would
                have had verified, and how many of them accepted.
        """
        try:
            self._ledger.close(request_ids, num_tokens, news, memory, self._place_of)
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def took(self, time: RoundTime | None) -> None:
        """How long the round took of which `seen` told last; None if that says nothing."""
        try:
            self._ledger.time(time)
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def finish(self, request_id: str) -> None:
        """A request leaves; what one of no scope has taught goes with it."""
        opened = self._open.pop(request_id, None)
        if opened is not None and opened.is_own and opened.menu is not None:
            opened.menu.is_dropped = True

    def forget(self, key: int | str) -> None:
        """Drop what was learned for a sharing scope. O(contexts)."""
        for menu in self._menus:
            menu.forget(key)
        for cell in chain((cell for cell, _ in self._held), (cell for cell, *_ in self._due)):
            cell.is_dropped = cell.is_dropped or cell.context.key == key
        for opened in self._open.values():
            if opened.key == key:
                opened.cell = None
        self._is_stale = True

    def reset_drafter(self, name: str) -> None:
        """Another model drafts from now on: forget what was learned of the one before.

        For the engine's thread, like all else. O(contexts).

        Args:
            name: id of the model, the same in all replicas.
        """
        try:
            self._events["drafters_reset"] += 1
            self._menus.rename_drafter(name)
            self._drop_rounds()
            own = (each.menu for each in self._open.values() if each.is_own and each.menu)
            for menu in chain(self._menus, own):
                menu.reset(name)
        except Exception as error:  # noqa: BLE001  counted, as in begin
            self._fail(error)

    def reason(self, request_id: str) -> str:
        """Name of the arm that an open request drafts with.

        ``free`` where nothing is chosen: its client or policy lets nobody draft, or narrows in a
        way that is not learned of; "" where the request is not known.
        """
        opened = self._open.get(request_id)
        if opened is None:
            return ""
        return FREE if opened.cell is None else opened.cell.name

    def figures(self) -> dict[str, int]:
        """Counters since the start, by kind; pulls are those for requests that nobody narrows."""
        policy = self._menus.main.policy
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
        self.is_timing = self.is_free = self.is_odd = False
        if not num:
            self._ids, self._num_tokens, self._is_stale = [], (), True
            return []
        self._rounds_left -= 1
        if self._rounds_left <= 0 or not self._num_held < 2 * num < 4 * self._num_held:
            self._turn(num)
        self._teach(max(TAUGHT_A_ROUND, -(-len(self._due) // TEACHING_ROUNDS)))
        if self._is_stale or request_ids != self._ids:
            self._enter(request_ids, num_tokens)
        self._num_tokens = num_tokens
        if self.is_judging:
            self.is_timing = True
            self._arm_rounds[FREE] += num
            return [self._menus.widest] * num
        wanted = self._ledger.split.wanted(num)
        if wanted is None:
            for name, count in self._counted:
                self._arm_rounds[name] += count
            return self._caps
        self.is_timing, self.is_free, self.is_odd = True, wanted, not wanted
        self._events["rounds_timed"] += 1
        self._arm_rounds[TIMED] += num
        return [self._menus.widest if wanted else NOTHING] * num

    def _enter(self, request_ids: list[str], num_tokens: Sequence[int]) -> None:
        """The batch as it is now. O(requests)."""
        places, caps, names = [], [], []
        for request_id, num in zip(request_ids, num_tokens, strict=True):
            cell = self._cell(request_id, num)
            if cell is None:
                places.append(NOWHERE)
                caps.append(self._menus.widest)
                names.append(FREE)
                continue
            if cell.place == NOWHERE:
                cell.place = len(self._held)
                self._held.append((cell, cell.arm))
            places.append(cell.place)
            caps.append(cell.caps)
            names.append(cell.name)
        self._ledger.shadows.watch(self._untold(request_ids) if self._is_watching else ())
        self._ids, self._places, self._caps = request_ids, places, caps
        self._counted, self._is_stale = list(Counter(names).items()), False

    def _cell(self, request_id: str, num_tokens: int) -> Cell | None:
        """Where a request learns in this hold; None where nothing is chosen for it."""
        opened = self._open.get(request_id)
        if opened is None or opened.menu is None:
            return None
        cell = opened.cell
        if cell is None or cell.context.batch_bucket != self._batch or num_tokens >= opened.until:
            context = context_bucket(num_tokens)
            cell = opened.menu.cell(opened.key, opened.workload, self._batch, context)
            opened.cell, opened.until = cell, next_bucket(context)
        return cell

    def _turn(self, num_requests: int) -> None:
        """A hold ends: sum up its rounds; requests find their contexts anew."""
        self._teach(len(self._due))
        sums = self._ledger.take(len(self._held), self._menus.caps)
        for place, (cell, arm) in enumerate(self._held):
            cell.place = NOWHERE
            if sums is not None and sums.has_rounds(place):
                self._due.append((cell, arm, sums, place))
        self._num_contexts, self._held = len(self._held), []
        num_rounds = HOLD_ROUNDS * (2 if self._num_contexts > MANY_CONTEXTS else 1)
        self._rounds_left, self._num_held, self._is_stale = num_rounds, num_requests, True
        self._batch = batch_bucket(num_requests)
        self._stride = max(1, HOLD_ROUNDS * num_requests // MOST_ROWS)
        self._num_turns += 1
        self._further = None
        self._is_watching = self._num_turns % WATCHED_HOLDS == 0
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
                cell.hold(chosen)
                self._is_stale = True

    def _suppose(
        self, speculator: Speculator, request_ids: list[str], num_tokens: Mapping[str, int]
    ) -> None:
        """Keep what memory would draft for them.

        Where it drafts for the round as well, it learns nothing from this.
        """
        most = {i: self._most_by_memory(i) for i in request_ids}
        without = [i for i in request_ids if self.reason(i) == NO_DRAFTS.name]
        if without:
            drafts = speculator.propose_batch(without, max_tokens=most)
            self._keep(without, drafts, num_tokens)
        behind = [i for i in request_ids if i not in without]
        if behind:
            limits = [most[i] for i in behind]
            nothing: list[list[int]] = [[] for _ in behind]
            drafts = speculator.propose_behind(behind, nothing, max_tokens=limits)
            self._keep(behind, drafts, num_tokens)

    def _keep(
        self, request_ids: Sequence[str], drafts: TreeBatch, num_tokens: Mapping[str, int]
    ) -> None:
        """What of these drafts would have been verified is held against what will be said."""
        if self._further is None:
            # where the first token costs most, what another adds is all that a token has to pay
            split, num, most = self._ledger.split, len(self._ids), self._menus.widest.memory
            further = split.added(num, most) - split.added(num, 1.0)
            self._further = max(0.0, further) / max(1, most - 1)
        price = min(self._price, self._further)
        worth = count_likelier(drafts.offsets, drafts.parent, drafts.prob, price).tolist()
        rows = zip(request_ids, drafts.token_lists(), worth, strict=True)
        for request_id, tokens, num in rows:
            self._ledger.shadows.begin(request_id, num_tokens[request_id], tokens[:num])

    def _untold(self, request_ids: Sequence[str]) -> Iterator[str]:
        """Requests whose arm tells nothing of memory's longest drafts."""
        for request_id in request_ids:
            opened = self._open.get(request_id)
            cell = opened.cell if opened is not None else None
            if cell is None or cell.arm.has_model:
                continue
            if cell.arm.max_tokens < cell.menu.most_by_memory:
                yield request_id

    def _most_by_memory(self, request_id: str) -> int:
        opened = self._open.get(request_id)
        return 0 if opened is None or opened.menu is None else opened.menu.most_by_memory

    def _place_of(self, request_id: str) -> int:
        opened = self._open.get(request_id)
        return NOWHERE if opened is None or opened.cell is None else opened.cell.place

    def _drop_rounds(self) -> None:
        """Whatever is half known is dropped; the batch is entered anew."""
        self._ledger.clear()
        self._due.clear()
        for cell, _ in self._held:
            cell.place = NOWHERE
        self._held, self._ids, self._num_tokens, self._is_stale = [], [], (), True

    def _fail(self, error: Exception) -> None:
        self.failures.record(error)
        self._drop_rounds()


def with_arms(figures: DraftingFigures, arms: ArmChoice | None) -> DraftingFigures:
    """The figures, those of arms among them where arms are chosen."""
    if arms is None:
        return figures
    events = {**figures.events, **arms.figures()}
    return replace(figures, events=events, arms=arms.arm_rounds())
