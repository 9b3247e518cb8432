"""Training in two processes over gloo: the same weights as in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from paceline.errors import ConfigError

WORKER: Final = """
import sys
from itertools import count
from pathlib import Path

import numpy as np
import torch

from paceline.online.lessons import Lesson
from paceline.online.ranks import Ranks
from paceline.online.student import Student
from paceline.online.training import Trainer, TrainingLimits

sys.path.insert(0, sys.argv[2])
from small_models import random_model

torch.set_num_threads(1)
ranks = Ranks.from_env()
generator = np.random.default_rng(0)
lessons = []
for i in range(7):
    reply = int(generator.integers(2, 9))
    ids = generator.integers(0, 90, 3 + reply).astype(np.int32)
    top = np.stack([generator.permutation(90)[:4] for _ in range(reply)]).astype(np.int32)
    logprobs = np.log(np.tile([0.5, 0.2, 0.1, 0.1], (reply, 1))).astype(np.float16)
    weights = generator.random(reply).astype(np.float16)
    lessons.append(Lesson(ids, 3, top, logprobs, weights))
# what the first one has is what all of them take
lessons = ranks.from_first(lessons if ranks.is_first else [])
torch.manual_seed(0)
student = Student(random_model("llama", num_hidden_layers=2))
limits = TrainingLimits(steps=5, seconds=None, batch=3, learning_rate=1e-2, seed=1)
ticks = count()
trainer = Trainer(student, lessons, limits, clock=lambda: float(next(ticks)), ranks=ranks)
for _ in trainer.run():
    pass
torch.save([p.detach() for p in student.trained], Path(sys.argv[1]) / f"{ranks.size}-{ranks.rank}")
ranks.close()
"""


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    """Weights after five steps are equal in both, and those of one process alone."""
    import torch

    script = tmp_path / "worker.py"
    script.write_text(WORKER, encoding="utf-8")
    support = str(Path(__file__).parents[1] / "support")
    run = [str(script), str(tmp_path), support]
    subprocess.run([sys.executable, *run], check=True, timeout=120)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*torchrun, *run], check=True, timeout=240)
    alone, first, second = (torch.load(tmp_path / name) for name in ("1-0", "2-0", "2-1"))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, first, strict=True))


def test_half_an_environment_is_refused() -> None:
    """Naming what is there and what is not."""
    from paceline.online.ranks import Ranks

    with pytest.raises(ConfigError, match="WORLD_SIZE are set, but not MASTER_ADDR"):
        Ranks.from_env({"RANK": "0", "WORLD_SIZE": "2"})
    assert Ranks.from_env({}).size == 1
