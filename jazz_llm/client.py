"""The class and its calls, twice, side by side: sync, and async with an ``a`` before its name.

The path of a chunk: ``transport`` reads -> ``Decoder.feed`` (response/decoder.py) returns the texts of that read -> the
cursor yields them. ``tests/test_parity.py`` proves that the two texts are one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, Unpack, overload

from .config import POOL_ARGUMENTS, ApiKey, Config, Secret, configure, hide_key, warn_of_risks
from .errors import LLMCapabilityError, LLMClosedError, LLMConfigurationError, LLMError, LLMStatusError
from .mock import MockAnswers, MockResponse
from .request import Call, ask_key, ask_key_async, endpoint_of, headers_of, prepare, prepare_models
from .response import MAX_ERROR_BODY, Decoder, error_from, inflated, rate_limits_of, redacted, request_id_of
from .response.models import ModelsDecoder
from .retry import Retries, RetryBudget, RetryPolicy
from .timing import Clock
from .transport import Request
from .transport.names import target_of
from .types import CallMetrics, GenerateOptions, LLMResponse, ModelInfo, T

if TYPE_CHECKING:
    import ssl
    from typing import Self

    import httpx

    from .transport.aio import AsyncPool
    from .transport.blocking import Pool
    from .transport.foreign import AsyncForeign, Foreign


class OpenAICompatibleLLM:
    """Talk to one OpenAI-compatible endpoint, synchronously and asynchronously.

    Args:
        model: The model's name as the server knows it.
        api_key: The key, or a function that returns it, asked once per attempt (an async one serves async calls only). None:
            the provider's own environment variable; local and unknown endpoints need none.
        base_url: Where the API is. None: the provider's, else ``OPENAI_BASE_URL``, else OpenAI. With or without ``/v1``.
        chat_endpoint: The path to add where ``base_url`` has no version in it.
        temperature, max_tokens, top_p, stop, seed: Sampling defaults, each sent only when not None.
        timeout: Seconds for connect, pool, write and read each, an ``httpx.Timeout``, or None for no limit. ``read`` is from
            the request being sent to the last byte of a whole answer; in a stream to the first content, then between contents.
        first_token_timeout: Seconds from the request being sent to the first content of a stream.
        deadline: Seconds for a whole call, retries and waits included.
        max_retries: How often a failed try is repeated; streams only before their first content.
        retry: How long to wait and what to retry.
        http2: True: HTTP/2 where TLS agrees on it. ``"prior_knowledge"``: HTTP/2 on plain http:// too.
        limits: Connections of each pool. None: 1000, of which 100 idle for 4 s.
        verify, cert, proxy, trust_env: As in httpx; a loopback target never goes through a proxy from the environment.
        max_response_bytes, max_event_bytes: Bounds, after decoding; beyond: ``LLMResponseTooLargeError``.
        default_headers, default_query: Added to every request.
        transport, async_transport: httpx transports to use instead of the pools.
        provider: A name of the registry. None: found from ``base_url``, else plain OpenAI.
        chat_template_kwargs, extra_body: Added to every request's body.

    Raises:
        LLMConfigurationError: An argument is wrong; the message names it.
    """

    def __init__(
        self,
        model: str,
        api_key: ApiKey | None = None,
        base_url: str | None = None,
        chat_endpoint: str = "/v1/chat/completions",
        *,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        stop: str | list[str] | None = None,
        seed: int | None = None,
        timeout: float | httpx.Timeout | None = 60.0,
        first_token_timeout: float | None = None,
        deadline: float | None = None,
        max_retries: int = 2,
        retry: RetryPolicy | None = None,
        http2: bool | Literal["prior_knowledge"] = True,
        limits: httpx.Limits | None = None,
        verify: bool | str | ssl.SSLContext = True,
        cert: str | tuple[str, ...] | None = None,
        proxy: str | None = None,
        trust_env: bool = True,
        max_response_bytes: int | None = 64 * 2**20,
        max_event_bytes: int | None = 16 * 2**20,
        default_headers: Mapping[str, str] | None = None,
        default_query: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        async_transport: httpx.AsyncBaseTransport | None = None,
        provider: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        arguments = {**locals(), "api_key": hide_key(api_key)}
        del arguments["self"], api_key
        self._config = configure(arguments)
        warn_of_risks(self._config)
        self._shared = _Shared(self._config)
        self._owns = True
        self._closed = False
        self._client: httpx.Client | None = None
        self._aclient: httpx.AsyncClient | None = None

    @classmethod
    def from_provider(cls, name: str, model: str, **arguments: Any) -> Self:
        """Make an instance for a provider of the registry: ``from_provider("groq", "llama-3.3-70b-versatile")``.

        Args:
            name: The provider's name there; it says where the API is, which variable holds the key and what differs.
            model: The model's name as the provider knows it.
            arguments: The constructor's others.

        Raises:
            LLMConfigurationError: The name is not in the registry (a near one is shown), or an argument is wrong.
        """
        return cls(model, provider=name or "", **arguments)  # None would be the constructor's word for "find out"

    # --- the calls ------------------------------------------------------------------------------------------------

    @overload
    def generate(self, messages: Any, *, response_format: type[T], **options: Unpack[GenerateOptions]) -> LLMResponse[T]: ...
    @overload
    def generate(
        self, messages: Any, *, response_format: Mapping[str, Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> LLMResponse[Any]: ...
    def generate(self, messages: Any, *, response_format: Any = None, **options: Unpack[GenerateOptions]) -> LLMResponse[Any]:
        """Return the whole answer.

        Args:
            messages: Text (one user message), or a sequence of ``Message``, OpenAI dicts or objects with role and content.
            response_format: Not in this version: ``LLMCapabilityError``.
            options: See ``GenerateOptions``; they win over the instance's.

        Raises:
            LLMError: See jazz_llm.errors for the tree.
        """
        return TextStream(self, self._prepared(messages, response_format, options, streams=False)).finish()

    @overload
    async def agenerate(
        self, messages: Any, *, response_format: type[T], **options: Unpack[GenerateOptions]
    ) -> LLMResponse[T]: ...
    @overload
    async def agenerate(
        self, messages: Any, *, response_format: Mapping[str, Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> LLMResponse[Any]: ...
    async def agenerate(
        self, messages: Any, *, response_format: Any = None, **options: Unpack[GenerateOptions]
    ) -> LLMResponse[Any]:
        """Do what ``generate`` does, awaiting."""
        return await AsyncTextStream(self, self._prepared(messages, response_format, options, streams=False)).finish()

    @overload
    def stream(self, messages: Any, *, response_format: type[T], **options: Unpack[GenerateOptions]) -> TextStream[T]: ...
    @overload
    def stream(
        self, messages: Any, *, response_format: Mapping[str, Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> TextStream[Any]: ...
    def stream(self, messages: Any, *, response_format: Any = None, **options: Unpack[GenerateOptions]) -> TextStream[Any]:
        """Return the answer as it comes: ``for text in llm.stream(...)``.

        The arguments are checked here; the request goes out at the first text that is asked for.
        """
        return TextStream(self, self._prepared(messages, response_format, options, streams=True))

    @overload
    def astream(self, messages: Any, *, response_format: type[T], **options: Unpack[GenerateOptions]) -> AsyncTextStream[T]: ...
    @overload
    def astream(
        self, messages: Any, *, response_format: Mapping[str, Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream[Any]: ...
    def astream(
        self, messages: Any, *, response_format: Any = None, **options: Unpack[GenerateOptions]
    ) -> AsyncTextStream[Any]:
        """Return the answer as it comes: ``async for text in llm.astream(...)``, no await."""
        return AsyncTextStream(self, self._prepared(messages, response_format, options, streams=True))

    def list_models(self) -> list[ModelInfo]:
        """Return the models that the server lists, each once, in its order; of a list in pages, the first.

        The request goes to ``models`` beside ``chat/completions``, or where the registry says, and keeps to all that a chat
        call does: key, headers, timeouts, deadline, retries. It is never answered by ``DEBUG_MOCK_RESPONSES``.

        Raises:
            LLMError: As for ``generate``; ``LLMResponseError`` where what comes is no list of models, ``LLMCapabilityError``
                where the provider is known to have none.
        """
        response: LLMResponse[list[ModelInfo]] = TextStream(self, prepare_models(self._config)).finish()
        return response.parsed or []

    async def alist_models(self) -> list[ModelInfo]:
        """Do what ``list_models`` does, awaiting."""
        response: LLMResponse[list[ModelInfo]] = await AsyncTextStream(self, prepare_models(self._config)).finish()
        return response.parsed or []

    # --- closing, copies, pools -----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close both pools, whatever loop used them and whatever it does now; closing twice is fine. A copy closes itself."""
        self._closed = True
        self._shared.end_calls(None if self._owns else self)
        if self._owns:
            self._shared.close()

    async def aclose(self) -> None:
        """Do what ``close`` does, and wait until nothing is left on this loop."""
        self.close()
        if self._owns:
            await self._shared.aclose()

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        self._check_open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def with_options(self, **changes: Any) -> OpenAICompatibleLLM:
        """Return a copy with other settings on the same pools; what the pools are made from cannot change in a copy."""
        if "api_key" in changes:
            changes["api_key"] = hide_key(changes["api_key"])
        unknown = sorted(changes.keys() - self._config.arguments.keys())
        if unknown:
            raise TypeError(f"with_options() got an unexpected keyword argument {unknown[0]!r}")
        fixed = sorted(changes.keys() & set(POOL_ARGUMENTS))
        if fixed:
            raise LLMConfigurationError(f"{fixed[0]} belongs to the pools, which a copy shares: make a new instance instead.")
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, _owns=False, _closed=self._closed, _client=None, _aclient=None)
        copy._config = configure({**self._config.arguments, **changes})
        return copy

    @property
    def client(self) -> httpx.Client:
        """An ``httpx.Client`` on the sync pool, for whatever else to ask of the host; the key goes to the base origin only."""
        if self._client is None:
            from .transport.httpx_clients import make_client

            self._client = make_client(self)
        return self._client

    @property
    def aclient(self) -> httpx.AsyncClient:
        """An ``httpx.AsyncClient`` on the async pool; see ``client``."""
        if self._aclient is None:
            from .transport.httpx_clients import make_aclient

            self._aclient = make_aclient(self)
        return self._aclient

    def __repr__(self) -> str:
        config = self._config
        return f"{type(self).__name__}(model={config.model!r}, url={endpoint_of(config.url)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._config.arguments)

    def _prepared(self, messages: Any, response_format: Any, options: Mapping[str, Any], *, streams: bool) -> Call:
        self._check_open()
        if response_format is not None:
            raise LLMCapabilityError("response_format: structured output is not in this version.")
        return prepare(self._config, messages, options, streams=streams)

    def _check_open(self) -> None:
        if self._closed or self._shared.closed:
            raise LLMClosedError("The client is closed.")


