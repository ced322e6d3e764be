"""The class and its calls, twice, side by side: sync, and async with an ``a`` before its name.

A call is checked and made into bytes here (``request``), then sent and read by a stream (``streams``), also where a whole
answer is asked for. ``tests/test_parity.py`` proves that the two texts are one.
"""

from __future__ import annotations

import atexit
import inspect
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, overload

from .config import POOL_ARGUMENTS, ApiKey, Config, check_flag, configure, hidden, warn_of_risks
from .errors import LLMClosedError, LLMConfigurationError, LLMError
from .hooks import Hooks
from .mock import MockAnswers
from .request import Call, endpoint_of, on_time, prepare, prepare_embeddings, prepare_models
from .retry import RetryBudget, RetryPolicy
from .streams import AsyncEventStream, AsyncTextStream, EventStream, TextStream
from .timing import Clock
from .types import GenerateOptions, LLMResponse, ModelInfo, RunOptions, T

if TYPE_CHECKING:
    import ssl
    from typing import Self

    import httpx

    from .tools import Tool
    from .transport.aio import AsyncPool
    from .transport.blocking import Pool
    from .transport.foreign import AsyncForeign, Foreign

L = TypeVar("L", bound="OpenAICompatibleLLM")
_AT_ONCE = 8  # requests for embeddings that one call has under way


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
        chat_template_kwargs, extra_body: Added to every chat's body.
        hooks: Functions to be told of each call; see ``Hooks``.

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
        hooks: Hooks | Sequence[Hooks] | None = None,
    ) -> None:
        arguments = hidden(locals())
        del arguments["self"], api_key, default_headers, default_query  # a traceback would show them
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
        arguments = hidden(arguments)
        return cls(model=model, provider=name or "", **arguments)  # None would be the constructor's word for "find out"

    @classmethod
    def from_env(cls, prefix: str = "JAZZ_LLM__", **arguments: Any) -> Self:
        """Make an instance from the environment: ``JAZZ_LLM__MODEL``, ``JAZZ_LLM__SEED``, any argument that text can say.

        ``__`` leads to a part (``JAZZ_LLM__TIMEOUT__READ=9``, ``JAZZ_LLM__RETRY__INITIAL=1``,
        ``JAZZ_LLM__CHAT_TEMPLATE_KWARGS__ENABLE_THINKING=false``); what has parts can also be given whole, as JSON. Numbers,
        truths (true, 1, yes, on) and free parts are read as JSON where they parse, text stays text. Quotes around a value are
        taken off; a variable that is set to nothing is not set. Upper case stands for lower case, and in the name of a default
        header ``_`` for ``-``. Under a prefix that ends in ``__`` an unknown name is an error, under any other only one that
        is nearly a setting's.

        Operators have more names. ``ENDPOINT_URL`` and ``MODEL_API_URL`` are ``BASE_URL``, ``MODEL_NAME`` is ``MODEL``;
        ``REQUEST_TIMEOUT_SECONDS`` is the read of a whole answer, ``STREAM_TIMEOUT_SECONDS`` that of a stream; with
        ``STREAM_ENABLED=false`` the calls that stream raise ``LLMCapabilityError``, also those of copies and pickles.
        ``MODEL_NAME`` counts without a prefix too where nothing else names a model, ``MODEL_API_URL`` where nothing else
        names a URL or a provider; then, as for the constructor, ``OPENAI_BASE_URL`` and each provider's key variable.

        Args:
            prefix: What the variables begin with, such as ``"SPAKKY_VLLM__"``; "" for nothing.
            arguments: The constructor's; they win over the environment.

        Raises:
            LLMConfigurationError: A variable is not known (a near name is shown) or wrong, or contradicts another one, or
                nothing names a model. The message names the variable.
        """
        from .settings import gathered

        arguments = hidden(arguments)
        return gathered(_rebuild, cls, arguments, prefix)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str], section: str | None = None, **arguments: Any) -> Self:
        """Make an instance from a YAML file; the extra ``yaml`` brings the reader.

        The file names the constructor's arguments, or ``from_env``'s other names, in lower case, parts nested. A mapping at
        its top that is no setting is a section: it is laid over what else stands at the top, which all sections share.
        ``${NAME}`` in a text is filled in from the environment, the best way to give a key; ``${NAME:-default}`` has a default
        for a variable that is not set or empty, ``$${`` stands for ``${``. What is one variable and nothing else is read as in
        ``from_env``. The variables of ``from_env()`` win over the file.

        Args:
            path: The file: UTF-8, at most 1 MiB.
            section: The section's name. None: the one named ``default`` if there is one, else the top alone.
            arguments: The constructor's; they win over the environment and the file.

        Raises:
            LLMConfigurationError: PyYAML is missing, the file cannot be read or is no such YAML, a name is unknown (a near one
                is shown) or there twice, the section or a variable is missing, or a value is wrong. The message says where.
        """
        from .settings import gathered

        arguments = hidden(arguments)
        return gathered(_rebuild, cls, arguments, "JAZZ_LLM__", os.fspath(path), section)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain data: ``OpenAICompatibleLLM(**llm.to_dict())`` is the same but for secrets and objects.

        Every argument of the constructor is there, ``timeout``, ``retry`` and ``limits`` as mappings where objects were given
        (the constructor takes these too), but: the key; of headers, query, body and template arguments what is named like a
        secret or looks like one; a proxy's user and a certificate's password; transports, hooks and SSL contexts. That
        streams are switched off is not there, since no argument of the constructor says so; ``to_yaml`` keeps it.
        """
        from .settings import plain

        return plain(self._config)

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write what ``to_dict`` returns, as far as it is no default, to a file for ``from_yaml``; the key is never in it.

        Args:
            path: The file; one that is there is replaced.

        Raises:
            LLMConfigurationError: PyYAML is missing, the file cannot be written, or a setting is not plain data.
        """
        from .settings import plain, save

        known = inspect.signature(OpenAICompatibleLLM).parameters
        data = {name: value for name, value in plain(self._config).items() if value != known[name].default}
        save(path, data if self._config.streams else {**data, "stream_enabled": False})

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
            response_format: What the answer has to be: a pydantic model, a dataclass, a TypedDict, or a JSON schema as a dict;
                ``parsed`` of the answer is then an instance of it, or what the JSON says. It takes the extra ``schema``.
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

    @overload
    def stream_events(
        self, messages: Any, *, response_format: type[T], **options: Unpack[GenerateOptions]
    ) -> EventStream[T]: ...
    @overload
    def stream_events(
        self, messages: Any, *, response_format: Mapping[str, Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> EventStream[Any]: ...
    def stream_events(
        self, messages: Any, *, response_format: Any = None, **options: Unpack[GenerateOptions]
    ) -> EventStream[Any]:
        """Return all of the answer as it comes, as typed events: ``for event in llm.stream_events(...)``.

        The arguments are checked here; the request goes out at the first event that is asked for. What fails from then on is
        an ERROR event before the last one, DONE; only ``LLMClosedError`` and ``LLMConfigurationError`` are raised.
        """
        return EventStream(self, self._prepared(messages, response_format, options, streams=True))

    @overload
    def astream_events(
        self, messages: Any, *, response_format: type[T], **options: Unpack[GenerateOptions]
    ) -> AsyncEventStream[T]: ...
    @overload
    def astream_events(
        self, messages: Any, *, response_format: Mapping[str, Any] | None = None, **options: Unpack[GenerateOptions]
    ) -> AsyncEventStream[Any]: ...
    def astream_events(
        self, messages: Any, *, response_format: Any = None, **options: Unpack[GenerateOptions]
    ) -> AsyncEventStream[Any]:
        """Return all of the answer as it comes, as typed events: ``async for event in llm.astream_events(...)``, no await."""
        return AsyncEventStream(self, self._prepared(messages, response_format, options, streams=True))

    @overload
    def run_tools(
        self,
        messages: Any,
        tools: Sequence[Callable[..., Any] | Tool],
        max_turns: int = 10,
        *,
        response_format: type[T],
        **options: Unpack[RunOptions],
    ) -> LLMResponse[T]: ...
    @overload
    def run_tools(
        self,
        messages: Any,
        tools: Sequence[Callable[..., Any] | Tool],
        max_turns: int = 10,
        *,
        response_format: Mapping[str, Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> LLMResponse[Any]: ...
    def run_tools(
        self,
        messages: Any,
        tools: Sequence[Callable[..., Any] | Tool],
        max_turns: int = 10,
        *,
        response_format: Any = None,
        **options: Unpack[RunOptions],
    ) -> LLMResponse[Any]:
        """Call the model, run the tools that it calls, tell it what they gave, and call it again, until it calls none.

        The calls of one turn are run one after the other (``arun_tools``: together); an async function runs in a loop of its
        own. Text that a function returns goes to the model as it is, all else as JSON. What a function raises, a result that
        is not JSON, a tool that does not exist and arguments that do not fit are told to the model, and kept as ``error`` of
        the result; KeyboardInterrupt, CancelledError and ``LLMClosedError`` are not caught.

        Args:
            messages: As for ``generate``; they are not changed.
            tools: Functions, or ``Tool`` objects that have one.
            max_turns: How often the model is called at most.
            response_format: What the last answer has to be; see ``generate``.
            options: See ``GenerateOptions``. Times are for each call of the model. ``tool_choice`` is for the first turn: when
                a tool has run it is "auto" (but "none" stays), since "required" would never end.

        Returns:
            The last answer, with ``transcript`` (all that was said, this answer last: the ``messages`` of a next call) and
            ``tool_results``. Its usage and metrics are of the last call alone, nothing is summed.

        Raises:
            LLMToolCallError: The model still called tools in the last of ``max_turns``, or was cut short in a call.
            LLMError: As for ``generate``. From the second turn on ``.partial`` has the transcript, which can be taken up again.
        """
        from .tool_loop import ToolLoop

        loop = ToolLoop(messages, tools, max_turns, options)
        while loop.more():
            try:
                call = self._prepared(loop.transcript, response_format, loop.options, streams=False)
                response = TextStream[Any](self, call).finish()
            except LLMError as error:
                loop.failed(error)
                raise
            loop.run(response)
        return loop.response

    @overload
    async def arun_tools(
        self,
        messages: Any,
        tools: Sequence[Callable[..., Any] | Tool],
        max_turns: int = 10,
        *,
        response_format: type[T],
        **options: Unpack[RunOptions],
    ) -> LLMResponse[T]: ...
    @overload
    async def arun_tools(
        self,
        messages: Any,
        tools: Sequence[Callable[..., Any] | Tool],
        max_turns: int = 10,
        *,
        response_format: Mapping[str, Any] | None = None,
        **options: Unpack[RunOptions],
    ) -> LLMResponse[Any]: ...
    async def arun_tools(
        self,
        messages: Any,
        tools: Sequence[Callable[..., Any] | Tool],
        max_turns: int = 10,
        *,
        response_format: Any = None,
        **options: Unpack[RunOptions],
    ) -> LLMResponse[Any]:
        """Do what ``run_tools`` does, awaiting: the calls of one turn run together, functions that are not async in threads.

        Cancelling it ends the request, or cancels the tools that run; a thread cannot be, and runs on unheeded.
        """
        from .tool_loop import ToolLoop

        loop = ToolLoop(messages, tools, max_turns, options)
        while loop.more():
            try:
                call = self._prepared(loop.transcript, response_format, loop.options, streams=False)
                response = await AsyncTextStream[Any](self, call).finish()
            except LLMError as error:
                loop.failed(error)
                raise
            await loop.arun(response)
        return loop.response

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

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        batch_size: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> list[list[float]]:
        """Return the embedding of each text, in their order; one text, not in a list, gives a list of one.

        The requests go to ``embeddings`` beside ``chat/completions``, as many texts in each as the provider takes, one after
        the other (``aembed``: eight at once). They keep to all that a chat call does: key, headers, timeouts, retries; the
        deadline is for all of them together, and the first failure ends the rest. What the instance adds to the body of a
        chat is not sent, and ``DEBUG_MOCK_RESPONSES`` never answers.

        Args:
            texts: Each any text, "" too where the model takes it.
            model: The model's name; None: the instance's.
            dimensions: How many numbers each embedding is to have, where the model can be asked for fewer.
            batch_size: The most texts to send in one request; None: what the provider is known to take, else 512.
            extra_body: More for the body (``input_type``, ``user``, ...); it wins.

        Raises:
            LLMError: As for ``generate``; ``LLMResponseError`` where what comes is not one embedding of finite numbers for
                each text, ``LLMCapabilityError`` where the provider is known to have none.
        """
        self._check_open()
        calls = prepare_embeddings(
            self._config, texts, model=model, dimensions=dimensions, batch_size=batch_size, extra_body=extra_body
        )
        return [embedding for response in self._each(calls) for embedding in response.parsed or []]

    async def aembed(
        self,
        texts: str | Iterable[str],
        *,
        model: str | None = None,
        dimensions: int | None = None,
        batch_size: int | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> list[list[float]]:
        """Do what ``embed`` does, awaiting; of several requests at most eight at once."""
        self._check_open()
        calls = prepare_embeddings(
            self._config, texts, model=model, dimensions=dimensions, batch_size=batch_size, extra_body=extra_body
        )
        return [embedding for response in await self._aeach(calls) for embedding in response.parsed or []]

    def _each(self, calls: list[Call]) -> list[LLMResponse[Any]]:
        """Make calls with one deadline, one after the other."""
        began = time.monotonic()
        return [TextStream[Any](self, on_time(call, began)).finish() for call in calls]

    async def _aeach(self, calls: list[Call]) -> list[LLMResponse[Any]]:
        """Make calls with one deadline, some at once; what fails first ends the others, and is raised when they have ended."""
        import asyncio

        from .transport.alarm import running_loop

        loop = running_loop()
        began = time.monotonic()
        answers: dict[int, LLMResponse[Any]] = {}
        left = iter(enumerate(calls))

        async def work() -> None:
            for i, call in left:
                answers[i] = await AsyncTextStream[Any](self, on_time(call, began)).finish()

        workers = [loop.create_task(work()) for _ in calls[:_AT_ONCE]]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return [answers[i] for i in range(len(calls))]

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
        changes = hidden(changes)
        unknown = sorted(changes.keys() - self._config.arguments.keys())
        if unknown:
            raise TypeError(f"with_options() got an unexpected keyword argument {unknown[0]!r}")
        fixed = sorted(changes.keys() & set(POOL_ARGUMENTS))
        if fixed:
            raise LLMConfigurationError(f"{fixed[0]} belongs to the pools, which a copy shares: make a new instance instead.")
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__, _owns=False, _closed=self._closed, _client=None, _aclient=None)
        copy._config = replace(configure({**self._config.arguments, **changes}), streams=self._config.streams)
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
        config = self.__dict__.get("_config")
        if config is None:  # a traceback shows an instance whose arguments were wrong
            return f"<{type(self).__name__} that was not made>"
        return f"{type(self).__name__}(model={config.model!r}, url={endpoint_of(config.url)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._config.arguments, self._config.streams)

    def _prepared(self, messages: Any, response_format: Any, options: Mapping[str, Any], *, streams: bool) -> Call:
        self._check_open()
        schema = None
        if response_format is not None and response_format != {"type": "text"}:  # OpenAI's word for none
            from .schema import schema_of

            schema = schema_of(response_format)
        return prepare(self._config, messages, options, streams=streams, schema=schema)

    def _check_open(self) -> None:
        if self._closed or self._shared.closed:
            raise LLMClosedError("The client is closed.")


def _rebuild(cls: Callable[..., L], arguments: dict[str, Any], streams: Any) -> L:
    llm = cls(**arguments)
    if not check_flag("stream_enabled", streams):
        llm._config = replace(llm._config, streams=False)
    return llm


class _Shared:
    """What an instance and its copies have in common: the pools, the retry budget, the mock's position, the calls under way."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self.closed = False
        self._begin()
        _living.add(self)

    def _begin(self) -> None:
        self._lock = threading.Lock()
        self._pool: Pool | Foreign | None = None
        self._apool: AsyncPool | AsyncForeign | None = None
        self._calls: dict[Clock, OpenAICompatibleLLM] = {}
        self.budget = RetryBudget()
        self.mock = MockAnswers()

    def pool(self) -> Pool | Foreign:
        """Return the sync pool, made on first use, or what stands for it over a transport of the user's."""
        pool = self._pool
        return self._made("_pool") if pool is None else pool

    def apool(self) -> AsyncPool | AsyncForeign:
        """Return the async pool; see ``pool``."""
        pool = self._apool
        return self._made("_apool") if pool is None else pool

    def _made(self, name: Literal["_pool", "_apool"]) -> Any:
        from .transport.pools import make_apool, make_pool

        with self._lock:
            if getattr(self, name) is None:
                setattr(self, name, (make_pool if name == "_pool" else make_apool)(self._config))
            return getattr(self, name)

    def begin_anew(self) -> None:
        """Leave to the parent process what is the parent's, calls and locks too: this is its forked child."""
        for clock in list(self._calls):  # a finalizer may take one out meanwhile
            clock.disown()
        for pool in (self._pool, self._apool):
            if pool is not None:
                pool.abandon()
        self._begin()

    def rest(self) -> None:
        """Close the pools at the interpreter's end; a call that comes after this all the same opens its own."""
        if self._calls and threading.active_count() > 1:  # of daemon threads: the process's end is no error of theirs
            return
        pools, self._pool, self._apool = (self._pool, self._apool), None, None
        for pool in pools:
            if pool is not None:
                pool.close()

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
        if not self.closed:
            self._close_sockets()


# Global, since a forked child has to let go of its parent's connections before anything else runs in it: until its copies of
# their descriptors are closed, the server does not see what the parent closes. And at the interpreter's end pools have to be
# closed before it takes modules apart: the free-threaded one collects them later.
_living: weakref.WeakSet[_Shared] = weakref.WeakSet()


def _begin_anew_all() -> None:
    for shared in list(_living):
        shared.begin_anew()


def _rest_all() -> None:
    for shared in list(_living):
        shared.rest()


atexit.register(_rest_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew_all)
