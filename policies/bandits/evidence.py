"""Discounted evidence on arms: its own, and apart from it what other replicas have seen.

Whatever a kind of policy keeps of an arm is a row of sums. So ageing is one factor, merging is
adding, and taking a replica's evidence back is leaving its rows out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from paceline.policies.bandits.change import ChangeWatch
from paceline.policies.bandits.context import PolicyContext
from paceline.policies.bandits.outcome import Baseline
from paceline.policies.bandits.state import (
    BaselineState,
    KeyState,
    Row,
    TableName,
    TableState,
)

LEAST_SCALE: Final = 1e-9
MAX_KEYS: Final = 1024
MAX_CELLS: Final = 512
"""Contexts of one key; clients name workloads, so that there is no end to them."""
TABLES_PER_CELL: Final = 4

Levels = Callable[[PolicyContext], tuple[TableName, ...]]
"""Names of the tables that a context is learned in, the narrowest first."""


class Table:
    """Rows of one table, by number of the arm. Every operation on one arm is O(width).

    Attributes:
        num_updates: outcomes that it was taught, others' not counted.
    """

    __slots__ = ("_others", "_others_scale", "_rows", "_scale", "num_updates")

    def __init__(self, num_arms: int, width: int) -> None:
        self.num_updates = 0
        self._scale = 1.0
        self._rows = [[0.0] * width for _ in range(num_arms)]
        self._others: list[Row] | None = None
        self._others_scale = 1.0

    def age(self, factor: float) -> None:
        """What was seen so far counts less by `factor`. O(1), amortised."""
        self._scale *= factor
        self._others_scale *= factor
        if self._scale < LEAST_SCALE:
            self._rows = self.own_rows()
            self._scale = 1.0

    def add(self, arm: int, row: Sequence[float]) -> None:
        """New evidence on an arm."""
        own, scale = self._rows[arm], self._scale
        for i, value in enumerate(row):
            own[i] += value / scale

    def row(self, arm: int) -> Row:
        """All evidence on an arm."""
        scale = self._scale
        if self._others is None:
            return [value * scale for value in self._rows[arm]]
        others_scale = self._others_scale
        return [
            value * scale + other * others_scale
            for value, other in zip(self._rows[arm], self._others[arm], strict=True)
        ]

    def scaled_rows(self) -> tuple[list[Row], float]:
        """All evidence on every arm, to be multiplied by the number, and not to be written to."""
        if self._others is None:
            return self._rows, self._scale
        return [self.row(arm) for arm in range(len(self._rows))], 1.0

    def own_rows(self) -> list[Row]:
        """Its own evidence on every arm."""
        return [[value * self._scale for value in row] for row in self._rows]

    def set_own(self, rows: list[Row]) -> None:
        """Put other rows in place of its own."""
        self._rows, self._scale = rows, 1.0

    def set_others(self, rows: list[Row] | None) -> None:
        """Put what others have seen, all together, in place of what they had seen."""
        self._others, self._others_scale = rows, 1.0

    @property
    def others_scale(self) -> float:
        """What others' evidence counts for since it was set."""
        return self._others_scale

    def clear(self, arms: Collection[int]) -> None:
        """Drop all evidence on some arms; others are told, as of any update."""
        for rows in (self._rows, self._others or ()):
            for arm, row in enumerate(rows):
                if arm in arms:
                    row[:] = [0.0] * len(row)
        self.num_updates += 1


class Cell:
    """Where one context is learned.

    Attributes:
        name: its narrowest table's, with both buckets.
        tables: the narrowest first.
        baseline: rate of the target alone, this replica's own.
        borrowed: others' mean baseline, for as long as there is none of its own.
        notes: what the kind of policy keeps beside, not part of the state.
        watch: likewise, what looks for changes of its rewards.
        num_changes: times that these were found to be others than they had been.
        is_alone: since then, so that what wider tables have learned is of no use to it.
    """

    __slots__ = (
        *("baseline", "borrowed", "is_alone", "name", "notes", "num_changes", "tables", "watch"),
    )

    def __init__(
        self, name: TableName, tables: tuple[Table, ...], baseline: Baseline, borrowed: float
    ) -> None:
        self.name = name
        self.tables = tables
        self.baseline = baseline
        self.borrowed = borrowed
        self.notes: dict[str, list[float]] = {}
        self.watch: ChangeWatch | None = None
        self.num_changes = 0
        self.is_alone = False

    @property
    def base_rate(self) -> float:
        """Tokens a second without drafts, 0 if nobody has seen any."""
        return self.baseline.rate or self.borrowed