def _rebuild(cls: type[OpenAICompatibleLLM], arguments: dict[str, Any]) -> OpenAICompatibleLLM:
    return cls(**arguments)


class _Shared:
    """What an instance and its copies have in common: the pools, the retry budget, the mock's position, the calls under way."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pool: Pool | Foreign | None = None
        self._apool: AsyncPool | AsyncForeign | None = None
        self._calls: dict[Clock, OpenAICompatibleLLM] = {}
        self.budget = RetryBudget()
        self.mock = MockAnswers()
        self.closed = False

    def pool(self) -> Pool | Foreign:
        """Return the sync pool, made on first use, or what stands for it over a transport of the user's."""
        if self._pid != os.getpid():
            self._begin_anew()
        pool = self._pool
        return self._made("_pool") if pool is None else pool

    def apool(self) -> AsyncPool | AsyncForeign:
        """Return the async pool; see ``pool``."""
        if self._pid != os.getpid():
            self._begin_anew()
        pool = self._apool
        return self._made("_apool") if pool is None else pool

    def _made(self, name: Literal["_pool", "_apool"]) -> Any:
        from .transport.pools import make_apool, make_pool

        with self._lock:
            if getattr(self, name) is None:
                setattr(self, name, (make_pool if name == "_pool" else make_apool)(self._config))
            return getattr(self, name)

    def _begin_anew(self) -> None:
        """Leave to the parent process what is the parent's: this is its forked child."""
        self._pid, self._lock = os.getpid(), threading.Lock()
        pools, self._pool, self._apool = (self._pool, self._apool), None, None
        for pool in pools:
            if pool is not None:
                pool.abandon()

    def begin(self, clock: Clock, owner: OpenAICompatibleLLM) -> None:
        """Note a call under way."""
        self._calls[clock] = owner
        if owner._closed or self.closed:
            clock.interrupt("closed")

    def end(self, clock: Clock) -> None:
        """Forget a call that is over."""
        self._calls.pop(clock, None)

    def end_calls(self, owner: OpenAICompatibleLLM | None) -> None:
        """Interrupt the calls of one instance, or all."""
        for clock, theirs in list(self._calls.items()):
            if owner is None or theirs is owner:
                clock.interrupt("closed")

    def close(self) -> None:
        """Close both pools, and a sync transport of the user's."""
        self._close_sockets()
        if self._config.transport is not None:
            self._config.transport.close()

    async def aclose(self) -> None:
        """Close both pools, and the user's transports, and see the running loop's part of it through."""
        self.close()
        if self._apool is not None:
            await self._apool.aclose()
        if self._config.async_transport is not None:
            await self._config.async_transport.aclose()

    def _close_sockets(self) -> None:
        self.closed = True
        for pool in (self._pool, self._apool):
            if pool is not None:
                pool.close()

    def __del__(self) -> None:
        # Nobody can close these pools any more: do it quietly, before their sockets complain one by one.
        self._close_sockets()


