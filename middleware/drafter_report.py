"""Versions of a drafter as text and as JSON, for `paceline drafter list` and `show`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self

import msgspec

from paceline.caches.drafter_registry import (
    DrafterRegistry,
    DrafterVersion,
    GateResult,
    GroupState,
    LiveFigures,
)

COLUMNS: Final = ("version", "state", "age", "tokens", "accepted a round", "at least", "live")
AGES: Final = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupReport:
    """What is known of one group's drafter.

    Attributes:
        group: whose.
        state: which versions run.
        versions: oldest first.
        live: how they do, by replica.
    """

    group: str
    state: GroupState
    versions: list[DrafterVersion]
    live: list[LiveFigures]

    @classmethod
    def read(cls, registry: DrafterRegistry, group: str) -> Self:
        """As the registry has it."""
        return cls(
            group=group,
            state=registry.state(group),
            versions=registry.versions(group),
            live=registry.live(group),
        )


def as_text(model: str, report: GroupReport, *, now: float) -> list[str]:
    """A line on the group, and a table with a line for each version."""
    rows = [COLUMNS, *(_row(version, report.live, now) for version in report.versions)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return [f"{model}, {state_line(report.group, report.state)}", *lines]


def state_line(group: str, state: GroupState) -> str:
    """Which versions of a group run."""
    parts = [f"version {state.current} is current" if state.current else "no version is current"]
    if state.last_good:
        parts.append(f"{state.last_good} is what to fall back to")
    if state.canary:
        parts.append(f"{state.canary} is on {state.canary_replica}")
    return f"{group}: {', '.join(parts)}"


def canary_line(report: GroupReport, *, now: float) -> str | None:
    """Which version is tried where, and when that replica was last heard of; None if none is."""
    state = report.state
    if not state.canary:
        return None
    heard = [it.updated_at for it in report.live if it.replica == state.canary_replica]
    told = f"heard of {age(now - max(heard))} ago" if heard else "not heard of lately"
    return f"canary     version {state.canary} is tried on {state.canary_replica}, {told}"


def details(version: DrafterVersion, live: Sequence[LiveFigures], *, now: float) -> list[str]:
    """All that is known of a version, a line each."""
    made = datetime.fromtimestamp(version.created_at, UTC)
    lines = [
        f"version {version.version} of {version.group}: {_shown(version.state)}"
        + (f" ({version.reason})" if version.reason else ""),
        f"made       {made:%Y-%m-%d %H:%M:%S} UTC, {age(now - version.created_at)} ago, from "
        + (f"version {version.parent}" if version.parent else "no other version"),
        f"learned    {version.num_tokens:,} tokens",
        f"files      {version.folder}",
        f"checksum   {version.checksum}",
        *_gate_lines(version.gate),
    ]
    return lines + [
        f"live       {figures.replica}: {_agreement(figures)}, {figures.accepted_length:.2f} "
        f"tokens accepted, {figures.num_rounds:,} rounds"
        for figures in live
    ]


def encoded(model: str, reports: Iterable[GroupReport]) -> str:
    """Groups as JSON."""
    return _json({"model": model, "groups": [*reports]})


def encoded_version(version: DrafterVersion, live: Sequence[LiveFigures]) -> str:
    """A version as JSON."""
    return _json({**msgspec.to_builtins(version), "live": list(live)})


def age(seconds: float) -> str:
    """Seconds in the largest unit that there is one of."""
    for size, unit in AGES:
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return "0 s"


def _row(version: DrafterVersion, live: Iterable[LiveFigures], now: float) -> tuple[str, ...]:
    gate = version.gate
    return (
        str(version.version),
        _shown(version.state),
        age(now - version.created_at),
        f"{version.num_tokens:,}",
        "-" if gate is None else f"{gate.before:.2f} -> {gate.after:.2f}",
        "-" if gate is None else f"{gate.lower_bound:+.3f}",
        ", ".join(
            f"{figures.replica} {_agreement(figures)}"
            for figures in live
            if figures.version == version.version
        )
        or "-",
    )


def _gate_lines(gate: GateResult | None) -> list[str]:
    if gate is None:
        return ["gate       was not asked"]
    lines = [
        f"gate       {'passed' if gate.passed else 'refused it'}: {gate.before:.3f} -> "
        f"{gate.after:.3f} accepted tokens a round, the gain at least {gate.lower_bound:+.3f}; "
        f"{gate.num_sessions:,} held-out sessions, {gate.num_rounds:,} rounds",
        f"agreement  {gate.agreement_before:.1%} -> {gate.agreement_after:.1%}",
        *(f"reason     {reason}" for reason in gate.reasons),
    ]
    return lines + [
        f"workload   {part.workload or '(unnamed)'}: {part.before:.3f} -> {part.after:.3f} "
        f"({part.num_sessions:,} sessions)"
        for part in gate.slices
    ]


def _agreement(figures: LiveFigures) -> str:
    """Share of rounds in which its first token was right."""
    return f"{figures.num_agreed / figures.num_rounds:.1%}" if figures.num_rounds else "no rounds"


def _shown(state: str) -> str:
    return state.replace("_", " ")


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=2).decode()
