"""Bytes of an answer -> texts and :class:`LLMResponse`.

A stream's life, as the driver sees it: ``feed`` returns the texts that a read brought; ``progress`` says whether that read
held content of any kind; ``finished`` that a finish_reason has come and only usage and ``[DONE]`` may follow; ``over`` that
nothing more is wanted; ``result`` is then the answer, or raises. A good end is a finish_reason; or, after some content,
``[DONE]`` or a usage chunk without choices. Anything else is a truncated stream.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import orjson

from ..errors import (
    LLMContentFilterError,
    LLMError,
    LLMInternalError,
    LLMResponseError,
    LLMResponseTooLargeError,
    LLMStreamTruncatedError,
)
from ..retry import RETRYABLE
from ..sse import BOM, EventTooLargeError, SSEDecoder
from ..types import LLMResponse, LLMUsage, Message
from ..usage import normalize_usage, usage_of
from .choice import ChoiceState
from .deltas import PADDING, TEXT_FIELDS, content_parts, has_content, plain_text, reasoning_of, unwrapped
from .failures import error_from, page_title, says_error
from .parsing import INVALID, parse_json, text_or_none
from .template import Template

if TYPE_CHECKING:
    from ..schema import Schema
    from ..toolbox import Toolbox

_JSON_STARTS = b'{[<"'
_SSE_STARTS = (b"data:", b"event:", b"error:", b"retry:", b"id:", b":")
_NOT_HEAD = PADDING | {"choices", "usage", "object"}
_MOST_CHOICES = 1000  # OpenAI's most is 128; each costs a look at every chunk
_LONGEST_START = max(map(len, _SSE_STARTS)) + 1


class Decoder:
    """Decode one answer, streamed or whole, whichever of the two the server chose to send.

    ``streams`` is what was asked for; ``choices`` how many answers; ``provider`` a name of the registry; ``prompt`` returns the
    text to estimate its tokens from where the provider does not count; ``schema`` is what the answer has to fit, ``tools``
    what its tool calls have to.
    """

    # With more than 29 attributes an instance has a dict of its own in Python 3.11: 0.4 us more to make, and 7 % on a stream.
    __slots__ = (
        "_asked",
        "_body",
        "_choices",
        "_content",
        "_echo",
        "_ended",
        "_event_limit",
        "_first",
        "_head",
        "_headers",
        "_inflate",
        "_is_event_stream",
        "_limit",
        "_parts",
        "_prompt",
        "_provider",
        "_schema",
        "_sse",
        "_statuses",
        "_streams",
        "_template",
        "_texts",
        "_tools",
        "_usage",
        "_whole",
        "failure",
        "finished",
        "over",
        "progress",
        "response_bytes",
    )

    def __init__(
        self,
        *,
        streams: bool,
        choices: int = 1,
        provider: str | None = None,
        echo: tuple[str, ...] = (),
        prompt: Callable[[], str] = str,
        max_response_bytes: int | None = None,
        max_event_bytes: int | None = None,
        statuses: frozenset[int] = RETRYABLE,
        schema: Schema | None = None,
        tools: Toolbox | None = None,
    ) -> None:
        self.progress = False  # the last read held content
        self.finished = False  # every choice has its finish_reason
        self.over = False  # nothing more is wanted
        self.failure: LLMError | None = None
        self.response_bytes = 0
        self._streams = streams
        self._asked = choices
        self._provider = provider
        self._echo = echo
        self._statuses = statuses
        self._prompt = prompt
        self._schema = schema
        self._tools = tools
        self._limit = max_response_bytes
        self._sse: SSEDecoder | None = None
        self._template: Template | None = None  # of a stream whose chunks hardly vary
        self._event_limit = max_event_bytes
        self._inflate: _Inflate | None = None
        self._parts: list[bytes] = []  # a whole answer, or the white space before it is clear what this is
        self._head: dict[str, Any] = {}  # the chunks' own fields, merged, or the whole answer
        self._body: dict[str, Any] = {}  # a whole answer's JSON, untouched
        self._whole = False  # what comes is one JSON object (or a web page, or nothing that we know), not events
        self._choices: dict[int, ChoiceState] = {}
        self._first: ChoiceState | None = None  # choice 0, whose texts are given out
        self._usage: Mapping[str, Any] | None = None
        self._ended = False  # [DONE], or a usage chunk without choices after content
        self._content = False  # any content has come at all
        self._texts: list[str] = []  # of the read under way
        self._is_event_stream = False
        self._headers: Mapping[str, str] = {}

    def begin(self, headers: Mapping[str, str]) -> None:
        """Take the answer's headers (lower-case names): its coding, and what it says it is."""
        self._headers = headers
        self._is_event_stream = headers.get("content-type", "").startswith("text/event-stream")
        coding = headers.get("content-encoding", "identity").strip().lower()
        if coding in ("gzip", "deflate", "x-gzip"):
            self._inflate = _Inflate()
        elif coding not in ("", "identity"):
            self._fail(broken(f"The answer is encoded with {coding[:40]!r}, which was not asked for.", retryable=False))

    def feed(self, data: bytes) -> list[str]:
        """Return the texts of choice 0 that ``data`` brings; after a failure those before it."""
        self.progress = False
        self._texts = []
        try:
            if self._inflate is None:
                self._take(data)
            else:
                for piece in self._inflate.feed(data):
                    self._take(piece)
        except EventTooLargeError:
            self._fail(_too_large("an event of the stream is larger than max_event_bytes"))
        except zlib.error as error:
            self._fail(broken(f"The compressed answer is damaged: {error}.", retryable=True))
        return self._texts

    def end(self) -> list[str]:
        """Return the last texts at the end of the connection, clean or not."""
        self.progress = False
        self._texts = []
        if self.over:
            return []
        if self._sse is not None:
            for payload in self._sse.end():
                self._event(payload, at_end=True)
        elif not self._streams or b"".join(self._parts).strip():
            self._whole_answer(b"".join(self._parts).removeprefix(BOM))
        self.over = True
        self._last_texts()
        return self._texts

    def result(self) -> LLMResponse[Any]:
        """Return the answer, or raise what went wrong; ``partial`` of the error holds what had come."""
        failure = self.failure or self._bad_end()
        if failure is None:
            return self.response() if self._schema is None and self._tools is None else self._checked()
        failure.partial = self.response()
        raise failure

    def _checked(self) -> LLMResponse[Any]:
        from .checks import checked

        try:
            return checked(self.response(), self._schema, self._tools)
        except LLMError as error:
            raise error.with_traceback(None)  # noqa: B904  # the same error, less the frames whose locals hold the answer

    def response(self) -> LLMResponse[Any]:
        """Return the answer as far as it has come."""
        first = self._answering() or ChoiceState(0)
        answer, calls = first.choice(), first.calls()
        return LLMResponse(
            text=answer.text,
            usage=self._normalized_usage(),
            model=text_or_none(self._head.get("model")) or "",
            finish_reason=answer.finish_reason,
            raw=self._body if self._whole else self._merged(),
            id=text_or_none(self._head.get("id")),
            reasoning=answer.reasoning,
            refusal="".join(first.refusal) or None,
            tool_calls=calls,
            choices=[answer if state is first else state.choice() for _, state in sorted(self._choices.items())],
            logprobs=first.logprobs,
            message=Message(
                "assistant",
                answer.text or None if calls else answer.text,
                tool_calls=calls or None,
                extra=self._echoed(first) if calls else {},
            ),
        )

    def _normalized_usage(self) -> LLMUsage:
        usage = normalize_usage(self._usage or _zero_usage(self._head), provider=self._provider)
        if usage.estimated:
            usage = normalize_usage(usage.raw, provider=self._provider, prompt=self._prompt(), completion=self._completion())
        return usage

    def _completion(self) -> str:
        """Return all that the model wrote."""
        return "".join(
            piece
            for state in self._choices.values()
            for piece in (
                *state.reasoning,
                *state.text,
                *state.refusal,
                *(c.raw_arguments for c in state.calls()),
            )
        )

    def _take(self, data: bytes) -> None:
        self.response_bytes += len(data)
        if self._limit is not None and self.response_bytes > self._limit:
            self._parts = []
            self._fail(_too_large(f"it is larger than max_response_bytes ({self._limit})"))
        if self.over:
            return
        if self._sse is None:
            data = self._sniff(data)
        if self._sse is None:
            self._parts.append(data)
            return
        payloads = self._sse.feed(data)
        if len(payloads) == 1 or not self._alike(payloads):
            for payload in payloads:
                if self.over:
                    return
                self._event(payload)

    def _sniff(self, data: bytes) -> bytes:
        """Decide from the first bytes what this is: servers answer with JSON where a stream was asked for, and the reverse.

        Return the bytes that are now to be taken; white space before the answer is dropped.
        """
        if self._whole:
            return data
        data = b"".join((*self._parts, data))
        self._parts = []
        head = data.removeprefix(BOM).lstrip()
        if len(head) < _LONGEST_START and (not head or any(start.startswith(head) for start in (BOM, *_SSE_STARTS))):
            return data if head else b""  # too little to tell
        if head[0] in _JSON_STARTS:
            self._whole = True
        elif self._streams or self._is_event_stream or head.startswith(_SSE_STARTS):
            self._sse, self._template = SSEDecoder(self._event_limit), Template()
        else:
            self._whole = True
        return data

    def _alike(self, payloads: list[bytes]) -> bool:
        """Take the events of one read if all of them are plain chunks that fit the template."""
        first = self._first
        if first is None or not first.think.settled or self._template is None:
            return False
        texts = self._template.texts(payloads)
        if texts is None:
            return False
        if "" in texts:
            texts = [text for text in texts if text]
        first.text += texts
        self._texts += texts
        self.progress = self.progress or bool(texts)
        return True

    def _event(self, payload: bytes, *, at_end: bool = False) -> None:
        """Take one event's data; the common chunk (one choice, some text, nothing else new) goes a short way."""
        first = self._first if self._first is not None and self._first.think.settled else None
        text = None if first is None or self._template is None else self._template.text(payload)
        if first is None or text is None:
            try:
                chunk = orjson.loads(payload)
            except ValueError:
                return self._unusual(payload, at_end=at_end)
            text = None if first is None else plain_text(chunk)
            if first is None or text is None:
                return self._chunk(chunk)
            if self._template is not None and not self._template.learn(payload, text, len(first.text)):
                self._template = None
        if text:
            first.text.append(text)
            self._texts.append(text)
            self.progress = True

    def _unusual(self, payload: bytes, *, at_end: bool) -> None:
        payload = payload.strip()
        if payload == b"[DONE]":
            self._done()
        elif payload:
            chunk = parse_json(payload)
            if chunk is not INVALID:
                self._chunk(chunk)
            elif not at_end:  # cut short by the end of the connection it is only half an event
                self._fail(broken(f"An event of the stream is not JSON: {excerpt(payload)}", retryable=False, body=payload))

    def _done(self) -> None:
        self._last_texts()
        self._ended = True
        self.over = True

    def _last_texts(self) -> None:
        """Let go of what was held for a tag, and give out the answer of a server that counts its choices from 1."""
        for state in self._choices.values():
            self._text(state, state.think.end())
        if self._first is None and self._choices:
            self._first = self._choices[min(self._choices)]
            self._texts += self._first.text

    def _chunk(self, chunk: Any) -> None:
        if isinstance(chunk, dict) and "choices" in chunk:
            return self._object(chunk)
        for item in chunk if isinstance(chunk, list) and chunk else [chunk]:
            if not isinstance(item, dict):
                return self._fail(broken(f"A chunk of the stream is not an object: {excerpt(item)}", retryable=False))
            if not self.over:
                self._object(item if "choices" in item or says_error(item) else unwrapped(item))

    def _object(self, chunk: dict[str, Any]) -> None:
        usage = usage_of(chunk)
        self._usage = usage or self._usage
        if says_error(chunk):  # what its choices bring is part of ``partial``
            self.failure = self._error(chunk)
        else:
            self._merge_head(chunk)
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._choice(choice)
        if self.failure is not None:
            return self._fail(self.failure)
        if usage is not None and not choices and self._content:
            self._ended = True
        self.finished = self._all_finished()

    def _choice(self, choice: dict[str, Any], position: int = 0) -> ChoiceState:
        """Take what a chunk brings of one choice, an error last; return the choice."""
        index = choice.get("index", position)
        index = index if isinstance(index, int) and not isinstance(index, bool) else 0
        state = self._choices.get(index)
        if state is None:
            if len(self._choices) >= _MOST_CHOICES:
                self._fail(broken(f"The answer has more than {_MOST_CHOICES} choices.", retryable=False))
                return self._choices[min(self._choices)]
            state = self._choices[index] = ChoiceState(index, self._provider)
            if index == 0:
                self._first = state
        self._delta(state, self._delta_of(state, choice))
        state.keep_extra(choice)
        if (logprobs := choice.get("logprobs")) is not None:
            state.add_logprobs(logprobs)
        if state.finish_with(choice.get("finish_reason")):
            self._text(state, state.think.end())
        if says_error(choice, top=False):
            self._fail(self._error(choice))
        return state

    def _delta_of(self, state: ChoiceState, choice: dict[str, Any]) -> dict[str, Any]:
        """Return the delta, or what stands in its place: some send a whole ``message``, or ``text``."""
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        if state.by_delta or has_content(delta):
            state.by_delta = True
            return delta
        message, text = choice.get("message"), choice.get("text")
        if isinstance(message, dict):
            return {} if self._whole and state.seen else state.whole_message(message)
        return {**delta, "content": text} if text and isinstance(text, str) else delta

    def _delta(self, state: ChoiceState, delta: dict[str, Any]) -> None:
        before = state.seen
        content = delta.get("content")
        for kind, text in (("text", content),) if isinstance(content, str) else content_parts(content):
            if kind == "reasoning":
                state.add_reasoning(text)
            else:
                self._text(state, state.think.feed(text))
                state.seen = state.seen or bool(text)
        if others := {name: value for name, value in delta.items() if value is not None and name not in TEXT_FIELDS}:
            state.add_reasoning(reasoning_of(others))
            state.add_refusal(others.get("refusal"))
            state.add_calls(others)
            state.keep(others)
        if state.seen and (not before or has_content(delta)):
            self.progress = self._content = True

    def _text(self, state: ChoiceState, pieces: list[tuple[str, str]]) -> None:
        for kind, text in pieces:
            if not text:
                continue
            if kind == "reasoning":
                state.add_reasoning(text, tagged=True)
                continue
            if state is self._first:
                self._texts.append(text)

    def _whole_answer(self, body: bytes) -> None:
        self._whole = True
        answer = parse_json(body)
        if answer is INVALID or not isinstance(answer, dict):
            if isinstance(answer, list) and answer and isinstance(answer[0], dict) and says_error(answer[0]):
                return self._fail(self._error(answer))
            return self._fail(not_an_answer(body))
        if says_error(answer):
            return self._fail(self._error(answer))
        self._body, answer = answer, unwrapped(answer) if "choices" not in answer else answer
        self._usage = usage_of(answer)
        self._head = answer
        choices = answer.get("choices")
        if not isinstance(choices, list) or set(map(type, choices)) != {dict}:
            message = f"The answer has no choices: {excerpt(body)}"
            return self._fail(broken(message, retryable=choices in (None, []), body=body))
        for position, choice in enumerate(choices):
            self._choice(choice, position)
            given = isinstance(choice.get("message"), dict) or choice.get("text") or choice.get("delta")
            if not given and not self._says_why():
                return self._fail(broken(f"Choice {position} has no message: {excerpt(body)}", retryable=False, body=body))
        for state in self._choices.values():
            state.whole_thoughts()
        if self._first is not None:
            self._texts = [text for text in self._first.text if text]  # less the thoughts that stood in it
        self._ended = True

    def _says_why(self) -> bool:
        """Say whether the finish_reason explains that nothing came: Gemini leaves out the message that it filters."""
        first = self._answering()
        return first is not None and first.finish_reason() in ("content_filter", "error")

    def _merge_head(self, chunk: dict[str, Any]) -> None:
        for name, value in chunk.items():
            if name not in _NOT_HEAD and (value or (value is not None and value != "" and name not in self._head)):
                self._head[name] = value  # Azure's filter chunks say created 0 after the real one

    def _merged(self) -> dict[str, Any]:
        """Return the object that the server would have sent, had it not been asked to stream."""
        if not self._head and not self._choices:
            return {}
        merged = {
            **self._head,
            "object": "chat.completion",
            "choices": [state.merged() for _, state in sorted(self._choices.items())],
        }
        return merged if self._usage is None else {**merged, "usage": dict(self._usage)}

    def _echoed(self, first: ChoiceState) -> dict[str, Any]:
        """Return what the provider wants back beside tool calls."""
        fields = first.fields() if self._echo else {}
        return {name: value for name in self._echo if (value := fields.get(name))}

    def _all_finished(self) -> bool:
        states = self._choices.values()
        return len(states) >= self._asked and all(state.finish is not None for state in states)

    def _answering(self) -> ChoiceState | None:
        """Return choice 0, or the lowest there is where a server counts from 1."""
        return self._first or (self._choices[min(self._choices)] if self._choices else None)

    def _bad_end(self) -> LLMError | None:
        first = self._answering()
        reason = first.finish_reason() if first is not None else None
        if not self._whole and not self._content and not self._all_finished():
            if self._ended:
                return broken("The stream ended with neither content nor a finish_reason.", retryable=True)
            kind = self._headers.get("content-type", "")
            if kind and not self._is_event_stream:
                return broken(f"The answer is no event stream but {kind[:80]!r}.", retryable=False)
            return LLMStreamTruncatedError("The stream ended before it began: no event came.", retryable=True)
        if not self._whole and not self._ended and not (self._choices and all(s.finish for s in self._choices.values())):
            return LLMStreamTruncatedError("The stream stopped before its end: no finish_reason, no [DONE].", retryable=True)
        if reason == "error" and first is not None:
            return LLMInternalError(f"The provider gave up: finish_reason {first.finish!r}.", retryable=True, status_code=200)
        empty = first is not None and not first.text and not first.refusal
        if reason == "content_filter" and empty and self._tools is None:  # with tools it depends on the calls: ``checks``
            return LLMContentFilterError("The content filter left nothing of the answer.", status_code=200)
        return None

    def _error(self, said: Any) -> LLMError:
        return error_from(200, self._headers, said, provider=self._provider, statuses=self._statuses)

    def _fail(self, error: LLMError) -> None:
        self.failure = self.failure or error
        self._last_texts()
        self.over = True


