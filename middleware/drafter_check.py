"""Whether a drafter may be published by hand: of the right tokenizer, whole, and able to draft."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec

from paceline.caches.drafter_registry import folder_checksum
from paceline.caches.drafter_versions import require_drafter
from paceline.caches.records import ModelFingerprint
from paceline.caches.tokenizer import TOKENIZER_FILE, TextTokenizer
from paceline.errors import ConfigError
from paceline.online.settings import CheckSettings

WORKER: Final = "paceline.online"
HINT: Final = "--no-check publishes it without a look"


def check_folder(folder: Path, fingerprint: ModelFingerprint) -> None:
    """Refuse a drafter that engines would take back, before anybody loads it.

    What a learner's candidates are held to (`paceline.online.load_check`), in a process of its own
    that has torch; and the tokenizer beside it, if there is one, has to be the model's.

    Args:
        folder: of the drafter.
        fingerprint: of the model that it is to draft for.

    Raises:
        ConfigError: it is refused, or cannot be looked at; the message has the reason.
    """
    require_drafter(folder)
    _check_tokenizer(folder, fingerprint)
    told = CheckSettings(folder=str(folder), checksum=folder_checksum(folder))
    done = subprocess.run(
        [sys.executable, "-m", WORKER, "check", msgspec.json.encode(told).decode()],
        env={"OMP_WAIT_POLICY": "passive", **os.environ},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
        refused = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
        raise ConfigError(f"{(refused or lines)[-1]}; it is not published ({HINT})")


def _check_tokenizer(folder: Path, fingerprint: ModelFingerprint) -> None:
    if not (folder / TOKENIZER_FILE).is_file():
        return
    digest = TextTokenizer(str(folder)).digest
    if digest != fingerprint.tokenizer:
        raise ConfigError(
            f"{folder} has a tokenizer of digest {digest}, {fingerprint.model} one of "
            f"{fingerprint.tokenizer}: its tokens mean something else; publish a drafter that was "
            f"made from {fingerprint.model} ({HINT})"
        )
