"""Bytes of an answer -> typed events, and what half-written JSON says so far."""

from __future__ import annotations

from typing import Any

from ..tools import is_whole, parse_arguments
from ..types import StreamEvent, StreamEventKind, ToolCall
from .choice import ChoiceState
from .decoder import Decoder

_TOKEN = StreamEventKind.TOKEN_DELTA
_REASONING = StreamEventKind.REASONING_DELTA
_REFUSAL = StreamEventKind.REFUSAL_DELTA
_CALL = StreamEventKind.TOOL_CALL_DELTA
_CANDIDATE = StreamEventKind.TOOL_CALL_CANDIDATE


class EventDecoder(Decoder):
    """Decode an answer as any other, and tell of all choices what came, in its order.

    Events are what the choices have more than when they were last looked at: after each chunk that is more than text, and when
    ``events`` is called. So texts go the short way that they go without events; of one chunk, reasoning comes before text.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._events: list[StreamEvent] = []
        self._told: dict[int, _Told] = {}

    def events(self) -> list[StreamEvent]:
        """Return what came since the last time."""
        if self.over:
            good = self.failure is None and self._bad_end() is None
            for state in self._choices.values():
                self._look(state, ended=good)
        elif self._first is not None:
            self._look(self._first)
        events, self._events = self._events, []
        return events

    def text_so_far(self) -> str:
        """Return the text of choice 0 as far as it has come."""
        state = self._answering()
        return "" if state is None else "".join(state.text)

    def _choice(self, choice: dict[str, Any], position: int = 0) -> ChoiceState:
        if self._first is not None:
            self._look(self._first)  # the texts before this chunk
        state = super()._choice(choice, position)
        if not self._whole:  # of a whole answer, thoughts are sorted out at its end
            self._look(state)
        return state

    def _look(self, state: ChoiceState, *, ended: bool = False) -> None:
        told = self._told.get(state.index)
        if told is None:
            told = self._told[state.index] = _Told()
        index, events = state.index, self._events
        if len(state.reasoning) > told.reasoning:
            events += [StreamEvent(_REASONING, text, index=index) for text in state.reasoning[told.reasoning :] if text]
            told.reasoning = len(state.reasoning)
        if len(state.text) > told.text:
            events += [StreamEvent(_TOKEN, text, index=index) for text in state.text[told.text :] if text]
            told.text = len(state.text)
        if len(state.refusal) > told.refusal:
            events += [StreamEvent(_REFUSAL, text, index=index) for text in state.refusal[told.refusal :]]
            told.refusal = len(state.refusal)
        if state.touched:
            self._look_at_calls(state, told)
        if told.open and (ended or (state.finish is not None and not told.finished)):
            told.finished = True  # the first finish alone: each look costs what the calls are long
            told.open = [at for at in told.open if not self._is_candidate(state, at, ended=ended)]

    def _look_at_calls(self, state: ChoiceState, told: _Told) -> None:
        touched, state.touched = state.touched, []
        for at in sorted({*touched, *range(len(told.calls), max(touched) + 1)}):
            call = state.call_head(at)
            if at == len(told.calls):
                if told.open and self._is_candidate(state, told.open[-1]):
                    told.open.pop()
                told.open.append(at)
                told.calls.append(ToolCall(call.id, call.name))
                told.sizes.append(0)
            elif (call.id, call.name) != (told.calls[at].id, told.calls[at].name):
                told.calls[at] = ToolCall(call.id, call.name)
            elif not state.arguments_since(at, told.sizes[at]):
                continue  # said again
            more = state.arguments_since(at, told.sizes[at])
            self._events.append(StreamEvent(_CALL, more, told.calls[at], index=state.index))
            told.sizes[at] += len(more)

    def _is_candidate(self, state: ChoiceState, at: int, *, ended: bool = False) -> bool:
        """Tell of a call that is whole and fits; at the end of the answer also of one without arguments."""
        call = state.call_so_far(at)
        blank = not call.raw_arguments.strip()
        if (blank and not ended) or not (blank or is_whole(call.raw_arguments)):
            return False
        if self._tools is not None and self._tools.errors_in(call):
            return False  # ``result`` raises them
        call.arguments = parse_arguments(call.raw_arguments)
        self._events.append(StreamEvent(_CANDIDATE, tool_call=call, index=state.index))
        return True


class _Told:
    """How much of a choice has been told."""

    __slots__ = ("calls", "finished", "open", "reasoning", "refusal", "sizes", "text")

    def __init__(self) -> None:
        self.reasoning = self.text = self.refusal = 0  # pieces
        self.finished = False
        self.calls: list[ToolCall] = []  # id and name, as they were told last
        self.sizes: list[int] = []  # of their arguments
        self.open: list[int] = []  # those of them that were not yet whole


def partial_json(text: str) -> Any:
    """Return what half-written JSON says so far, None where it says nothing; a code fence around it does not count."""
    from ..schema import library

    from_json = library("pydantic_core").from_json
    text = text.lstrip()
    if text.startswith("```"):
        text = text[3:].rstrip().rstrip("`")
        text = text[4:] if text[:4].lower() == "json" else text
    try:
        return from_json(text.encode("utf-8", "replace"), allow_partial="trailing-strings")  # text may hold lone surrogates
    except ValueError:
        return None
