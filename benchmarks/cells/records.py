"""What the processes of `paceline bench cells` tell each other."""

from __future__ import annotations

from typing import Final

import msgspec

OFF: Final = "off"
BANDIT: Final = "-bandit"
FIXED: Final = "fixed-"
"""Ways that draft up to a number of tokens whatever it costs begin so: ``fixed-4``."""
MAX_FIXED: Final = 128


class Cell(msgspec.Struct, frozen=True):
    """One workload under one load.

    Attributes:
        source: name of the trace file.
        in_flight: requests that are answered at a time.
        num_prompts: asked in all.
        num_warm: of these, answered before anything is counted.
        then: the file whose prompts are asked behind a turn, as the same tenant's; "" without one.
        num_then: of all prompts, the last ones, that are of it.
        order: seed of the order of each file's prompts; None: as they are read.
    """

    source: str
    in_flight: int
    num_prompts: int
    num_warm: int
    then: str = ""
    num_then: int = 0
    order: int | None = None

    @property
    def name(self) -> str:
        """As in figures."""
        return f"{self.source}{f'-{self.then}' if self.then else ''}.c{self.in_flight}"

    @property
    def parts(self) -> dict[str, int]:
        """How many prompts are asked of each file, in this order."""
        before = {self.source: self.num_prompts - self.num_then}
        return before | ({self.then: self.num_then} if self.then else {})


class CellsSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One engine.

    Attributes:
        traces: folder of recorded traces.
        target: Hugging Face folder.
        way: how it speculates: ``off``, ``memory``, ``drafter`` (vLLM's own, alone), ``fused``, or
            ``fixed-K``; memory and fused choose by time, with ``-bandit`` behind a bandit above
            that.
        drafter: Hugging Face folder, for those ways that have one.
        core: that it runs on.
        cells: in order.
        output_tokens: of a reply at most, on average.
        context_tokens: longest prompt.
        draft_tokens: most tokens drafted a request and step where no number is fixed.
        drafter_tokens: most of the model.
    """

    traces: str
    target: str
    way: str
    core: int
    cells: tuple[Cell, ...]
    drafter: str = ""
    output_tokens: int = 48
    context_tokens: int = 192
    draft_tokens: int = 16
    drafter_tokens: int = 3

    def place(self, cell: Cell, source: str) -> tuple[int, int]:
        """The first of a source's prompts that a cell asks, and how many all cells do."""
        asked = [each.parts.get(source, 0) for each in self.cells]
        return sum(asked[: self.cells.index(cell)]), sum(asked)

    @property
    def method(self) -> str:
        """The way without what chooses."""
        return self.way.removesuffix(BANDIT)

    @property
    def num_draft_tokens(self) -> int:
        """Most tokens drafted a request and step."""
        if self.way.startswith(FIXED):
            return int(self.way.removeprefix(FIXED))
        return self.draft_tokens


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """Where an engine stood at one moment.

    Attributes:
        num_tokens: said so far, by all requests.
        seconds: by the clock, from a moment of the process's own.
        cpu_seconds: that the process has had of the processor.
        draft_tokens: verified so far.
        accepted_tokens: of them, that were right.
    """

    num_tokens: int
    seconds: float
    cpu_seconds: float
    draft_tokens: int
    accepted_tokens: int


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine did in one cell, after its warm-up and while enough requests were there.

    Attributes:
        num_tokens: said.
        seconds: that it took, by the clock.
        cpu_seconds: by the processor.
        draft_tokens: verified.
        accepted_tokens: of them, that were right.
        digest: of all replies of the cell, in order.
        marks: of a cell with a turn: at the end of the warm-up, then behind each request that
            finished while enough were there, in order; those that finished together stand alike.
        turn: which mark was the last when the first prompt behind the turn was taken up.
    """

    num_tokens: int
    seconds: float
    cpu_seconds: float
    draft_tokens: int
    accepted_tokens: int
    digest: str
    marks: tuple[Mark, ...] = ()
    turn: int = 0

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.num_tokens / self.seconds