class _StreamState:
    """What a stream of either colour keeps while it runs, and all that it does without waiting."""

    response: LLMResponse[Any] | None

    def __init__(self, llm: OpenAICompatibleLLM, call: Call) -> None:
        self.response = None
        self._llm = llm
        self._call = call
        self._shared = llm._shared
        self._clock: Clock  # of this call, from its beginning
        self._decoder: Decoder  # of the attempt under way
        self._answer: Any = None  # the transport's response of the attempt under way
        self._texts: list[str] | None = None  # what the first read with content brought
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

    def _begin_attempt(self) -> MockResponse | None:
        self._attempts += 1
        self._first_content = None
        self._answer = None
        self._decoder = self._new_decoder()
        self._sent = time.perf_counter()
        return self._shared.mock.next(self._call)

    def _new_decoder(self) -> Decoder:
        call, config = self._call, self._call.config
        decoder = Decoder if call.method == "POST" else ModelsDecoder
        return decoder(
            streams=call.streamed,
            choices=call.choices,
            provider=config.provider_name,
            echo=config.provider.echo if config.provider else (),
            prompt=call.prompt,
            max_response_bytes=config.max_response_bytes,
            max_event_bytes=config.max_event_bytes,
            statuses=config.retry.statuses,
        )

    def _signed(self, key: str | None) -> Request:
        self._key = Secret(key)
        call = self._call
        headers = headers_of(call, key)
        return Request(call.method, call.config.origin, target_of(call.url), headers, call.body, whole=not call.streamed)

    def _may_retry(self, error: LLMError) -> bool:
        return self._call.max_retries > 0 and self._retries().worth_it(error)

    def _retries(self) -> Retries:
        return Retries(self._call.config.retry, self._shared.budget, self._call.max_retries, self._clock.left_of_call)

    def _opened(self, error: LLMError | None) -> None:
        self._reading = False
        if error is not None:
            self._ended(error)
        elif self._state == "over" and self._answer is not None and self.response is None:
            self._answer.close()  # closed by somebody else just as the answer began

    def _first_texts(self) -> list[str] | None:
        texts, self._texts = self._texts, None
        return texts if self._state == "open" or self.response is not None else None

    def _claim_read(self) -> bool:
        """Begin to read on; False where there is nothing more."""
        if self._reading and self._state == "open":
            raise RuntimeError("Somebody else is reading this stream: one reader at a time.")
        self._reading = True  # first, as ``_stop`` sets the state first: so one of the two sees the other and closes
        if self._state == "over":
            self._reading = False
            self._close_answer()
            return False
        # The time that the caller took is not the server's: the wait starts anew.
        if self._decoder.finished:
            self._clock.tail()
        elif self._first_content is not None:
            self._clock.content()
        return True

    def _decode(self, data: bytes) -> list[str]:
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

    def _whole(self) -> LLMResponse[Any]:
        if self.response is None:
            raise LLMClosedError("The stream was closed before its end.")
        return self.response

    def _ended(self, error: LLMError) -> None:
        """Raise what ended the stream, unless its own ``close`` did."""
        self._reading = False
        self._stop()
        if self._clock.reason != "stopped" or not isinstance(error, LLMClosedError):
            raise error

    def _close_answer(self) -> None:
        if self._answer is not None:
            self._answer.close()

    def _stop(self) -> None:
        """End the request at the server, from wherever this is called; idempotent."""
        began, self._state = self._state == "open", "over"
        if not began:
            return
        self._shared.end(self._clock)
        if self._reading:  # the reader notices, and closes
            self._clock.interrupt("stopped")
        else:
            self._close_answer()

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
        body = inflated(body, self._answer.headers)
        if self._key.reveal() is not None:  # before it is cut to size, which could leave half a key
            body = body.replace(self._key.reveal().encode(), b"***")
        answer, config = self._answer, self._call.config
        name, statuses, url = config.provider_name, config.retry.statuses, endpoint_of(self._call.url)
        return error_from(answer.status, answer.headers, body, provider=name, statuses=statuses, url=url)

    def _complete(self, response: LLMResponse[Any]) -> LLMResponse[Any]:
        """Add what only the driver knows: times, headers, attempts."""
        now, answer, call, first = time.perf_counter(), self._answer, self._call, self._first_content
        response.latency_ms = (now - self._started) * 1e3
        response.request_id = request_id_of(answer.headers, call.config.provider_name)
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


