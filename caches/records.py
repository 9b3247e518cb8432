"""Records that cross processes: frozen, versioned, checked on read."""

from __future__ import annotations

from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt

SCHEMA_VERSION: Final = 1
"""Version of the records this build writes. It reads this version and older ones; newer ones are skipped and counted."""


class SequenceRecord(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What one finished request adds to its sharing scope.

    Attributes:
        request_id: id of the request, unique across engines; duplicates of it are ignored by readers.
        scope: sharing scope that may read the tokens (see `RequestInfo.scope`).
        tenant: tenant that said them.
        workload: name of the workload, "" if unknown.
        session: id of the session, "" if unknown.
        origin: id of the engine process that wrote the record.
        token_ids: int32, (num_prompt + num_output,). New prompt tokens, then the output.
        num_prompt: how many of `token_ids` were read rather than said.
        finished_at: Unix time in seconds at which the request finished.
    """

    request_id: str
    scope: str
    tenant: str
    workload: str
    session: str
    origin: str
    token_ids: npt.NDArray[np.int32]
    num_prompt: int
    finished_at: float


class ModelFingerprint(msgspec.Struct, frozen=True):
    """Whose tokens a journal holds: never mix two models, tokenizers or adapters.

    Attributes:
        model: name or path of the target as served, with a LoRA adapter's name where one applies.
        tokenizer: hex digest over the tokenizer's vocabulary.
    """

    model: str
    tokenizer: str
