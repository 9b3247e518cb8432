"""Bandits: which sources draft, and how many tokens, learned from what committed tokens cost.

Pure, as all policies are: `paceline.caches.policy_sync` keeps what they have seen.
"""

from paceline.policies.bandits.arms import NO_DRAFTS, Arm, arm_set, default_arms
from paceline.policies.bandits.bandit import Bandit
from paceline.policies.bandits.base import Policy
from paceline.policies.bandits.context import (
    PolicyContext,
    batch_bucket,
    context_bucket,
    next_bucket,
)
from paceline.policies.bandits.defaults import default_policy
from paceline.policies.bandits.exp3 import Exp3S
from paceline.policies.bandits.gaussian import DiscountedUCB, ThompsonSampling
from paceline.policies.bandits.linear import DiscountedLinUCB
from paceline.policies.bandits.outcome import Outcome, shorter_draft
from paceline.policies.bandits.state import PolicyState, decode_state, encode_state
from paceline.policies.bandits.steady import Steady

__all__ = [
    "NO_DRAFTS",
    "Arm",
    "Bandit",
    "DiscountedLinUCB",
    "DiscountedUCB",
    "Exp3S",
    "Outcome",
    "Policy",
    "PolicyContext",
    "PolicyState",
    "Steady",
    "ThompsonSampling",
    "arm_set",
    "batch_bucket",
    "context_bucket",
    "decode_state",
    "default_arms",
    "default_policy",
    "encode_state",
    "next_bucket",
    "shorter_draft",
]
