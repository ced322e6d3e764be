"""Writing to stdout what a stranger wrote."""

from __future__ import annotations

import io
import sys

# A terminal obeys control characters, and the text is a stranger's: only tab and line feed get through.
_CONTROLS = dict.fromkeys([*range(9), 11, 12, 13, *range(14, 32), *range(127, 160)])


def write(text: str) -> None:
    """Write text at once, whatever characters it holds."""
    if sys.stdout is None:  # closed by the shell: >&-
        return
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.stdout.write(text.translate(_CONTROLS) if sys.stdout.isatty() else text)
    sys.stdout.flush()
