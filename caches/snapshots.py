"""Snapshots of a draft memory in files: what an engine remembers survives its restart."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from paceline.caches._native import DraftIndex
from paceline.errors import SnapshotError


def save_snapshot(index: DraftIndex, file: Path) -> int:
    """Write what `index` remembers to `file`, which is replaced whole or not at all.

    Returns the number of bytes written. O(size); the index drafts on meanwhile.

    Raises:
        SnapshotError: the file cannot be written; what was there is still there.
    """
    data = index.snapshot()
    try:
        _replace(file, data)
    except OSError as error:
        raise SnapshotError(f"the snapshot {file} cannot be written: {error}") from error
    return len(data)


def load_snapshot(index: DraftIndex, file: Path) -> None:
    """Replace what `index` remembers by what `file` holds. O(size).

    Raises:
        SnapshotError: the file cannot be read, is damaged or from a newer version, or requests are
            open. The index is as before.
    """
    try:
        index.restore(file.read_bytes())
    except (OSError, ValueError) as error:
        raise SnapshotError(f"the snapshot {file} cannot be loaded: {error}") from error


def _replace(file: Path, data: bytes) -> None:
    """Write beside the file, make it durable, then rename: a crash leaves one or the other."""
    descriptor, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as beside:
            beside.write(data)
            beside.flush()
            os.fsync(beside.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