def primed(cursor: Generator[str]) -> Generator[str]:
    """Run a cursor to its first bare yield, so that its ``finally`` runs however soon it is dropped."""
    next(cursor)
    return cursor


def aprimed(cursor: AsyncGenerator[str]) -> AsyncGenerator[str]:
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


class TextStream(_StreamState, Generic[T]):
    """Text as it comes: ``for text in stream`` or ``with stream``. Leaving early ends the request at the server.

    ``response`` is the whole answer once the stream has ended, and None until then.
    """

    response: LLMResponse[T] | None

    def __iter__(self) -> Iterator[str]:
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
        self._texts = None  # an iteration that begins after this has nothing left to give
        while self._more() is not None:
            pass
        return self._whole()

    def close(self) -> None:
        """End the request at the server; from anywhere, also while somebody else is waiting for text."""
        self._stop()

    def _cursor(self) -> Generator[str]:
        try:
            yield ""
            self._open()
            texts = self._first_texts()
            while texts is not None:
                for text in texts:  # noqa: UP028  # the async twin has no "yield from"
                    yield text
                texts = self._more()
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
        except BaseException:
            self._reading = False
            self._stop()
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
            if not 200 <= self._answer.status < 300 or self._answer.status == 204:
                raise self._status_error(self._error_body())
            self._decoder.begin(self._answer.headers)
            self._texts = self._read_on()
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

    def _more(self) -> list[str] | None:
        """Read until there is something new; None at the end."""
        if not self._claim_read():
            return None
        try:
            texts = self._read_on()
        except LLMError as error:
            self._ended(self._hung_up(error))
            return None
        except BaseException:
            self._reading = False
            self._stop()
            raise
        finally:
            self._reading = False
            if self._state == "over":  # closed by somebody else between two waits, perhaps
                self._close_answer()
        return texts

    def _read_on(self) -> list[str] | None:
        decoder, answer = self._decoder, self._answer
        while not decoder.over:
            try:
                data = answer.read()
            except LLMError as error:
                data = self._lost(error)
            texts = self._decode(data)
            if texts or decoder.progress:
                return texts
        self._finish()
        return None


