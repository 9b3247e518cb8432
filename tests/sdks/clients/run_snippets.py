"""Runs Python snippets one after the other; the last line is a JSON list of what each printed."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path


def main() -> None:
    printed = []
    for number, code in enumerate(json.loads(Path(sys.argv[1]).read_text())):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            exec(compile(code, f"snippet {number}", "exec"), {"__name__": f"snippet_{number}"})  # noqa: S102
        printed.append(said.getvalue())
    print("\n" + json.dumps(printed))


if __name__ == "__main__":
    main()
