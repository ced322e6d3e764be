"""How an answer is shown: as Markdown where stdout can draw, as it comes where it is a file or another program."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from .output import draws, write

if TYPE_CHECKING:
    from .markdown import MarkdownView


class PlainView:
    """Write text as it comes, ``with view: view.write(...)``; ``text`` is all of it."""

    def __init__(self) -> None:
        self.text = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.text and not self.text.endswith("\n"):
            write("\n")

    def write(self, text: str) -> None:
        """Write the next piece."""
        self.text += text
        write(text)


def make_view(*, markdown: bool = True) -> PlainView | MarkdownView:
    """Return what fits stdout; ``markdown=False`` for what is none."""
    if not markdown or not draws():
        return PlainView()
    from .markdown import MarkdownView

    return MarkdownView()
