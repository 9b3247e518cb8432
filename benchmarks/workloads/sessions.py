"""Recorded sessions with the kind of work that each is known to be, as a proxy would meet them."""

from __future__ import annotations

import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from paceline.errors import ConfigError

SYSTEM_ROLES: Final = ("system", "developer")
FIRST_NAMES: Final = ("Ann", "Bo", "Carl", "Dana", "Eve", "Farid", "Gita", "Hugo", "Ines", "Jan")
DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS: Final = ("January", "March", "April", "May", "June", "August", "October", "December")


@dataclass(frozen=True, slots=True)
class LabelledSession:
    """What a session's first request says.

    Attributes:
        kind: source, agent and task family, as they were recorded.
        family: task family alone.
        group: the task.
        system: system prompt, "" for none.
        tools: tool schemas as JSON, "" for none.
        opening: first user message, "" for none.
    """

    kind: str
    family: str
    group: str
    system: str
    tools: str
    opening: str

    def parts(self) -> tuple[str, str, str]:
        """What the workload is told by: the first message only without prompt and tools."""
        prompted = self.system or self.tools
        return self.system, self.tools, "" if prompted else self.opening


def read_sessions(folder: Path, *, max_per_kind: int) -> list[LabelledSession]:
    """The first sessions of each kind in `folder`'s traces, in the order of the files.

    Raises:
        ConfigError: the folder has no traces.
    """
    files = sorted(folder.glob("*.jsonl.gz"))
    if not files:
        raise ConfigError(f"{folder} has no *.jsonl.gz; name a folder of recorded agent traces")
    taken: Counter[str] = Counter()
    found: list[LabelledSession] = []
    for file in files:
        for row in _rows(file):
            session = _session(row, folder)
            if taken[session.kind] < max_per_kind:
                taken[session.kind] += 1
                found.append(session)
    return found


def is_for_tuning(session: LabelledSession) -> bool:
    """Whether a session belongs to the half that parameters are chosen on; by its task."""
    return bool(blake2b(session.group.encode(), digest_size=1).digest()[0] & 1)


def as_recorded(sessions: Sequence[LabelledSession]) -> list[LabelledSession]:
    """Those that have something to be named by."""
    return [session for session in sessions if any(session.parts())]


def with_details(sessions: Sequence[LabelledSession]) -> list[LabelledSession]:
    """The same, each system prompt beginning with a line that its session has for itself.

    Agents write such a line: date and time, who is asking, where they work. The recordings have
    none, so that these are made up, from a fixed seed.
    """
    rng = random.Random(7)  # noqa: S311  data of a benchmark
    return [
        replace(session, system=f"{_detail(rng)}\n{session.system}") if session.system else session
        for session in as_recorded(sessions)
    ]


def without_prompts(sessions: Sequence[LabelledSession]) -> list[LabelledSession]:
    """Those with a first user message, system prompt and tools removed."""
    return [replace(session, system="", tools="") for session in sessions if session.opening]


WORDINGS: Final[Mapping[str, Callable[[Sequence[LabelledSession]], list[LabelledSession]]]] = {
    "kept": as_recorded,
    "dated": with_details,
    "removed": without_prompts,
}
"""What the sessions are made of, by the names used in figures."""


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8", errors="surrogatepass") as lines:
        yield from map(json.loads, lines)


def _session(row: Mapping[str, Any], folder: Path) -> LabelledSession:
    messages = row["messages"]
    first = messages[0] if messages else {}
    family = (row.get("task_group") or row["source"]).partition(":")[0]
    return LabelledSession(
        kind="/".join((row["source"], row.get("agent") or row["model"], family)),
        family=family,
        group=row.get("task_group") or row["episode_id"],
        system=_text(first) if first.get("role") in SYSTEM_ROLES else "",
        tools=_tools(row, folder),
        opening=next((_text(m) for m in messages if m["role"] == "user"), ""),
    )


def _tools(row: Mapping[str, Any], folder: Path) -> str:
    if row.get("tools"):
        return json.dumps(row["tools"])
    file = folder / "tools" / f"{row.get('tools_ref') or ''}.json"
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _text(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    text = content if isinstance(content, str) else ""
    return text.encode("utf-8", "replace").decode()  # recorded halves of characters


def _detail(rng: random.Random) -> str:
    name, day, month = (rng.choice(names) for names in (FIRST_NAMES, DAYS, MONTHS))
    return (
        f"Today is {day}, {month} {rng.randint(1, 28)}, 2026, {rng.randint(0, 23)}:"
        f"{rng.randint(10, 59)}. You work for {name} in /home/{name.lower()}/{rng.choice(MONTHS)}-"
        f"{rng.randint(1, 999)}."
    )
