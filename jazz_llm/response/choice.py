"""One choice of an answer as it grows, and the thoughts that stand in its text."""

from __future__ import annotations

from typing import Any

from ..tools import CallMerger
from ..types import Choice, ToolCall

FINISH_REASONS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "sensitive", "safety", "recitation", "refusal"), "content_filter"),
    **dict.fromkeys(("insufficient_system_resource", "network_error", "error", "abort"), "error"),
    **dict.fromkeys(("", "null"), None),
}
_NOT_KEPT = frozenset({"content", "tool_calls", "role", "function_call"})
_OPEN, _CLOSE = "<think>", "</think>"


class ChoiceState:
    """One choice as it grows."""

    __slots__ = ("_kept", "_merger", "finish", "index", "logprobs", "reasoning", "refusal", "seen", "text", "think")

    def __init__(self, index: int) -> None:
        self.index = index
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.think = ThinkSplitter()
        self.finish: str | None = None
        self.logprobs: Any = None
        self.seen = False
        self._merger: CallMerger | None = None  # of the first tool call on
        self._kept: dict[str, list[Any]] = {}  # what else the deltas held, for ``raw``: by name, pieces of one kind

    def finish_reason(self) -> str | None:
        """Return the normalized reason; calls that finish with "stop" (Ollama, Gemini, a named choice) count as tool_calls."""
        if self.finish is None:
            return None
        reason = FINISH_REASONS.get(self.finish.lower(), self.finish)
        return "tool_calls" if reason == "stop" and self._merger is not None else reason

    def calls(self) -> list[ToolCall]:
        """Return the tool calls so far."""
        return [] if self._merger is None else self._merger.calls()

    def add_reasoning(self, text: str) -> None:
        """Take reasoning that came in a field of its own."""
        if text:
            self.reasoning.append(text)
            self.seen = True

    def add_refusal(self, text: object) -> None:
        """Take a piece of a refusal."""
        if isinstance(text, str) and text:
            self.refusal.append(text)
            self.seen = True

    def add_calls(self, delta: dict[str, Any]) -> None:
        """Take the fragments of tool calls; ``function_call`` is the name they had first."""
        fragments = delta.get("tool_calls")
        legacy = delta.get("function_call")
        for fragment in fragments if isinstance(fragments, list) else [{"function": legacy}] if legacy else []:
            if isinstance(fragment, dict):
                if self._merger is None:
                    self._merger = CallMerger()
                self._merger.feed(fragment)
                self.seen = True

    def add_logprobs(self, logprobs: object) -> None:
        """Join the lists of a stream's logprobs."""
        if not isinstance(logprobs, dict):
            return
        known = self.logprobs if isinstance(self.logprobs, dict) else {}
        for name, value in logprobs.items():
            if not isinstance(value, list):
                known[name] = value
            elif isinstance(known.get(name), list):
                known[name] += value  # in place: a new list per chunk would make a long stream's time quadratic
            else:
                known[name] = value.copy()  # the chunk's own list belongs to ``raw``
        self.logprobs = known

    def keep(self, delta: dict[str, Any]) -> None:
        """Keep the delta's other fields: text is joined, and lists are; the last of anything else stays."""
        for name, value in delta.items():
            if value is None or name in _NOT_KEPT:
                continue
            pieces = self._kept.get(name)
            if pieces is not None and isinstance(value, str | list) and type(pieces[0]) is type(value):
                pieces.append(value)
            else:
                self._kept[name] = [value]

    def fields(self) -> dict[str, Any]:
        """Return the deltas' other fields, joined."""
        return {name: _joined(pieces) for name, pieces in self._kept.items()}

    def whole_thoughts(self) -> None:
        """Move what stands before a lone ``</think>`` to the reasoning: the template itself opened the tag."""
        if self.think.lone_at is not None:
            text = "".join(self.text)
            self.reasoning.append(text[: self.think.lone_at].strip())
            self.text = [text[self.think.lone_at :].lstrip()]

    def choice(self) -> Choice:
        """Return the public form."""
        return Choice(self.index, "".join(self.text), self.finish_reason(), self.calls(), "".join(self.reasoning) or None)

    def merged(self) -> dict[str, Any]:
        """Return the choice as a whole answer would hold it."""
        text = "".join(self.text)
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.raw_arguments}, **c.extra}
            for c in self.calls()
        ]
        message = {"role": "assistant", "content": text if text or not calls else None, **self.fields()}
        if calls:
            message["tool_calls"] = calls
        return {"index": self.index, "message": message, "finish_reason": self.finish, "logprobs": self.logprobs}