class AsyncTextStream(_StreamState, Generic[T]):
    """Text as it comes: ``async for text in stream`` or ``async with stream``. Leaving early ends the request at the server.

    ``response`` is the whole answer once the stream has ended, and None until then.
    """

    response: LLMResponse[T] | None

    def __aiter__(self) -> AsyncIterator[str]:
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
        self._texts = None  # an iteration that begins after this has nothing left to give
        while await self._more() is not None:
            pass
        return self._whole()

    async def aclose(self) -> None:
        """End the request at the server; from anywhere, also while somebody else is waiting for text."""
        self._stop()

    async def _cursor(self) -> AsyncGenerator[str]:
        try:
            yield ""
            await self._open()
            texts = self._first_texts()
            while texts is not None:
                for text in texts:
                    yield text
                texts = await self._more()
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
        except BaseException:
            self._reading = False
            self._stop()
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
            if not 200 <= self._answer.status < 300 or self._answer.status == 204:
                raise self._status_error(await self._error_body())
            self._decoder.begin(self._answer.headers)
            self._texts = await self._read_on()
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

    async def _more(self) -> list[str] | None:
        """Read until there is something new; None at the end."""
        if not self._claim_read():
            return None
        try:
            texts = await self._read_on()
        except LLMError as error:
            self._ended(await self._hung_up(error))
            return None
        except BaseException:
            self._reading = False
            self._stop()
            raise
        finally:
            self._reading = False
            if self._state == "over":  # closed by somebody else between two waits, perhaps
                self._close_answer()
        return texts

    async def _read_on(self) -> list[str] | None:
        decoder, answer = self._decoder, self._answer
        while not decoder.over:
            try:
                data = await answer.aread()
            except LLMError as error:
                data = self._lost(error)
            texts = self._decode(data)
            if texts or decoder.progress:
                return texts
        self._finish()
        return None
