"""One choice of an answer as it grows, and the thoughts that stand in its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..tools import CallMerger
from ..types import Choice, ToolCall

FINISH_REASONS = {
    **dict.fromkeys(("stop", "eos", "eos_token", "stop_sequence", "end_turn", "complete"), "stop"),
    **dict.fromkeys(("length", "max_tokens", "model_length", "model_context_window_exceeded"), "length"),
    **dict.fromkeys(("tool_calls", "tool_call", "tool_use", "function_call"), "tool_calls"),
    **dict.fromkeys(("content_filter", "sensitive", "safety", "recitation", "refusal", "prohibited_content"), "content_filter"),
    # Gemini's function_call_filter: a call that it could not read itself, with nothing left of it.
    **dict.fromkeys(("insufficient_system_resource", "network_error", "error", "abort", "function_call_filter"), "error"),
    **dict.fromkeys(("", "null"), None),
}
_NOT_KEPT = frozenset({"content", "tool_calls", "role", "function_call"})  # of a delta
_OWN = frozenset({"index", "delta", "message", "text", "finish_reason", "logprobs", "usage"})  # of a choice
_CLOSE = "</think>"
_OPENS = ("<think>",)
# Tags that open the thoughts at the beginning of the content. <reasoning> is a name that prompts ask for as well, so it counts
# only where a server writes it: Bedrock's /openai/v1 for gpt-oss, in streams around each piece.
OPENS: Mapping[str | None, tuple[str, ...]] = {"bedrock": ("<think>", "<reasoning>")}


class ChoiceState:
    """One choice as it grows."""

    __slots__ = (
        "_extra",
        "_kept",
        "_merger",
        "_snapshot",
        "_tagged",
        "by_delta",
        "finish",
        "index",
        "logprobs",
        "reasoning",
        "refusal",
        "seen",
        "text",
        "think",
        "touched",
    )

    def __init__(self, index: int, provider: str | None = None) -> None:
        self.index = index
        self.reasoning: list[str] = []
        self.refusal: list[str] = []
        self.think = ThinkSplitter(OPENS.get(provider, _OPENS))
        self.text = self.think.given
        self.finish: str | None = None
        self.logprobs: Any = None
        self.seen = False
        self.touched: list[int] = []  # the tool calls that the last delta with some added to
        self._tagged: bool | None = None  # the reasoning comes in tags, or in fields
        self.by_delta = False  # content has come in a delta: a ``message`` then repeats it (MiniMax)
        self._snapshot: dict[str, Any] = {}  # the last whole ``message``
        self._merger: CallMerger | None = None  # of the first tool call on
        self._kept: dict[str, list[Any]] = {}  # what else the deltas held, for ``raw``: by name, pieces of one kind
        self._extra: dict[str, Any] = {}  # what else the choice held, the last of each

    def finish_with(self, reason: object) -> bool:
        """Take a finish_reason; one that says "stop" again does not hide what the first one said."""
        if not isinstance(reason, str) or reason in ("", "null"):
            return False
        if self.finish is None or _normalized(reason) != "stop":
            self.finish = reason
        return True

    def finish_reason(self) -> str | None:
        """Return the normalized reason; calls that finish with "stop" (Ollama, Gemini, a named choice) count as tool_calls."""
        if self.finish is None:
            return None
        reason = _normalized(self.finish)
        return "tool_calls" if reason == "stop" and self._merger is not None else reason

    def calls(self) -> list[ToolCall]:
        """Return the tool calls so far."""
        return [] if self._merger is None else self._merger.calls()

    def call_head(self, at: int) -> ToolCall:
        """Return what is known of one of ``touched`` but its arguments."""
        assert self._merger is not None
        return self._merger.head(at)

    def arguments_since(self, at: int, size: int) -> str:
        """Return what came of the arguments of one of ``touched`` after their first ``size`` characters."""
        assert self._merger is not None
        return self._merger.since(at, size)

    def call_so_far(self, at: int) -> ToolCall:
        """Return one of ``touched`` as far as it has come, its arguments not parsed."""
        assert self._merger is not None
        return self._merger.so_far(at)

    def add_reasoning(self, text: str, *, tagged: bool = False) -> None:
        """Take reasoning; where it comes both in tags and in a field (MiniMax M3), it is the same, and the first is taken."""
        if not text:
            return
        if self._tagged is None:
            self._tagged = tagged
        if self._tagged is tagged:
            self.reasoning.append(text)
            self.seen = True

    def whole_message(self, message: dict[str, Any]) -> dict[str, Any]:
        """Return what a ``message`` brings, where no delta did, that the last one did not: the answer as far as it has come."""
        known, self._snapshot = self._snapshot, message
        return {name: _news(value, known.get(name)) for name, value in message.items()}

    def add_refusal(self, text: object) -> None:
        """Take a piece of a refusal."""
        if isinstance(text, str) and text:
            self.refusal.append(text)
            self.seen = True

    def add_calls(self, delta: dict[str, Any]) -> None:
        """Take the fragments of tool calls; ``function_call`` is the name they had first."""
        fragments = delta.get("tool_calls")
        legacy = delta.get("function_call")
        touched: list[int | None] = []
        for fragment in fragments if isinstance(fragments, list) and fragments else [{"function": legacy}] if legacy else []:
            if isinstance(fragment, dict):
                if self._merger is None:
                    self._merger = CallMerger()
                touched.append(self._merger.feed(fragment))
                self.seen = True
        if touched:
            self.touched = [at for at in touched if at is not None]

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

    def keep_extra(self, choice: dict[str, Any]) -> None:
        """Keep the choice's other fields (native_finish_reason, content_filter_results, matched_stop)."""
        for name, value in choice.items():
            if value is not None and name not in _OWN:
                self._extra[name] = value

    def fields(self) -> dict[str, Any]:
        """Return the deltas' other fields, joined."""
        return {name: _joined(pieces) for name, pieces in self._kept.items()}

    def whole_thoughts(self) -> None:
        """Move what stands before a lone ``</think>`` to the reasoning: the template itself opened the tag."""
        if self.think.lone_at is not None:
            text = "".join(self.text)
            self.reasoning.append(text[: self.think.lone_at].strip())
            self.text[:] = [text[self.think.lone_at :].lstrip()]

    def choice(self) -> Choice:
        """Return the public form."""
        return Choice(self.index, "".join(self.text), self.finish_reason(), self.calls(), "".join(self.reasoning) or None)

    def merged(self) -> dict[str, Any]:
        """Return the choice as a whole answer would hold it."""
        text = self.think.untagged("".join(self.text))
        calls = [
            {"id": c.id, "type": "function", "function": {"name": c.name, "arguments": c.raw_arguments}, **c.extra}
            for c in self.calls()
        ]
        message = {"role": "assistant", "content": text if text or not calls else None, **self.fields()}
        if calls:
            message["tool_calls"] = calls
        own = {"index": self.index, "message": message, "finish_reason": self.finish, "logprobs": self.logprobs}
        return {**self._extra, **own}


