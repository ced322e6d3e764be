"""The streams of both colours, side by side: what sends a call, reads its answer and hands it over, a network read at a time.

The path of a chunk: ``transport`` reads -> ``Decoder.feed`` (response/decoder.py) returns the texts of that read, or
``EventDecoder.events`` its events -> the cursor yields them. A call that asks for a whole answer reads a stream to its end.
``tests/test_parity.py`` proves that the two texts are one.
"""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from .config import Secret
from .errors import LLMClosedError, LLMConfigurationError, LLMError, LLMStatusError
from .mock import MockResponse
from .request import Call, ask_key, ask_key_async, endpoint_of, headers_of
from .response import (
    MAX_ERROR_BODY,
    Decoder,
    error_from,
    inflated,
    rate_limits_of,
    redacted,
    request_id_of,
    tell_no_key,
    without,
)
from .response.embeddings import EmbeddingsDecoder
from .response.events import EventDecoder, partial_json
from .response.models import ModelsDecoder
from .retry import Retries
from .timing import Clock
from .transport import Request
from .transport.names import target_of
from .types import CallMetrics, LLMResponse, StreamEvent, StreamEventKind, T
from .watching import Watch, watch

if TYPE_CHECKING:
    from typing import Self

    from .client import OpenAICompatibleLLM

Item = TypeVar("Item")  # what a stream yields
_DECODERS: dict[str, type[Decoder]] = {"models": ModelsDecoder, "embeddings": EmbeddingsDecoder}


