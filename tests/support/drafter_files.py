"""Folders that look like drafters' where nobody loads them, and what a gate says."""

from __future__ import annotations

from pathlib import Path

from paceline.caches.drafter_registry import GateResult, SliceResult


def drafter_folder(folder: Path, weights: bytes = b"weights") -> Path:
    """A Hugging Face folder by its names alone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def gate_result(*, passed: bool = True, gain: float = 0.5) -> GateResult:
    """Of twenty sessions of two workloads."""
    return GateResult(
        passed=passed,
        num_sessions=20,
        num_rounds=400,
        before=1.0,
        after=1.0 + gain,
        lower_bound=gain / 2 if passed else -0.1,
        agreement_before=0.5,
        agreement_after=0.6,
        slices=(
            SliceResult(workload="edit", num_sessions=12, before=1.5, after=2.25),
            SliceResult(workload="", num_sessions=8, before=0.5, after=0.5),
        ),
        reasons=() if passed else ("no better than the one that runs",),
    )