class _Inflate:
    """Undo a gzip or deflate that nobody asked for, a bounded piece at a time (1 MB of gzip can be 1 GB of zeros)."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(47)  # 32 + 15: gzip or zlib by its header

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            yield self._stream.decompress(data, 256 * 1024)
            data = self._stream.unconsumed_tail


def _zero_usage(head: dict[str, Any]) -> Mapping[str, Any] | None:
    usage = head.get("usage")
    return usage if isinstance(usage, Mapping) else None


def inflated(body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the body of an error answer, decompressed where it came so; at most 256 KiB of it."""
    if headers.get("content-encoding", "").lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    try:
        return next(_Inflate().feed(body), b"")
    except zlib.error:
        return body


def excerpt(body: object) -> str:
    """Return the beginning of what came, on one line."""
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else repr(body)
    return " ".join(text.split())[:200] or "(empty)"


def broken(message: str, *, retryable: bool, body: bytes = b"") -> LLMResponseError:
    """Make the error of an answer that is none; ``body`` is what came."""
    return LLMResponseError(message, retryable=retryable, status_code=200, body=body[:4096].decode("utf-8", "ignore"))


def _too_large(why: str) -> LLMResponseTooLargeError:
    return LLMResponseTooLargeError(f"The answer was given up: {why}.", status_code=200)


def not_an_answer(body: bytes) -> LLMResponseError:
    """Say what came where JSON should have been."""
    text = body.decode("utf-8", "replace")
    if not text.strip():
        return broken("The answer is empty.", retryable=True)
    if text.lstrip().startswith("<"):
        title = page_title(text)
        return broken(f"The answer is a web page ({title!r}), not JSON: check base_url.", retryable=False, body=body)
    # JSON that begins well was most likely cut; anything else will be as wrong the next time.
    return broken(f"The answer is not JSON: {excerpt(body)}", retryable=text.lstrip()[:1] == "{", body=body)