class _StreamState:
    """What a stream of either colour keeps while it runs, and all that it does without waiting."""

    response: LLMResponse[Any] | None
    _chat_decoder: type[Decoder] = Decoder
    _watch: Watch | None = None

    def __init__(self, llm: OpenAICompatibleLLM, call: Call) -> None:
        self.response = None
        self._llm = llm
        self._call = call
        self._shared = llm._shared
        self._clock: Clock  # of this call, from its beginning
        self._decoder: Decoder  # of the attempt under way
        self._answer: Any = None  # the transport's response of the attempt under way
        self._items: list[Any] | None = None  # what the first read with content brought: texts, or events
        self._state: Literal["new", "open", "over"] = "new"
        self._taken = False
        self._reading = False
        self._attempts = 0
        self._started = self._sent = 0.0
        self._first_content: float | None = None
        self._key = Secret(None)  # of the attempt under way, to take it out of what the server says

    def _claim_iteration(self) -> None:
        if self._taken:
            raise RuntimeError("A stream can be read once.")
        self._taken = True

    def _begin(self) -> None:
        """Start the call; what came before the first read does not count."""
        self._llm._check_open()
        self._started = time.perf_counter()
        self._clock = Clock(self._call.timeouts, streams=self._call.streams)
        self._reading = True
        self._state = "open"  # last: from here on another thread may close it
        self._shared.begin(self._clock, self._llm)
        self._shared.budget.first_try()
        self._watch = watch(self._call)

    def _begin_attempt(self) -> MockResponse | None:
        self._attempts += 1
        if self._watch is not None and self._attempts == 1:  # here, where an interrupt out of a hook ends the call
            self._watch.begin()
        self._first_content = None
        self._answer = None
        self._decoder = self._new_decoder()
        self._sent = time.perf_counter()
        return self._shared.mock.next(self._call)

    def _new_decoder(self) -> Decoder:
        call, config = self._call, self._call.config
        decoder = _DECODERS.get(call.kind, self._chat_decoder)
        return decoder(
            streams=call.streamed,
            choices=call.choices,
            provider=config.provider_name,
            echo=config.provider.echo if config.provider else (),
            prompt=call.prompt,
            max_response_bytes=config.max_response_bytes,
            max_event_bytes=config.max_event_bytes,
            statuses=config.retry.statuses,
            schema=call.format,
            tools=call.tools,
        )

    def _signed(self, key: str | None) -> Request:
        self._key = Secret(key)
        call = self._call
        headers = headers_of(call, key)
        return Request(call.method, call.config.origin, target_of(call.url), headers, call.body, whole=not call.streamed)

    def _refused(self) -> bool:
        """Say whether the answer's head tells of a failure."""
        status = self._answer.status
        if self._watch is not None:
            self._watch.answered(self._attempts, status, self._answer.http_version, time.perf_counter() - self._sent)
        return not 200 <= status < 300 or status == 204

    def _may_retry(self, error: LLMError) -> bool:
        return self._call.max_retries > 0 and self._retries().worth_it(error)

    def _retries(self) -> Retries:
        waits = None if self._watch is None else self._watch.waits
        return Retries(self._call.config.retry, self._shared.budget, self._call.max_retries, self._clock.left_of_call, waits)

    def _opened(self, error: LLMError | None) -> None:
        self._reading = False
        if error is not None:
            self._ended(error)
        elif self._state == "over" and self.response is None:
            self._leave()  # closed by somebody else just as the answer began

    def _first_items(self) -> list[Any] | None:
        items, self._items = self._items, None
        return items if self._state == "open" or self.response is not None else None

    def _claim_read(self) -> bool:
        """Begin to read on; False where there is nothing more."""
        if self._reading and self._state == "open":
            raise RuntimeError("Somebody else is reading this stream: one reader at a time.")
        self._reading = True  # first, as ``_stop`` sets the state first: so one of the two sees the other and closes
        if self._state == "over":
            self._reading = False
            self._leave()
            return False
        # The time that the caller took is not the server's: the wait starts anew.
        if self._decoder.finished:
            self._clock.tail()
        elif self._first_content is not None:
            self._clock.content()
        return True

    def _decode(self, data: bytes) -> list[Any]:
        """Decode one read, and tell the clock what it means for the next."""
        decoder = self._decoder
        was_finished = decoder.finished
        texts = decoder.feed(data) if data else decoder.end()
        if decoder.progress and self._first_content is None:
            self._first_content = time.perf_counter()
        if decoder.finished and not was_finished:
            self._clock.tail()
        return texts

    def _lost(self, error: LLMError) -> bytes:
        """Take the loss of the connection for the end of the stream where its end had been said already."""
        if self._decoder.finished and self._clock.reason is None:
            return b""
        raise error

    def _finish(self) -> None:
        """Make the response, or raise what the stream ended with."""
        self.response = self._complete(self._decoder.result())
        self._answer.finish()
        self._state = "over"
        self._shared.end(self._clock)
        if self._watch is not None:
            self._watch.finished(self.response)

    def _whole(self) -> LLMResponse[Any]:
        if self.response is None:
            raise LLMClosedError("The stream was closed before its end.")
        return self.response

    def _ended(self, error: LLMError) -> None:
        """Tell what ended the stream, unless its own ``close`` did."""
        stopped = self._clock.reason == "stopped" and isinstance(error, LLMClosedError)
        self._left(None if stopped else error)
        if not stopped:
            self._tell(error)

    def _left(self, error: BaseException | None) -> None:
        """End the request at the server where its reader noticed the end; what is no ``Exception`` is its caller leaving."""
        self._reading = False
        self._state = "over"
        self._shared.end(self._clock)
        self._leave(error)

    def _tell(self, error: LLMError) -> None:
        raise error

    def _last_items(self) -> list[Any]:
        """Return what is given out when nothing more can be read."""
        return []

    def _leave(self, error: BaseException | None = None) -> None:
        """Close the answer, and tell those who watch how the call ended, unless they know; idempotent.

        Called where the state is "over" and nobody reads: of the thread that closed the stream and the one that read it, one
        sees both, or each does, and then the first one tells.
        """
        if self._answer is not None:
            self._answer.close()
        if self._watch is None or self._clock.reason == "forked":  # then the parent process tells
            return
        if isinstance(error, Exception):
            self._watch.failed(error, self._attempts)
        else:
            self._watch.stopped(self._so_far, self._attempts)

    def _so_far(self) -> LLMResponse[Any] | None:
        return None if self._first_content is None else self._complete(self._decoder.response())

    def _stop(self) -> None:
        """End the request at the server, from wherever this is called; idempotent."""
        began, self._state = self._state == "open", "over"
        if not began:
            return
        self._shared.end(self._clock)
        if self._reading:  # the reader notices, and leaves
            self._clock.interrupt("stopped")
        else:
            self._leave()

    def _failed(self, error: LLMError) -> LLMError:
        """Complete an error of this call; ``partial`` is what had come of the answer."""
        error.attempts = self._attempts
        name = error.provider = error.provider or self._call.config.provider_name
        if isinstance(error, LLMStatusError) and self._answer is not None and not error.headers:
            error.headers = dict(self._answer.headers)
            error.request_id = error.request_id or request_id_of(error.headers, name)
        if error.partial is None and self._first_content is not None:
            error.partial = self._decoder.response()
        if error.partial is not None:
            self._complete(error.partial)
        return redacted(error, self._key.reveal())

    def _status_error(self, body: bytes) -> LLMError:
        # Before it is cut to size, which could leave half a key.
        body = without(inflated(body, self._answer.headers).decode("latin-1"), self._key.reveal()).encode("latin-1")
        answer, config = self._answer, self._call.config
        name, statuses, url = config.provider_name, config.retry.statuses, endpoint_of(self._call.url)
        return error_from(answer.status, answer.headers, body, provider=name, statuses=statuses, url=url)

    def _complete(self, response: LLMResponse[Any]) -> LLMResponse[Any]:
        """Add what only the driver knows: times, headers, attempts."""
        now, answer, call, first = time.perf_counter(), self._answer, self._call, self._first_content
        response.latency_ms = (now - self._started) * 1e3
        request_id = request_id_of(answer.headers, call.config.provider_name)
        response.request_id = None if request_id is None else without(request_id, self._key.reveal())
        tell_no_key(response, self._key.reveal())
        response.rate_limits = rate_limits_of(answer.headers, call.config.provider_name)
        timed = call.streams and first is not None
        response.metrics = CallMetrics(
            endpoint=endpoint_of(call.url),
            status_code=answer.status,
            http_version=answer.http_version,
            attempts=self._attempts,
            request_bytes=len(call.body),
            response_bytes=self._decoder.response_bytes,
            time_to_first_token_ms=(first - self._sent) * 1e3 if timed and first else None,
            streamed_internally=call.streamed and not call.streams,
            tokens_per_second=response.usage.completion_tokens / (now - first) if timed and first and now > first else None,
        )
        return response

    def __del__(self) -> None:
        self._stop()


