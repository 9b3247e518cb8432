"""Recorded rewards: what every arm would have given for each request, a JSON object a line.

::

    {"key": "tenant:a", "workload": "w", "batch": 8, "tokens": 2000, "segment": "tau-bench/m",
     "half": "tuning",
     "arms": {"none": [80, 2.4, 80], "memory-4": [80, 1.1, 31], ...},
     "aside": {"memory-4": {"none": [31, 0.93, 31], ...}, ...}}

An outcome is committed tokens, seconds of round time and rounds of the whole request. ``aside``
says what the rounds with one arm told of others, and may be missing. ``batch`` is the requests in
the batch, ``tokens`` those of the context when the request began. Lines are in the order of
arrival; a segment ends where the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from paceline.benchmarks.policy.scenario import Request, Scenario
from paceline.errors import ConfigError
from paceline.policies.bandits import NO_DRAFTS, Arm, Outcome, PolicyContext

Triple = tuple[float, float, float]
HALVES: Final = ("tuning", "reporting")


class RewardRow(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a file of rewards."""

    key: str
    workload: str
    batch: int
    tokens: int
    segment: str
    half: str = ""
    arms: dict[str, Triple]
    aside: dict[str, dict[str, Triple]] = {}


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(RewardRow)


def write_rows(rows: Iterable[RewardRow], file: Path) -> None:
    """Write a file of rewards; its folder is made if need be."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as lines:
        for row in rows:
            lines.write(_encoder.encode(row) + b"\n")


def read_rows(file: Path) -> Iterator[RewardRow]:
    """The rows of a file.

    Raises:
        ConfigError: it is missing, or a line is none; names the line.
    """
    try:
        lines = file.read_bytes().splitlines()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        try:
            row = _decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise ConfigError(f"{file}, line {number}: {error}") from error
        bad = [name for name, triple in row.arms.items() if not Outcome(*triple).is_usable]
        if bad or NO_DRAFTS.name not in row.arms:
            raise ConfigError(
                f"{file}, line {number}: {bad[0] if bad else NO_DRAFTS.name!r} has no outcome that "
                "can be used; give tokens, seconds and rounds, each above 0, of each arm"
            )
        yield row


def scenario_of(name: str, rows: Sequence[RewardRow], *, named: bool = True) -> Scenario:
    """The rows as a scenario.

    Args:
        name: what the report calls it.
        rows: at least one, all of the same arms.
        named: False calls all workloads "", so that they change under the same name.

    Raises:
        ConfigError: there are none, or a row has other arms than the first.
    """
    if not rows:
        raise ConfigError(f"{name} has no rewards; give a file with at least one line")
    names = list(rows[0].arms)
    arms = tuple(Arm.parse(each) for each in names)
    for number, row in enumerate(rows):
        if set(row.arms) != set(names):
            raise ConfigError(
                f"{name}: request {number} has arms {sorted(row.arms)}, the first {sorted(names)}; "
                "a run has one set of arms"
            )
    begins = [i for i, row in enumerate(rows) if i == 0 or row.segment != rows[i - 1].segment]
    requests = tuple(_request(row, names, named=named) for row in rows)
    return Scenario(name, arms, requests, tuple(begins))


def _request(row: RewardRow, names: Sequence[str], *, named: bool) -> Request:
    return Request(
        PolicyContext.of(
            key=row.key,
            workload=row.workload if named else "",
            num_requests=row.batch,
            num_tokens=row.tokens,
        ),
        tuple(Outcome(*row.arms[name]) for name in names),
        {
            Arm.parse(pulled): {Arm.parse(name): Outcome(*seen) for name, seen in told.items()}
            for pulled, told in row.aside.items()
        },
    )
