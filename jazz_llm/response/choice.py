"""One choice of an answer as it grows, and the thoughts that stand in its text."""

from __future__ import annotations

from typing import Any

from ..tools import CallMerger
from ..types import Choice

FINISH_REASONS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "sensitive", "safety", "recitation", "refusal"), "content_filter"),
    **dict.fromkeys(("insufficient_system_resource", "network_error", "error", "abort"), "error"),
    **dict.fromkeys(("", "null"), None),
}
_OPEN, _CLOSE = "<think>", "</think>"


class ChoiceState:
    """One choice as it grows."""

    __slots__ = ("fields", "finish", "index", "logprobs", "merger", "reasoning", "refusal", "seen", "text", "think")

    def __init__(self, index: int) -> None:
        self.index = index
        self.text: list[str] = []
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.merger = CallMerger()
        self.think = ThinkSplitter()
        self.finish: str | None = None
        self.logprobs: Any = None
        self.fields: dict[str, Any] = {}  # what else the deltas held, for ``raw``
        self.seen = False

    def finish_reason(self) -> str | None:
        """Return the normalized reason; calls that finish with "stop" (Ollama, Gemini, a named choice) count as tool_calls."""
        if self.finish is None:
            return None
        reason = FINISH_REASONS.get(self.finish.lower(), self.finish)
        return "tool_calls" if reason == "stop" and self.merger.calls() else reason

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
                self.merger.feed(fragment)
                self.seen = True

    def add_logprobs(self, logprobs: object) -> None:
        """Join the lists of a stream's logprobs."""
        if not isinstance(logprobs, dict):
            return
        known = self.logprobs if isinstance(self.logprobs, dict) else {}
        for name, value in logprobs.items():
            old = known.get(name)
            known[name] = old + value if isinstance(old, list) and isinstance(value, list) else value
        self.logprobs = known

    def keep(self, delta: dict[str, Any]) -> None:
        """Keep the delta's other fields: text is joined, the last of anything else stays."""
        for name, value in delta.items():
            if name in ("content", "tool_calls", "role", "function_call") or value is None:
                continue
            old = self.fields.get(name)
            joins = isinstance(value, str | list) and type(old) is type(value)
            self.fields[name] = old + value if joins else value

    def whole_thoughts(self) -> None:
        """Move what stands before a lone ``</think>`` to the reasoning: the template itself opened the tag."""
        text = "".join(self.text)
        if self.think.lone_at is not None:
            self.reasoning.append(text[: self.think.lone_at].strip())
            self.text = [text[self.think.lone_at :].lstrip()]

    def choice(self) -> Choice:
        """Return the public form."""
        return Choice(
            self.index, "".join(self.text), self.finish_reason(), self.merger.calls(), "".join(self.reasoning) or None
        )

    def merged(self) -> dict[str, Any]:
        """Return the choice as a whole answer would hold it."""
        text = "".join(self.text)
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.raw_arguments}, **c.extra}
            for c in self.merger.calls()
        ]
        message = {"role": "assistant", "content": text if text or not calls else None, **self.fields}
        if calls:
            message["tool_calls"] = calls
        return {"index": self.index, "message": message, "finish_reason": self.finish, "logprobs": self.logprobs}


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
        if self._state == "rest" or not text:
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
