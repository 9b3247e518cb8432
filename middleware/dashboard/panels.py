"""What each panel of the page shows of a `Snapshot`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import dash_mantine_components as dmc

from paceline.middleware.dashboard import wording
from paceline.middleware.dashboard.standing import ReplicaRow, busy
from paceline.middleware.dashboard.totals import SOURCES
from paceline.middleware.dashboard.watcher import Snapshot
from paceline.middleware.drafter_report import GroupReport, age
from paceline.policies.bandits.report import ArmReport, ContextReport

MOST_CONTEXTS: Final = 3
MOST_VERSIONS: Final = 8
MOST_NAME: Final = 28
COLOURS: Final = {
    "session": "teal.6",
    "workload": "indigo.5",
    "tenant": "orange.6",
    "corpus": "grape.5",
    "model": "pink.5",
}
STATES: Final = {
    "current": "teal",
    "canary": "yellow",
    "candidate": "blue",
    "rejected": "red",
    "rolled_back": "red",
}


def nothing(text: str) -> dmc.Text:
    """What an empty panel says."""
    return dmc.Text(text, c="dimmed", size="sm", py="md")


def status(now: Snapshot) -> list[Any]:
    """Whether all is well."""
    num = sum(bool(replica.is_healthy) for replica in now.replicas)
    is_well = num == len(now.replicas) and not now.problem
    colour = "teal" if is_well else "red" if not num else "yellow"
    badge = dmc.Badge(
        f"{num} of {len(now.replicas)} engines healthy", color=colour, variant="light"
    )
    problem = [dmc.Text(now.problem, c="red", size="xs")] if now.problem else []
    return [badge, *problem]


def stats(now: Snapshot) -> list[Any]:
    """The figures at the top."""
    recent = now.recent
    running, waiting = busy(now.replicas)
    return [
        _stat("Tokens a second", wording.count(now.tokens_per_second), "now"),
        _stat("Speedup", wording.factor(recent.speedup), "over no drafts, estimated"),
        _stat("Tokens a step", wording.ratio(recent.tokens_per_step), "1 without drafts"),
        _stat("Acceptance", wording.share(recent.acceptance), "of drafted tokens"),
        _stat("First token", wording.duration(now.first_token_seconds), "median"),
        _stat("Requests", str(running), f"running, {waiting} waiting"),
    ]


def _stat(name: str, value: str, what: str) -> dmc.Paper:
    return dmc.Paper(
        [
            dmc.Text(name, size="xs", c="dimmed", fw=600),
            dmc.Text(value, fz={"base": "1.5rem", "sm": "1.9rem"}, fw=700, lh=1.2),
            dmc.Text(what, size="xs", c="dimmed"),
        ],
        withBorder=True,
        p="sm",
        radius="md",
    )


def charts(now: Snapshot) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
    """Data of tokens, speedup and acceptance over time, and the sources that have drafted."""
    times = [wording.ago(now.at - point.at) for point in now.points]
    tokens = [
        {"time": at, "tokens/s": round(point.tokens_per_second, 1)}
        for at, point in zip(times, now.points, strict=True)
    ]
    speedup = [
        {"time": at, "speedup": _rounded(point.window.speedup)}
        for at, point in zip(times, now.points, strict=True)
    ]
    acceptance = [
        {"time": at}
        | {
            source: None
            if (share := point.window.acceptance_of(source)) is None
            else round(100 * share, 1)
            for source in SOURCES
        }
        for at, point in zip(times, now.points, strict=True)
    ]
    seen = [source for source in SOURCES if any(row[source] is not None for row in acceptance)]
    series = [{"name": source, "color": COLOURS[source]} for source in seen]
    return tokens, speedup, acceptance, series


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def tenants(now: Snapshot) -> Any:
    """Who is served, and what drafts bring them."""
    if not now.tenants:
        return nothing("Nobody has asked for anything yet.")
    head = ("Tenant", "Workload", "Tokens", "Speedup", "Accepted", "Tokens a step", "Saved rounds",
            "Requests", "First token", "Between pieces")  # fmt: skip
    rows = [
        (
            row.tenant or "(nobody)",
            _short(row.workload) or "(unnamed)",
            wording.count(row.totals.tokens),
            wording.factor(row.totals.speedup),
            wording.share(row.totals.acceptance),
            wording.ratio(row.totals.tokens_per_step),
            wording.count(row.totals.saved),
            wording.count(row.requests),
            wording.duration(row.first_token_seconds),
            wording.duration(row.gap_seconds),
        )
        for row in now.tenants
    ]
    return _table(head, rows, num_names=2)


def arms(now: Snapshot) -> Any:
    """What bandits have learned of each arm, and how sure they are."""
    found = [context for model in now.models for context in model.contexts]
    if not found:
        return nothing(
            "No bandit has learned anything: engines choose by time alone (start them with "
            "--bandit, or PACELINE_BANDIT=1)."
        )
    return dmc.Stack([_context(context) for context in found[:MOST_CONTEXTS]], gap="lg")


def _context(context: ContextReport) -> dmc.Stack:
    most = max(arm.reward + 2 * arm.deviation for arm in context.arms)
    where = f"{context.key}, {_short(context.workload) or 'unnamed'}"
    load = f"{context.batch_bucket}+ in the batch, {context.context_bucket}+ tokens of context"
    return dmc.Stack(
        [
            dmc.Group(
                [dmc.Text(where, size="sm", fw=600), dmc.Text(load, size="xs", c="dimmed")],
                gap="xs",
            ),
            *(_arm(arm, most, is_best=not i) for i, arm in enumerate(context.arms)),
        ],
        gap=6,
    )


def _arm(arm: ArmReport, most: float, *, is_best: bool) -> dmc.Group:
    """A bar from two deviations below the mean to two above."""
    low = max(arm.reward - 2 * arm.deviation, 0.0)
    high = arm.reward + 2 * arm.deviation
    colour = "teal" if is_best else "gray"
    bar = dmc.ProgressRoot(
        [
            dmc.ProgressSection(value=100 * low / most, color="transparent"),
            dmc.ProgressSection(value=100 * (arm.reward - low) / most, color=f"{colour}.4"),
            dmc.ProgressSection(value=100 * (high - arm.reward) / most, color=f"{colour}.6"),
        ],
        size="md",
        style={"flex": 1},
    )
    says = f"{arm.reward:.2f} ± {2 * arm.deviation:.2f}"
    return dmc.Group(
        [
            dmc.Text(arm.name, size="xs", w=78, ff="monospace"),
            bar,
            dmc.Text(says, size="xs", w=92, ta="right"),
        ],
        gap="xs",
        wrap="nowrap",
    )


def versions(now: Snapshot) -> Any:
    """Versions of drafters, and what the gate found."""
    groups = [(model.model, group) for model in now.models for group in model.drafters]
    if not any(group.versions for _, group in groups):
        return nothing(
            "No version of a drafter: a learner publishes them (paceline serve --learn, or "
            "paceline learner)."
        )
    return dmc.Stack([_group(model, group, now.at) for model, group in groups], gap="md")


def _group(model: str, group: GroupReport, at: float) -> dmc.Stack:
    head = (
        "Version",
        "State",
        "Age",
        "Learned",
        "Gate",
        "Accepted a round",
        "Gain at least",
        "Runs on",
    )
    rows = []
    for version in reversed(group.versions[-MOST_VERSIONS:]):
        gate = version.gate
        state = version.state.replace("_", " ")
        runs_on = [live.replica for live in group.live if live.version == version.version]
        rows.append((
            f"v{version.version}",
            _badge(state, STATES.get(version.state, "gray")),
            age(at - version.created_at),
            f"{wording.count(version.num_tokens)} tokens",
            wording.NOTHING if gate is None else "passed" if gate.passed else "refused",
            wording.NOTHING if gate is None else f"{gate.before:.2f} → {gate.after:.2f}",
            wording.NOTHING if gate is None else f"{gate.lower_bound:+.3f}",
            ", ".join(runs_on) or wording.NOTHING,
        ))  # fmt: skip
    name = dmc.Text(f"{model}, {group.group}", size="sm", fw=600)
    return dmc.Stack([name, _table(head, rows, num_names=2)], gap=4)


def tiers(now: Snapshot) -> Any:
    """What engines remember, tier by tier, and what Redis does."""
    if not now.tiers:
        return nothing("No engine has a draft memory.")
    most = max(1.0, *(row.tokens for row in now.tiers))
    bars = [
        dmc.Stack(
            [
                dmc.Group(
                    [
                        dmc.Text(row.tier, size="sm", fw=600),
                        dmc.Text(
                            _held(row.tokens, row.drafted, row.accepted), size="xs", c="dimmed"
                        ),
                    ],
                    justify="space-between",
                ),
                dmc.Progress(value=100 * row.tokens / most, color=COLOURS[row.tier], size="lg"),
            ],
            gap=4,
        )
        for row in now.tiers
    ]
    stored = [
        dmc.Text(
            f"In Redis, {model.model}: "
            + ", ".join(
                f"{each.tenant} {wording.count(each.num_tokens)} tokens "
                f"({wording.size(each.num_bytes)})"
                for each in model.memory[:6]
            ),
            size="xs",
            c="dimmed",
        )
        for model in now.models
        if model.memory
    ]
    return dmc.Stack([*bars, *stored], gap="sm")


def _held(tokens: float, drafted: float, accepted: float) -> str:
    held = f"{wording.count(tokens)} tokens"
    if not drafted:
        return f"{held}, drafted none"
    return f"{held}, {wording.share(accepted / drafted)} of {wording.count(drafted)} drafted right"


def replicas(now: Snapshot) -> Any:
    """Every engine."""
    head = ("Engine", "Health", "Running", "Waiting", "First byte", "Tokens", "Memory", "Journal",
            "Drafter")  # fmt: skip
    rows = [
        (
            row.name,
            _health(row),
            wording.count(row.running),
            wording.count(row.waiting),
            wording.duration(row.first_byte_seconds),
            wording.count(row.tokens),
            wording.size(row.memory_bytes),
            {None: wording.NOTHING, True: "connected", False: "away"}[row.is_sharing],
            wording.NOTHING if row.version is None else f"v{row.version}",
        )
        for row in now.replicas
    ]
    return _table(head, rows, num_names=2)


def _health(row: ReplicaRow) -> dmc.Badge:
    if row.problem:
        return _badge("no figures", "red")
    if row.is_healthy is None:
        return _badge("unknown", "gray")
    colour, word = ("teal", "healthy") if row.is_healthy else ("red", "away")
    return _badge(word, colour)


def _badge(word: str, colour: str) -> dmc.Badge:
    """A word that is not cut where its column is narrow."""
    return dmc.Badge(word, color=colour, variant="light", size="sm", miw="max-content")


def updated(now: Snapshot) -> str:
    """When the figures are of."""
    return time.strftime("%H:%M:%S UTC", time.gmtime(now.at))


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, num_names: int) -> Any:
    """Numbers to the right, in a box that scrolls where it is too narrow."""

    def cells(kind: Any, values: Sequence[Any]) -> list[Any]:
        return [
            kind(value, ta="left" if i < num_names else "right", style={"whiteSpace": "nowrap"})
            for i, value in enumerate(values)
        ]

    table = dmc.Table(
        [
            dmc.TableThead(dmc.TableTr(cells(dmc.TableTh, head))),
            dmc.TableTbody([dmc.TableTr(cells(dmc.TableTd, row)) for row in rows]),
        ],
        verticalSpacing=4,
        horizontalSpacing="sm",
        fz="sm",
    )
    return dmc.TableScrollContainer(table, minWidth=0, type="native")


def _short(name: str) -> str:
    return name if len(name) <= MOST_NAME else f"{name[: MOST_NAME - 1]}…"