def primed(cursor: Generator[Any]) -> Generator[Any]:
    """Run a cursor to its first bare yield, so that its ``finally`` runs however soon it is dropped."""
    next(cursor)
    return cursor


def aprimed(cursor: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
    """Do what ``primed`` does, unknown to the loop: its hook would run the ``finally`` in a task, some iterations late."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        cursor.asend(None).send(None)
    except StopIteration:
        pass
    finally:
        sys.set_asyncgen_hooks(*hooks)
    return cursor


class _Stream(_StreamState, Generic[Item, T]):
    """Send a call and read its answer."""

    response: LLMResponse[T] | None

    def __iter__(self) -> Iterator[Item]:
        self._claim_iteration()
        return primed(self._cursor())

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def finish(self) -> LLMResponse[T]:
        """Read to the end and return the whole answer."""
        self._open()
        self._items = None  # an iteration that begins after this has nothing left to give
        while self._more() is not None:
            pass
        return self._whole()

    def close(self) -> None:
        """End the request at the server; from anywhere, also while somebody else is waiting for text."""
        self._stop()

    def _cursor(self) -> Generator[Any]:
        try:
            yield None
            self._open()
            items = self._first_items()
            while items is not None:
                for item in items:
                    yield item
                items = self._more()
            for item in self._last_items():
                yield item
        finally:
            self._stop()

    def _open(self) -> None:
        """Send the request and wait for the first content; failures until then are retried."""
        if self._state != "new":
            return
        self._begin()
        try:
            error = self._try()
            if error is not None and self._may_retry(error):
                error = self._retry(error)
        except BaseException as other:
            self._left(other)
            raise
        self._opened(error)

    def _retry(self, first: LLMError) -> LLMError | None:
        try:
            self._retries().run(self._attempt, self._sleep, first)
        except LLMError as error:
            return self._failed(error)  # one that ended the wait between two tries is not complete yet
        return None

    def _attempt(self) -> None:
        error = self._try()
        if error is not None:
            raise error

    def _try(self) -> LLMError | None:
        """Send the request once and read its first content; return what went wrong."""
        try:
            self._answer = self._begin_attempt() or self._send()
            if self._refused():
                raise self._status_error(self._error_body())
            self._decoder.begin(self._answer.headers)
            self._items = self._read_on()
        except LLMError as error:
            return self._hung_up(error)
        return None

    def _hung_up(self, error: LLMError) -> LLMError:
        """Leave the answer that failed, and complete the error."""
        if self._answer is not None:
            self._answer.close()
        return self._failed(error)

    def _send(self) -> Any:
        return self._shared.pool().open(self._request, self._clock)

    def _request(self) -> Request:
        return self._signed(ask_key(self._call.config))

    def _sleep(self, seconds: float) -> None:
        self._shared.pool().sleep(self._clock, seconds)

    def _error_body(self) -> bytes:
        body = b""
        try:
            while len(body) < MAX_ERROR_BODY and (data := self._answer.read()):
                body += data
        except LLMError:
            pass  # what the status says is worth more than how its body ended
        return body

    def _more(self) -> list[Any] | None:
        """Read until there is something new; None at the end."""
        if not self._claim_read():
            return None
        items = None
        try:
            items = self._read_on()
        except LLMError as error:
            self._ended(self._hung_up(error))
        except BaseException as other:
            self._left(other)
            raise
        finally:
            self._reading = False
            if items is None or self._state == "over":  # closed by somebody else between two waits, perhaps
                self._left(None)
        return items

    def _read_on(self) -> list[Any] | None:
        decoder, answer = self._decoder, self._answer
        while not decoder.over:
            try:
                data = answer.read()
            except LLMError as error:
                data = self._lost(error)
            items = self._decode(data)
            if items or decoder.progress:
                return items
        data = b""  # it may hold the key, said back, which would be in a traceback's locals
        self._finish()
        return None


class _AsyncStream(_StreamState, Generic[Item, T]):
    """Send a call and read its answer, awaiting."""

    response: LLMResponse[T] | None

    def __aiter__(self) -> AsyncIterator[Item]:
        self._claim_iteration()
        return aprimed(self._cursor())

    async def __aenter__(self) -> Self:
        await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def finish(self) -> LLMResponse[T]:
        """Read to the end and return the whole answer."""
        await self._open()
        self._items = None  # an iteration that begins after this has nothing left to give
        while await self._more() is not None:
            pass
        return self._whole()

    async def aclose(self) -> None:
        """End the request at the server; from anywhere, also while somebody else is waiting for text."""
        self._stop()

    async def _cursor(self) -> AsyncGenerator[Any]:
        try:
            yield None
            await self._open()
            items = self._first_items()
            while items is not None:
                for item in items:
                    yield item
                items = await self._more()
            for item in self._last_items():
                yield item
        finally:
            self._stop()

    async def _open(self) -> None:
        """Send the request and wait for the first content; failures until then are retried."""
        if self._state != "new":
            return
        self._begin()
        try:
            error = await self._try()
            if error is not None and self._may_retry(error):
                error = await self._retry(error)
        except BaseException as other:
            self._left(other)
            raise
        self._opened(error)

    async def _retry(self, first: LLMError) -> LLMError | None:
        try:
            await self._retries().arun(self._attempt, self._sleep, first)
        except LLMError as error:
            return self._failed(error)  # one that ended the wait between two tries is not complete yet
        return None

    async def _attempt(self) -> None:
        error = await self._try()
        if error is not None:
            raise error

    async def _try(self) -> LLMError | None:
        """Send the request once and read its first content; return what went wrong."""
        try:
            self._answer = self._begin_attempt() or await self._send()
            if self._refused():
                raise self._status_error(await self._error_body())
            self._decoder.begin(self._answer.headers)
            self._items = await self._read_on()
        except LLMError as error:
            return await self._hung_up(error)
        return None

    async def _hung_up(self, error: LLMError) -> LLMError:
        """Leave the answer that failed, and complete the error."""
        if self._answer is not None:
            await self._answer.aclose()
        return self._failed(error)

    async def _send(self) -> Any:
        return await self._shared.apool().aopen(self._request, self._clock)

    async def _request(self) -> Request:
        return self._signed(await ask_key_async(self._call.config))

    async def _sleep(self, seconds: float) -> None:
        await self._shared.apool().asleep(self._clock, seconds)

    async def _error_body(self) -> bytes:
        body = b""
        try:
            while len(body) < MAX_ERROR_BODY and (data := await self._answer.aread()):
                body += data
        except LLMError:
            pass  # what the status says is worth more than how its body ended
        return body

    async def _more(self) -> list[Any] | None:
        """Read until there is something new; None at the end."""
        if not self._claim_read():
            return None
        items = None
        try:
            items = await self._read_on()
        except LLMError as error:
            self._ended(await self._hung_up(error))
        except BaseException as other:
            self._left(other)
            raise
        finally:
            self._reading = False
            if items is None or self._state == "over":  # closed by somebody else between two waits, perhaps
                self._left(None)
        return items

    async def _read_on(self) -> list[Any] | None:
        decoder, answer = self._decoder, self._answer
        while not decoder.over:
            try:
                data = await answer.aread()
            except LLMError as error:
                data = self._lost(error)
            items = self._decode(data)
            if items or decoder.progress:
                return items
        data = b""  # it may hold the key, said back, which would be in a traceback's locals
        self._finish()
        return None


class TextStream(_Stream[str, T]):
    """Text as it comes: ``for text in stream`` or ``with stream``. Leaving early ends the request at the server.

    ``response`` is the whole answer once the stream has ended, and None until then.
    """


class AsyncTextStream(_AsyncStream[str, T]):
    """Text as it comes: ``async for text in stream`` or ``async with stream``. Leaving early ends the request at the server.

    ``response`` is the whole answer once the stream has ended, and None until then.
    """


class _EventState(_StreamState):
    """What differs where events are given out: the decoder, and that a failure is the last event but one."""

    _chat_decoder = EventDecoder
    _decoder: EventDecoder
    _failure: LLMError | None = None

    @property
    def parsed_so_far(self) -> Any:
        """What the text of choice 0 says so far, read as JSON that is still being written; None where it says nothing yet.

        Raises:
            LLMConfigurationError: The extra ``schema`` is not installed.
        """
        return partial_json(self._decoder.text_so_far()) if hasattr(self, "_decoder") else None

    def _decode(self, data: bytes) -> list[StreamEvent]:
        super()._decode(data)
        return self._decoder.events()

    def _tell(self, error: LLMError) -> None:
        if isinstance(error, LLMClosedError | LLMConfigurationError):
            raise error  # by the caller's own doing, not the call's failure
        self._failure = error

    def _last_items(self) -> list[StreamEvent]:
        """Return the events at the end; none where the stream was closed before it."""
        error, response = self._failure, self.response
        if error is not None:
            partial = error.partial or self._nothing()
            return [StreamEvent(StreamEventKind.ERROR, error=error), StreamEvent(StreamEventKind.DONE, response=partial)]
        if response is None:
            return []
        done = StreamEvent(StreamEventKind.DONE, response=response)
        if self._call.format is None or (response.tool_calls and response.parsed is None):  # calls come before the answer
            return [done]
        return [StreamEvent(StreamEventKind.STRUCTURED_OUTPUT, parsed=response.parsed), done]

    def _nothing(self) -> LLMResponse[Any]:
        """Return the response of a call that brought nothing."""
        response: LLMResponse[Any] = LLMResponse(text="")
        return response if self._answer is None else self._complete(response)

    def _whole(self) -> LLMResponse[Any]:
        if self._failure is not None:
            raise self._failure
        return super()._whole()


class EventStream(_EventState, _Stream[StreamEvent, T]):
    """Events as they come: ``for event in stream`` or ``with stream``. Leaving early ends the request at the server.

    The last event is DONE, unless the stream was closed before. What fails after the call was made is not raised but an ERROR
    event; ``finish`` raises it. ``response`` is the whole answer once the stream has ended well, and None until then.
    """


class AsyncEventStream(_EventState, _AsyncStream[StreamEvent, T]):
    """Events as they come: ``async for event in stream`` or ``async with stream``; see ``EventStream``."""
