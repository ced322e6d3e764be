"""The ``jazz-llm`` command (extra ``cli``)."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command; without the extra, say how to get it."""
    missing = [name for name in ("click", "prompt_toolkit", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(f'jazz-llm: the command line needs {missing[0]}: pip install "jazz_llm[cli]"')
    from .app import run

    sys.exit(run())
