"""One engine without a model, in a process of its own, which writes down what it says and gets.

Usage: ``python -m paceline.benchmarks.chaos.engine JOB_FILE``. What it writes is on disk before
anybody else can know it, so that it can be killed at any moment and judged by its files.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np
import numpy.typing as npt

from paceline.adapters.request_info import RequestInfo
from paceline.adapters.sharing import open_shared_journal
from paceline.adapters.speculator import Speculator
from paceline.caches import ModelFingerprint, SequenceRecord
from paceline.caches.journal_keeper import StoreLimits
from paceline.caches.tier_settings import MemorySettings

SAID, GOT, FLUSHED, STEPS, ENDED = "said", "got", "flushed", "steps", "ended"
"""Files: request ids as they finish; those of others as they come; how many of its own the store
had surely taken; of each step three float64, its Unix time, its seconds, and for how many of them
it waited for a processor; there if it ended in order.
"""
NUM_PHRASES: Final = 400
PHRASE_TOKENS: Final = 20
NUM_OPEN: Final = 4
PROMPT_TOKENS: Final = 100
ACCEPTED_A_STEP: Final = 5
WARM_UP_SECONDS: Final = 30.0


class EngineJob(msgspec.Struct, frozen=True, kw_only=True):
    """What one engine does.

    Attributes:
        url: of the store.
        model: name of the model, to keep journals apart.
        origin: its id.
        folder: where it writes.
        seed: of what it says.
        step_seconds: time between two steps.
        reply_tokens: of each request.
    """

    url: str
    model: str
    origin: str
    folder: str
    seed: int
    step_seconds: float = 0.02
    reply_tokens: int = 200


class Talker:
    """Text that repeats itself, as agents' does: phrases of a bank, in random order.

    Args:
        rng: what says which.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        # one bank for all engines: they can draft from each other
        bank = np.random.default_rng(0)
        self._phrases = bank.integers(0, 30_000, (NUM_PHRASES, PHRASE_TOKENS), dtype=np.int32)

    def text(self, num_tokens: int) -> npt.NDArray[np.int32]:
        """int32 (num_tokens,)."""
        chosen = self._rng.integers(0, NUM_PHRASES, -(-num_tokens // PHRASE_TOKENS))
        return self._phrases[chosen].ravel()[:num_tokens]


class ProcessorWait:
    """How long this thread has been ready to run without a processor; 0 where Linux is not."""

    def __init__(self) -> None:
        try:
            self._file: int | None = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        except OSError:
            self._file = None

    def seconds(self) -> float:
        """Since the thread began."""
        if self._file is None:
            return 0.0
        return int(os.pread(self._file, 128, 0).split()[1]) / 1e9


class ChaosEngine:
    """Steps through requests until it is told to end.

    Args:
        job: what to do.
    """

    def __init__(self, job: EngineJob) -> None:
        self._job = job
        self._folder = Path(job.folder)
        self._talker = Talker(np.random.default_rng(job.seed))
        self._ending = threading.Event()
        self._is_talking = True
        self._num_requests = 0
        self._open: dict[str, tuple[npt.NDArray[np.int32], int]] = {}
        self._got = self._file(GOT)
        self._said = self._file(SAID)
        self._flushed = self._file(FLUSHED)
        self._steps = (self._folder / STEPS).open("ab", buffering=0)
        self._processor = ProcessorWait()
        self._speculator = Speculator(memory=MemorySettings.of_capacity(262_144), origin=job.origin)
        self._journal = open_shared_journal(
            self._speculator,
            job.url,
            ModelFingerprint(model=job.model, tokenizer="chaos"),
            on_record=self._absorb,
            limits=StoreLimits(segment_tokens=65_536, seal_after_seconds=5.0),
        )

    def run(self) -> None:
        """Serve until SIGUSR1, follow the others until SIGTERM."""
        signal.signal(signal.SIGUSR1, self._fall_silent)
        signal.signal(signal.SIGTERM, lambda *_: self._ending.set())
        self._journal.start()
        self._journal.warmed_up.wait(WARM_UP_SECONDS)
        due = time.monotonic()
        while not self._ending.is_set():
            if self._is_talking:
                self._step()
            else:
                self._note_said(list(self._open))
                for request_id in list(self._open):
                    self._finish(request_id)
            self._mark()
            due = max(due + self._job.step_seconds, time.monotonic() - 1.0)
            self._ending.wait(max(0.0, due - time.monotonic()))
        self._speculator.close()
        self._journal.close(WARM_UP_SECONDS)
        self._mark()
        (self._folder / ENDED).touch()

    def _fall_silent(self, *_: object) -> None:
        self._is_talking = False

    def _step(self) -> None:
        """What an engine's step asks of us, timed."""
        ended = [r for r, (text, at) in self._open.items() if at == len(text)]
        self._note_said(ended)
        num_new = NUM_OPEN - len(self._open) + len(ended)
        texts = [
            (self._talker.text(PROMPT_TOKENS), self._talker.text(self._job.reply_tokens))
            for _ in range(num_new)
        ]
        now, waited, started = time.time(), self._processor.seconds(), time.perf_counter()
        for request_id in ended:
            self._finish(request_id)
        for prompt, reply in texts:
            self._begin(prompt, reply)
        ids = list(self._open)
        self._speculator.propose_batch(ids, max_tokens=16)
        accepted = []
        for request_id in ids:
            text, at = self._open[request_id]
            accepted.append(text[at : at + ACCEPTED_A_STEP])
            self._open[request_id] = text, min(len(text), at + ACCEPTED_A_STEP)
        self._speculator.commit_batch(ids, accepted)
        took = time.perf_counter() - started
        waited = self._processor.seconds() - waited
        self._steps.write(np.array([now, took, waited]).tobytes())

    def _begin(self, prompt: npt.NDArray[np.int32], reply: npt.NDArray[np.int32]) -> None:
        self._num_requests += 1
        request_id = f"{self._job.origin}-{self._num_requests}"
        info = RequestInfo(request_id=request_id, tenant=f"t{self._num_requests % 2}")
        self._speculator.begin(info, prompt)
        self._open[request_id] = reply, 0

    def _note_said(self, request_ids: list[str]) -> None:
        """Before they finish: afterwards others may know them."""
        for request_id in request_ids:
            self._said.write(f"{request_id}\n")

    def _finish(self, request_id: str) -> None:
        del self._open[request_id]
        self._speculator.finish(request_id)

    def _mark(self) -> None:
        """Note that all that was finished so far has been taken, if it has."""
        num_said = self._num_requests - len(self._speculator)
        if self._journal.stats()["queued"] == 0:
            self._flushed.write(f"{num_said}\n")

    def _absorb(self, record: SequenceRecord) -> None:
        self._got.write(f"{record.request_id}\n")
        self._speculator.absorb(record)

    def _file(self, name: str) -> IO[str]:
        return (self._folder / name).open("a", buffering=1)


def main(job_file: Path) -> None:
    """Be the engine that `job_file` says."""
    ChaosEngine(msgspec.json.decode(job_file.read_bytes(), type=EngineJob)).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