@dataclass(slots=True)
class _Known:
    """What one replica said last of one table, aged since."""

    num_updates: int
    rows: list[Row]


@dataclass(slots=True)
class _Key:
    """Everything of one key."""

    cells: dict[TableName, Cell] = field(default_factory=dict)
    tables: dict[TableName, Table] = field(default_factory=dict)
    baselines: dict[TableName, Baseline] = field(default_factory=dict)
    known: dict[TableName, dict[str, _Known]] = field(default_factory=dict)
    others_rates: dict[TableName, float] = field(default_factory=dict)


class Evidence:
    """Evidence of all keys; the least recently used contexts and keys go first.

    Args:
        arms: names of the arms.
        width: numbers in a row.
        levels: see `Levels`.
    """

    def __init__(self, arms: Sequence[str], width: int, levels: Levels) -> None:
        self._arms = {name: number for number, name in enumerate(arms)}
        self._width = width
        self._levels = levels
        self._keys: dict[int | str, _Key] = {}
        self._last: tuple[PolicyContext, Cell] | None = None
        """What was asked for last, which is the most recently used."""

    def __len__(self) -> int:
        return sum(len(key.cells) for key in self._keys.values())

    def cell(self, context: PolicyContext) -> Cell:
        """The context's cell, made where it is new. O(1) amortised."""
        last = self._last
        if last is not None and last[0] is context:
            return last[1]
        key = self._touched(context.key)
        name = (context.workload, context.batch_bucket, context.context_bucket)
        cell = key.cells.pop(name, None) or self._made(key, name, self._levels(context))
        key.cells[name] = cell
        if len(key.cells) > MAX_CELLS:
            self._drop_oldest(key)
        self._last = context, cell
        return cell

    def forget(self, key: int | str) -> None:
        """Drop a key."""
        self._last = None
        self._keys.pop(key, None)

    def clear(self, arms: Collection[int]) -> None:
        """Drop all evidence on some arms, by their numbers."""
        for key in self._keys.values():
            for table in key.tables.values():
                table.clear(arms)
            for known in key.known.values():
                for each in known.values():
                    each.rows = self._without(each.rows, arms)
            for cell in key.cells.values():
                cell.notes.clear()
                cell.watch = None

    def export(self) -> list[KeyState]:
        """Its own evidence. O(tables)."""
        exported = []
        for name, key in self._keys.items():
            tables = [
                TableState(table_name, table.num_updates, self._named(table.own_rows()))
                for table_name, table in key.tables.items()
                if table.num_updates
            ]
            baselines = [
                BaselineState(at, each.weight, each.log_rate, each.deviation)
                for at, each in key.baselines.items()
                if each.weight > 0
            ]
            if tables or baselines:
                exported.append(KeyState(name, tables, baselines))
        return exported

    def load(self, keys: Sequence[KeyState], without: Collection[int] = ()) -> None:
        """Add to its own evidence, but for some arms. O(tables)."""
        self._last = None
        for state in keys[-MAX_KEYS:]:
            key = self._touched(state.key)
            for each in state.tables[: TABLES_PER_CELL * MAX_CELLS]:
                table = self._table(key, each.name)
                table.num_updates += each.num_updates
                for arm, row in enumerate(self._without(self._numbered(each), without)):
                    table.add(arm, row)
            for base in state.baselines[:MAX_CELLS]:
                own = key.baselines.setdefault(base.name, Baseline())
                if own.weight <= 0:
                    own.weight, own.log_rate = base.weight, base.log_rate
                    own.deviation = base.deviation

    def merge(
        self, others: Mapping[str, Sequence[KeyState]], without: Mapping[str, Collection[int]]
    ) -> None:
        """Put others' evidence in place of what was known of them. O(their tables).

        Args:
            others: replica to its evidence.
            without: replica to the arms that are left out.
        """
        self._last = None
        by_key: dict[int | str, dict[str, KeyState]] = {}
        for replica, keys in others.items():
            for state in keys[-MAX_KEYS:]:
                by_key.setdefault(state.key, {})[replica] = state
        for name in self._keys.keys() - by_key.keys():
            self._merge_key(self._keys[name], {}, without)
        for name, states in list(by_key.items())[-MAX_KEYS:]:
            self._merge_key(self._touched(name), states, without)

    def _merge_key(
        self, key: _Key, states: Mapping[str, KeyState], without: Mapping[str, Collection[int]]
    ) -> None:
        said: dict[TableName, dict[str, TableState]] = {}
        rates: dict[TableName, list[float]] = {}
        for replica, state in states.items():
            for table in state.tables[: TABLES_PER_CELL * MAX_CELLS]:
                said.setdefault(table.name, {})[replica] = table
            for base in state.baselines[:MAX_CELLS]:
                rates.setdefault(base.name, []).append(Baseline(1.0, base.log_rate).rate)
        key.others_rates = {name: sum(found) / len(found) for name, found in rates.items()}
        for name, cell in key.cells.items():
            cell.borrowed = key.others_rates.get(name, 0.0)
        for name in said.keys() | key.known.keys():
            self._merge_table(key, name, said.get(name, {}), without)

    def _merge_table(
        self,
        key: _Key,
        name: TableName,
        said: Mapping[str, TableState],
        without: Mapping[str, Collection[int]],
    ) -> None:
        known = key.known.get(name, {})
        if {r: t.num_updates for r, t in said.items()} == {
            r: k.num_updates for r, k in known.items()
        }:
            return
        table = key.tables.get(name)
        factor = table.others_scale if table else 1.0
        merged: dict[str, _Known] = {}
        for replica, state in said.items():
            before = known.get(replica)
            if before is not None and before.num_updates == state.num_updates:
                rows = [[value * factor for value in row] for row in before.rows]
            else:
                rows = self._without(self._numbered(state), without.get(replica, ()))
            merged[replica] = _Known(state.num_updates, rows)
        key.known[name] = merged
        if not merged:
            del key.known[name]
        if table is not None:
            table.set_others(self._sum_of_others(key, name))

    def _sum_of_others(self, key: _Key, name: TableName) -> list[Row] | None:
        known = key.known.get(name)
        if not known:
            return None
        all_rows = [each.rows for each in known.values()]
        return [
            [sum(values) for values in zip(*(rows[arm] for rows in all_rows), strict=True)]
            for arm in range(len(self._arms))
        ]

    def _touched(self, name: int | str) -> _Key:
        key = self._keys.pop(name, None) or _Key()
        self._keys[name] = key
        if len(self._keys) > MAX_KEYS:
            del self._keys[next(iter(self._keys))]
        return key

    def _made(self, key: _Key, name: TableName, levels: tuple[TableName, ...]) -> Cell:
        tables = tuple(self._table(key, level) for level in levels)
        baseline = key.baselines.setdefault(name, Baseline())
        return Cell(name, tables, baseline, key.others_rates.get(name, 0.0))

    def _table(self, key: _Key, name: TableName) -> Table:
        table = key.tables.get(name)
        if table is None:
            table = key.tables[name] = Table(len(self._arms), self._width)
            table.set_others(self._sum_of_others(key, name))
        return table

    def _drop_oldest(self, key: _Key) -> None:
        """Drop the oldest context; the tables and rates that no context needs go with it."""
        name = next(iter(key.cells))
        del key.cells[name]
        needed = {id(table) for cell in key.cells.values() for table in cell.tables}
        key.tables = {at: table for at, table in key.tables.items() if id(table) in needed}
        key.baselines = {at: each for at, each in key.baselines.items() if at in key.cells}

    def _named(self, rows: Sequence[Row]) -> dict[str, Row]:
        return {name: row for name, row in zip(self._arms, rows, strict=True) if any(row)}

    def _numbered(self, table: TableState) -> list[Row]:
        """A table's rows by number; those of arms that are none of ours are left out."""
        blank = [0.0] * self._width
        rows = (table.rows.get(name, blank) for name in self._arms)
        return [list(row) if len(row) == self._width else list(blank) for row in rows]

    def _without(self, rows: Sequence[Row], arms: Collection[int]) -> list[Row]:
        return [[0.0] * self._width if arm in arms else row for arm, row in enumerate(rows)]

    def names(self) -> Iterator[int | str]:
        """Its keys."""
        return iter(self._keys)
