"""The ``jazz-llm`` command (extra ``cli``)."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command; without the extra, say how to get it."""
    try:
        import click  # noqa: F401  # only to see whether it is there
    except ImportError:
        sys.exit('jazz-llm: the command line needs click: pip install "jazz_llm[cli]"')
    from .app import run

    sys.exit(run())
