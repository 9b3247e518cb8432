"""Large files in parts, so that who writes or reads one can stand still in between."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

PART_BYTES: Final = 1 << 22


class PausedFile(io.FileIO):
    """A file of which at most `PART_BYTES` are written or read between two calls of `rest`.

    What was written is on the disk before the next part is, so that no long wait for it comes at
    the end.

    Args:
        file: its name, or a descriptor that is closed with it.
        mode: as of `io.FileIO`.
        rest: called after each part; must not raise, as libraries that read with this take that for
            damage.
    """

    def __init__(
        self, file: Path | int, mode: Literal["rb", "wb"], rest: Callable[[], None]
    ) -> None:
        super().__init__(file, mode)
        self._rest = rest
        self._left = PART_BYTES
        """Bytes of the part that have not been written or read."""

    def write(self, data: ReadableBuffer) -> int:
        """All of `data`; returns its bytes.

        Raises:
            OSError: it cannot be written.
        """
        view, done = _bytes_of(data), 0
        while part := view[done : done + self._left]:
            num = super().write(part)
            done += num
            if self._counted(num):
                os.fsync(self.fileno())
                self._rest()
        return done

    def readinto(self, buffer: WriteableBuffer) -> int:
        """As many bytes as there is room for, fewer at the end only.

        Raises:
            OSError: it cannot be read.
        """
        view, done = _bytes_of(buffer), 0
        while part := view[done : done + self._left]:
            num = super().readinto(part)
            if not num:
                break
            done += num
            if self._counted(num):
                self._rest()
        return done

    def read(self, size: int | None = -1) -> bytes:
        """So many bytes, fewer at the end only; all that are left if `size` is negative or None."""
        if size is None or size < 0:
            size = max(0, os.fstat(self.fileno()).st_size - self.tell())
        data = bytearray(size)
        return bytes(memoryview(data)[: self.readinto(data)])

    def _counted(self, num: int) -> bool:
        """Whether so many more bytes end a part."""
        self._left -= num
        ends = self._left <= 0
        if ends:
            self._left = PART_BYTES
        return ends


def _bytes_of(data: ReadableBuffer) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(bytearray())