def _joined(pieces: list[Any]) -> Any:
    """Return pieces of one kind as one; more than one are text, or lists."""
    if len(pieces) == 1:
        return pieces[0]
    return "".join(pieces) if isinstance(pieces[0], str) else [item for piece in pieces for item in piece]


class ThinkSplitter:
    """Part a leading ``<think>...</think>`` from the text, also where a read cuts the tags.

    A lone ``</think>`` (the template had opened it in the prompt) is taken out; ``lone_at`` says where in the text it stood.
    """

    __slots__ = ("_given", "_held", "_last", "_state", "lone_at", "settled")

    def __init__(self) -> None:
        self._held = ""
        self._state = "start"
        self._given = 0
        self._last = ""  # the last character given
        self.settled = False  # no tag is under way: text without "<" needs no look
        self.lone_at: int | None = None

    def feed(self, text: str) -> list[tuple[str, str]]:
        """Return ("text" or "reasoning", piece) pairs."""
        if self._state == "rest" or not text or self._is_plain(text):
            return [("text", text)]
        self._held += text
        pieces: list[tuple[str, str]] = []
        step = getattr(self, f"_{self._state}")
        while step is not None:
            step = step(pieces)
        given = "".join(piece for kind, piece in pieces if kind == "text")
        self._given += len(given)
        self._last = given[-1:] or self._last
        self.settled = self._state == "rest" or (self._state == "text" and not self._held)
        return pieces

    def _is_plain(self, text: str) -> bool:
        """Take text that no tag begins in or ends in: 0.2 us, where the steps below take 2.6."""
        if "<" in text or self._held or not (self._state == "text" or (self._state == "start" and not text.isspace())):
            return False
        self._state = "text"
        self._given += len(text)
        self._last = text[-1]
        self.settled = True
        return True

    def end(self) -> list[tuple[str, str]]:
        """Return what was held back for a tag that never came."""
        held, self._held = self._held, ""
        kind = "reasoning" if self._state == "thinking" else "text"
        return [(kind, held)] if held else []

    def _start(self, pieces: list[tuple[str, str]]) -> Any:  # noqa: ARG002  # one signature for every state
        head = self._held.lstrip()
        if head.startswith(_OPEN):
            self._held = head.removeprefix(_OPEN)
            self._state = "opened"
            return self._opened
        if _OPEN.startswith(head):
            return None
        self._state = "text"
        return self._text

    def _opened(self, pieces: list[tuple[str, str]]) -> Any:  # noqa: ARG002  # one signature for every state
        """Drop the blank lines between the tag and the thoughts."""
        self._held = self._held.lstrip("\n")
        if not self._held:
            return None
        self._state = "thinking"
        return self._thinking

    def _thinking(self, pieces: list[tuple[str, str]]) -> Any:
        thought, tag, rest = self._held.partition(_CLOSE)
        if tag:
            pieces.append(("reasoning", thought.rstrip("\n")))
            self._held, self._state = rest, "after"
            return self._after
        sure = thought[: len(thought) - _overlap(thought, _CLOSE)].rstrip("\n")
        self._give(pieces, "reasoning", len(thought) - len(sure))
        return None

    def _after(self, pieces: list[tuple[str, str]]) -> Any:
        """Drop the blank lines between the thoughts and the answer."""
        rest = self._held.lstrip("\n")
        self._held = ""
        if rest:
            pieces.append(("text", rest))
            self._state = "rest"

    def _text(self, pieces: list[tuple[str, str]]) -> Any:
        before, tag, rest = self._held.partition(_CLOSE)
        quoted = (before or self._last).endswith(("`", '"', "'"))  # then it is what the answer talks about
        if tag and not quoted:
            pieces.append(("text", before))
            self.lone_at = self._given + len(before)
            self._held, self._state = rest, "after"
            return self._after
        self._give(pieces, "text", 0 if tag else _overlap(self._held, _CLOSE))
        return None

    def _give(self, pieces: list[tuple[str, str]], kind: str, keep: int) -> None:
        cut = len(self._held) - keep
        pieces.append((kind, self._held[:cut]))
        self._held = self._held[cut:]


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