def _normalized(reason: str) -> str | None:
    """Return what a finish_reason means; Gemini puts its own word behind ("content_filter: PROHIBITED_CONTENT")."""
    word = reason.lower()
    found = FINISH_REASONS.get(word, reason)
    return FINISH_REASONS.get(word.partition(":")[0], reason) if found == reason else found


def _news(value: Any, known: Any) -> Any:
    """Return what a value has more than the one it goes on with."""
    if isinstance(value, str | list) and type(value) is type(known) and value[: len(known)] == known:
        return value[len(known) :]
    return value


def _joined(pieces: list[Any]) -> Any:
    """Return pieces of one kind as one; more than one are text, or lists."""
    if len(pieces) == 1:
        return pieces[0]
    return "".join(pieces) if isinstance(pieces[0], str) else [item for piece in pieces for item in piece]


class ThinkSplitter:
    """Part a leading ``<think>...</think>``, or several, from the text, also where a read cuts the tags.

    A lone ``</think>`` (the template had opened it in the prompt) is taken out; ``lone_at`` says where in the text it stood.
    """

    __slots__ = ("_blank", "_close", "_held", "_opens", "_state", "_taken", "given", "lone_at", "settled")

    def __init__(self, opens: tuple[str, ...] = _OPENS) -> None:
        self._opens = opens
        self._close = _CLOSE  # of the tag under way
        self._blank = "\n"  # what is dropped beside the tags
        self._taken = ""  # what was taken out of the text, tags and all
        self._held = ""
        self._state = "start"
        self.given: list[str] = []  # the text; where it is settled, others may add to it
        self.settled = False  # no tag is under way: text without "<" needs no look
        self.lone_at: int | None = None

    def feed(self, text: str) -> list[tuple[str, str]]:
        """Return ("text" or "reasoning", piece) pairs."""
        if self._state == "rest" or not text or self._is_plain(text):
            if text:
                self.given.append(text)
            return [("text", text)]
        self._held += text
        fed = self._held
        pieces: list[tuple[str, str]] = []
        step = getattr(self, f"_{self._state}")
        while step is not None:
            step = step(pieces)
        given = "".join(piece for kind, piece in pieces if kind == "text")
        if (size := len(fed) - len(self._held) - len(given)) > 0:
            at = len(given) - len(pieces[-1][1]) if self._state == "rest" else len(given)
            self._taken += fed[at : at + size]
        if given:
            self.given.append(given)
        self.settled = self._state == "rest" or (self._state == "text" and not self._held)
        return pieces

    def _is_plain(self, text: str) -> bool:
        """Take text that no tag begins in or ends in: 0.2 us, where the steps below take 2.6."""
        if "<" in text or self._held or not (self._state == "text" or (self._state == "start" and not text.isspace())):
            return False
        self._state = "text"
        self.settled = True
        return True

    def end(self) -> list[tuple[str, str]]:
        """Return what was held back for a tag that never came."""
        held, self._held = self._held, ""
        kind = "reasoning" if self._state == "thinking" else "text"
        if kind == "reasoning":
            self._taken += held
        elif held:
            self.given.append(held)
        return [(kind, held)] if held else []

    def untagged(self, text: str) -> str:
        """Return the text as it came, given what is left of it."""
        at = self.lone_at or 0
        return text[:at] + self._taken + text[at:]

    def _start(self, pieces: list[tuple[str, str]]) -> Any:  # noqa: ARG002  # one signature for every state
        head = self._held.lstrip()
        if self._opens_in(head):
            return self._opened
        if any(tag.startswith(head) for tag in self._opens):
            return None
        self._state = "text"
        return self._text

    def _opens_in(self, head: str) -> bool:
        """Go past the opening tag that ``head`` begins with, if it does."""
        tag = next((tag for tag in self._opens if head.startswith(tag)), None)
        if tag is None:
            return False
        self._held, self._state, self._close = head.removeprefix(tag), "opened", f"</{tag[1:]}"
        self._blank = "\n" if tag in _OPENS else ""  # around each piece of thoughts, blank lines belong to them
        return True

    def _opened(self, pieces: list[tuple[str, str]]) -> Any:  # noqa: ARG002  # one signature for every state
        """Drop the blank lines between the tag and the thoughts."""
        self._held = self._held.lstrip(self._blank)
        if not self._held:
            return None
        self._state = "thinking"
        return self._thinking

    def _thinking(self, pieces: list[tuple[str, str]]) -> Any:
        thought, tag, rest = self._held.partition(self._close)
        if tag:
            pieces.append(("reasoning", thought.rstrip(self._blank)))
            self._held, self._state = rest, "after"
            return self._after
        sure = thought[: len(thought) - _overlap(thought, self._close)].rstrip(self._blank)
        self._give(pieces, "reasoning", len(thought) - len(sure))
        return None

    def _after(self, pieces: list[tuple[str, str]]) -> Any:
        """Drop the blank lines between the thoughts and the answer, which may begin with more thoughts."""
        rest = self._held = self._held.lstrip("\n")
        if self.lone_at is None and self._opens_in(rest):
            return self._opened
        if rest and (self.lone_at is not None or not any(tag.startswith(rest) for tag in self._opens)):
            pieces.append(("text", rest))
            self._held, self._state = "", "rest"
        return None

    def _text(self, pieces: list[tuple[str, str]]) -> Any:
        at = self._held.find(_CLOSE)
        while at >= 0 and self._quoted(at):
            at = self._held.find(_CLOSE, at + 1)
        if at >= 0:
            pieces.append(("text", self._held[:at]))
            self.lone_at = sum(map(len, self.given)) + at
            self._held, self._state = self._held[at + len(_CLOSE) :], "after"
            return self._after
        self._give(pieces, "text", _overlap(self._held, _CLOSE))
        return None

    def _quoted(self, at: int) -> bool:
        """Say whether a quote stands before a tag: then the tag is what the answer talks about."""
        before = self._held[at - 1] if at else "".join(self.given[-1:])[-1:]
        return before in ("`", '"', "'")

    def _give(self, pieces: list[tuple[str, str]], kind: str, keep: int) -> None:
        cut = len(self._held) - keep
        pieces.append((kind, self._held[:cut]))
        self._held = self._held[cut:]


def _overlap(text: str, tag: str) -> int:
    """Return how many characters at the end of ``text`` may be the beginning of ``tag``."""
    return next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if text.endswith(tag[:n])), 0)
