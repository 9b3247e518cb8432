"""The log as JSON, an object a line, without anything that clients said or that opens a door."""

from __future__ import annotations

import logging
import logging.handlers
import queue
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TextIO

import msgspec

OWN: Final = frozenset({*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"})
"""Attributes that every record has."""
MAX_WAITING: Final = 10_000
"""Lines that wait for a reader that is slow; further ones are dropped."""
FRAMES: Final = 20


class JsonFormatter(logging.Formatter):
    """A record as one JSON object: time, level, logger, message, and what it was given beside.

    Of an exception its type and where it was raised: its message may quote what a client sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            name: value
            for name, value in vars(record).items()
            if name not in OWN and value is not None
        }
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            frames = traceback.extract_tb(error.__traceback__)[-FRAMES:]
            line["error"] = type(error).__name__
            line["raised_at"] = [f"{f.filename}:{f.lineno} {f.name}" for f in frames]
        return msgspec.json.encode(line, enc_hook=str).decode()


class _Queued(logging.handlers.QueueHandler):
    """Leaves a record to another thread; the event loop never waits for who reads the log."""

    def __init__(self, waiting: queue.SimpleQueue[logging.LogRecord]) -> None:
        super().__init__(waiting)
        self._waiting = waiting

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: it stays in this process."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Drop it where too many wait."""
        if self._waiting.qsize() < MAX_WAITING:
            self._waiting.put_nowait(record)


@contextmanager
def json_logging(stream: TextIO | None = None) -> Iterator[None]:
    """Write the log of the whole process as JSON while the body runs, requests included.

    Args:
        stream: standard error if None.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter())
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = logging.handlers.QueueListener(waiting, handler)
    root, requests = logging.getLogger(), logging.getLogger("paceline.requests")
    before = root.level, requests.level
    queued = _Queued(waiting)
    root.addHandler(queued)
    root.setLevel(logging.WARNING)
    requests.setLevel(logging.INFO)
    listener.start()
    try:
        yield
    finally:
        root.removeHandler(queued)
        root.setLevel(before[0])
        requests.setLevel(before[1])
        listener.stop()
