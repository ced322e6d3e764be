"""Markdown as it comes, on a terminal: what a person sees in the end is the whole, once, and no control character is obeyed."""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Iterable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

markdown = pytest.importorskip("jazz_llm.cli.markdown", reason='rich is not installed: pip install ".[cli]"')
pyte = pytest.importorskip("pyte", reason='pyte is not installed: pip install ".[test]"')

TEXT = """\
# Jazz

Some **bold** words, `code`, and a [link](https://example.com/x).

1. one
2. two
   - deeper

```python
def swing():

    return 3
```

| a | b |
|---|---|
| 1 | 2 |

> quoted

---
The end.
"""
# What rich itself sends: styles, the cursor, erasing; and lines.
OWN = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]")


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(pieces: Iterable[str], *, rows: int = 24, eager: bool = True, ended: bool = True) -> str:
    """Return all that goes to the terminal; ``eager``: drawn after each piece, however long the last drawing took."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": str(rows)}.items():
            patch.setenv(name, value)
        patch.delenv("NO_COLOR", raising=False)
        stdout = Tty()
        patch.setattr(sys, "stdout", stdout)
        with markdown.MarkdownView() as view:
            for piece in pieces:
                view._next = 0.0 if eager else view._next
                view.write(piece)
            so_far = stdout.getvalue()
        return stdout.getvalue() if ended else so_far


def seen(pieces: Iterable[str], rows: int = 24) -> list[str]:
    """Return the lines that a person sees in the end, also those that have scrolled away."""
    screen = pyte.HistoryScreen(80, rows, history=10_000)
    screen.set_mode(pyte.modes.LNM)  # what the terminal's driver makes of a line feed
    pyte.Stream(screen).feed(shown(pieces, rows=rows))
    assert not screen.cursor.hidden
    lines = ["".join(line[x].data for x in range(80)).rstrip() for line in screen.history.top]
    return "\n".join([*lines, *(line.rstrip() for line in screen.display)]).rstrip().split("\n")


def test_a_text_that_comes_in_pieces_looks_like_the_whole() -> None:
    whole = [line for line in seen([TEXT]) if line]  # blank lines around a table differ
    assert [line for line in seen(list(TEXT)) if line] == whole
    assert "Jazz" in "\n".join(whole[:3])
    assert [line.strip() for line in whole if "Some" in line or "one" in line] == ["Some bold words, code, and a link (https://example.com/x).", "1 one"]
    assert "    return 3" in "\n".join(whole)
    assert "def swing" in "\n".join(whole)
    assert "**" not in "\n".join(whole)


def test_a_block_that_is_longer_than_the_screen_is_whole_in_the_end() -> None:
    code = "```\n" + "".join(f"line {i}\n" for i in range(60)) + "```\n\nafter\n"
    lines = [line.strip() for line in seen(re.findall(r".{1,7}|\n", code), rows=10)]
    assert [line for line in lines if line] == [*(f"line {i}" for i in range(60)), "after"]


def test_the_end_of_a_long_block_is_seen_while_it_grows() -> None:
    code = "```\n" + "".join(f"line {i}\n" for i in range(60))
    screen = pyte.Screen(80, 10)
    screen.set_mode(pyte.modes.LNM)
    pyte.Stream(screen).feed(shown(re.findall(r".+\n", code), rows=10, ended=False))
    assert [f"line {i}" for i in range(53, 60)] == [line.strip() for line in screen.display if "line" in line][-7:]


def test_text_is_all_that_was_written() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Tty())
        with markdown.MarkdownView() as view:
            view.write("a\x1b")
            view.write("*b*")
        assert view.text == "a\x1b*b*"


def test_a_link_shows_where_it_leads() -> None:
    output = shown(["[my bank](https://evil.example)"])
    assert "https://evil.example" in output
    assert "\x1b]8" not in output


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet=st.sampled_from("ab `*_#>-|[]()<>/&;!\\\n\t0123456789%x1b\x1b\x07\u009b\x00\r\u2028kd"), max_size=40), max_size=8))
@example(["<http://x/%1B]0;evil%07>"])
@example(["&#27;]0;evil&#7; &#x9b;31m"])
@example(["[a](<http://x/\x1b]0;evil>)"])
@example(["a </kbd> b\n\n</kbd>"])
@example(["```\x1b]0;evil\x07\n\x1b[2J\n```\n"])
@example(["![\x1b[2J](%1b%5b2J)"])
@example(["\ud800 half a character"])
def test_no_control_character_reaches_the_terminal(pieces: list[str]) -> None:
    output = OWN.sub("", shown(pieces))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", output.replace("\t", ""))


def test_what_rich_stumbles_over_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> None:
        raise IndexError

    monkeypatch.setattr(markdown.Markdown, "__rich_console__", stumble)
    assert seen(["**what** it is"]) == ["**what** it is"]


def test_a_block_without_end_does_not_slow_down_what_comes() -> None:
    began = time.process_time()
    shown(("- another item of a list\n" for _ in range(3000)), eager=False)
    assert time.process_time() - began < 20
