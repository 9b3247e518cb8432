"""Keeping a policy from jumping: burn-in, arms that stay for a while, a price for leaving one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from paceline.errors import ConfigError
from paceline.policies.bandits.arms import Arm
from paceline.policies.bandits.bandit import Bandit
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.outcome import Outcome
from paceline.policies.bandits.state import PolicyState

MAX_CONTEXTS: Final = 8192
STAGGER: Final = 16
"""Contexts that begin one after the other first hold their arms for as many different times."""

LOOK_SHARE: Final = 0.01
"""Of the time, for looking at the widest arm while others tell nothing of it."""
MOST_UNTOLD: Final = 4
"""Holds that tell nothing of the widest arm before time is saved for looking at it."""
LEAST_LOOK: Final = 0.03
"""What a look is taken to cost at least, in holds."""
MOST_SAVED: Final = 8.0
"""Time saved for looks, in holds; an arm that costs more is not looked at again."""

Sums = list[float]
"""Tokens, seconds, rounds."""


class _Held:
    """What a context drafts with, and what came of it so far."""

    __slots__ = (
        *("arm", "asides", "left", "num_changes", "num_untold", "saved", "sums", "untried"),
    )

    def __init__(self, arm: Arm, untried: list[Arm]) -> None:
        self.arm = arm
        self.untried = untried
        self.left = 0.0
        self.num_changes = 0
        self.num_untold = 0
        """Holds in a row that told nothing of the widest arm."""
        self.saved = 0.0
        """Time for looking at the widest arm, in holds."""
        self.sums: Sums = [0.0, 0.0, 0.0]
        self.asides: list[Mapping[Arm, Outcome]] = []


class Steady:
    """A policy around a bandit; see `Policy`.

    A pulled arm stays for `hold_rounds` rounds of its context, and their outcomes are taught as
    one: so most pulls and updates are a look-up and three additions.

    Args:
        bandit: what chooses.
        hold_rounds: rounds that an arm stays, counted once for each request in them; at least 1.
        margin: by how much another arm must look better to take its place: the price of switching,
            in parts of the rate without drafts.
        burn_in: evidence on an arm, in outcomes of full weight, below which it is pulled in a new
            context before any other is chosen; 0 for none.
        is_told_aside: outcomes come with those that other arms would have had, no drafts among
            them: a new context then begins with its widest arm, the longest of everybody, which
            tells of all others, instead of with none; drafts with another only where that is
            better than the widest by the margin; and looks at the widest again for a hundredth of
            the time while another is held that tells nothing of it.

    Raises:
        ConfigError: a setting is outside its range.

    Attributes:
        num_pulls: times that an arm was chosen anew, since the start.
        num_burned_in: of those, for an arm that was not known enough.
        num_looks: of those, for the widest arm, of which others had told nothing for some time.
    """

    def __init__(
        self,
        bandit: Bandit,
        *,
        hold_rounds: float = 16.0,
        margin: float = 0.02,
        burn_in: float = 2.0,
        is_told_aside: bool = False,
    ) -> None:
        if not hold_rounds >= 1.0:
            raise ConfigError(f"hold_rounds is {hold_rounds}; give at least 1")
        if not margin >= 0.0 or not burn_in >= 0.0:
            raise ConfigError(f"margin is {margin} and burn_in {burn_in}; give 0 or more")
        self._bandit = bandit
        self._hold_rounds = hold_rounds
        self._margin = margin
        self._burn_in = burn_in
        self._widest: Arm | None = None
        if is_told_aside:
            self._widest = max(bandit.arms, key=lambda arm: (arm.has_model, arm.max_tokens))
        self._held: dict[PolicyContext, _Held] = {}
        self._num_unusable = 0
        self._num_begun = 0
        self.num_pulls = 0
        self.num_burned_in = 0
        self.num_looks = 0

    def __repr__(self) -> str:
        return (
            f"Steady({self._bandit!r}, hold_rounds={self._hold_rounds}, margin={self._margin}, "
            f"burn_in={self._burn_in})"
        )

    @property
    def kind(self) -> str:
        """The bandit's: states of one bandit fit however it is held."""
        return self._bandit.kind

    @property
    def arms(self) -> tuple[Arm, ...]:
        """What is chosen from; the first is `NO_DRAFTS`."""
        return self._bandit.arms

    @property
    def num_unusable(self) -> int:
        """Outcomes that nothing could be learned from, since the start."""
        return self._num_unusable + self._bandit.num_unusable

    @property
    def num_trials(self) -> int:
        """Times that an arm was pulled because it had not been seen of late, since the start."""
        return self._bandit.num_trials

    def pull(self, context: PolicyContext) -> Arm:
        """The arm that the context holds, or another when its rounds are over."""
        held = self._held.get(context)
        if held is not None and held.left > 0.0:
            return held.arm
        return self._pulled(context, held)

    def update(
        self,
        context: PolicyContext,
        arm: Arm,
        outcome: Outcome,
        aside: Mapping[Arm, Outcome] | None = None,
    ) -> None:
        """See `Policy.update`; the bandit is taught when the arm's rounds are over.

        That is at the next pull, or when the state is asked for; `aside` is kept until then.
        """
        held = self._held.get(context)
        if held is None or (held.arm is not arm and held.arm != arm):
            self._bandit.update(context, arm, outcome, aside)
            return
        if not outcome.is_usable:
            self._num_unusable += 1
            return
        sums = held.sums
        sums[0] += outcome.num_tokens
        sums[1] += outcome.seconds
        sums[2] += outcome.num_rounds
        if aside:
            held.asides.append(aside)
        held.left -= outcome.num_rounds

    def state(self) -> bytes:
        """See `Policy.state`; rounds of arms that are still held are not in it yet."""
        for context, held in self._held.items():
            if held.left <= 0.0:
                self._teach(context, held)
        return self._bandit.state()

    def load(self, state: bytes) -> None:
        """See `Policy.load`."""
        self._bandit.load(state)

    def merge(self, others: Mapping[str, PolicyState]) -> None:
        """See `Policy.merge`."""
        self._bandit.merge(others)

    def reset(self, drafter: str) -> None:
        """See `Policy.reset`; every context chooses anew, arms with the model burn in again."""
        self._bandit.reset(drafter)
        self._held.clear()

    def forget(self, key: int | str) -> None:
        """See `Policy.forget`. O(contexts)."""
        self._bandit.forget(key)
        for context in [each for each in self._held if each.key == key]:
            del self._held[context]

    def _pulled(self, context: PolicyContext, held: _Held | None) -> Arm:
        if held is None:
            held = self._held[context] = _Held(self.arms[0], self._in_burn_in_order())
            current = None
            if len(self._held) > MAX_CONTEXTS:
                del self._held[next(iter(self._held))]
        else:
            current = held.arm
            seen = self._teach(context, held)
            is_told = self._widest is None or self._widest == current or self._widest in seen
            held.num_untold = 0 if is_told else held.num_untold + 1
            if held.num_untold > MOST_UNTOLD:
                held.saved = min(held.saved + LOOK_SHARE, MOST_SAVED)
        burning = self._burning(context, held)
        held.arm = burning or self._look(context, held) or self._chosen(context, current)
        self.num_pulls += 1
        self.num_burned_in += burning is not None
        held.left = self._hold_rounds
        if current is None:  # contexts that begin together choose anew one after the other
            self._num_begun += 1
            held.left *= 1.0 - self._num_begun % STAGGER / STAGGER
        return held.arm

    def _look(self, context: PolicyContext, held: _Held) -> Arm | None:
        """The widest arm, if the time saved for looking at it pays for what it is taken to lose."""
        if self._widest is None or held.saved < LEAST_LOOK:
            return None
        cost = max(self._bandit.loss(context, self._widest), LEAST_LOOK)
        if held.saved < cost:
            return None
        held.saved -= cost
        self.num_looks += 1
        return self._widest

    def _chosen(self, context: PolicyContext, current: Arm | None) -> Arm:
        if self._widest is not None and current is not None and current.max_tokens:
            return self._bandit.choose(context, self._widest, current, margin=self._margin)
        return self._bandit.choose(context, current, margin=self._margin)

    def _burning(self, context: PolicyContext, held: _Held) -> Arm | None:
        """The arm that least is known of, if that is not enough; all when rewards have changed.

        So they take turns, and none is known by a single request's luck.
        """
        num_changes = self._bandit.num_changes(context)
        if num_changes != held.num_changes:
            held.num_changes, held.untried = num_changes, self._in_burn_in_order()
        if not held.untried:
            return None
        known = {arm: self._bandit.evidence(context, arm) for arm in held.untried}
        held.untried = [arm for arm in held.untried if known[arm] < self._burn_in]
        return min(held.untried, key=known.__getitem__, default=None)

    def _in_burn_in_order(self) -> list[Arm]:
        """No drafts first, which all rewards are relative to; then long drafts, which tell most.

        Where rewards of no drafts are told aside, the longest of everybody come first.
        """
        if self._widest is not None:
            return sorted(self.arms, key=lambda arm: (not arm.has_model, -arm.max_tokens))
        return sorted(self.arms, key=lambda arm: -arm.max_tokens or -(1 << 20))

    def _teach(self, context: PolicyContext, held: _Held) -> Mapping[Arm, Outcome]:
        """Tell the bandit what came of the arm, and return what is known of others.

        Nothing if no round was finished.
        """
        sums, asides = held.sums, held.asides
        if sums[2] <= 0.0:
            return {}
        seen = asides[0] if len(asides) == 1 else _summed(asides)
        held.sums, held.asides = [0.0, 0.0, 0.0], []
        self._bandit.update(context, held.arm, Outcome(*sums), seen)
        return seen


def _summed(asides: Sequence[Mapping[Arm, Outcome]]) -> dict[Arm, Outcome]:
    """Outcomes of each arm together; those that cannot be are left out."""
    found: dict[Arm, Sums] = {}
    for aside in asides:
        for arm, seen in aside.items():
            if seen.is_usable:
                sums = found.setdefault(arm, [0.0, 0.0, 0.0])
                sums[0] += seen.num_tokens
                sums[1] += seen.seconds
                sums[2] += seen.num_rounds
    return {arm: Outcome(*sums) for arm, sums in found.items()}
