"""The driver: sockets, tasks and the end. What to do is said by ``session``; here it is done, and nothing waits on the loop.

The path of a chunk: ``_Generation._relay``, which reads the model server's stream -> ``_Client.send_chunk`` ->
``Chunks.message``, its JSON -> ``_Client._hand_over``, the socket; all at once. Only where the client has fallen behind does it
go through the ``Outbox`` and ``_Client._catch_up``. The model server is read on meanwhile: one slow client holds neither it nor
the others, and what waits for it is bounded (8 MiB, then 1008).
"""

from __future__ import annotations

import asyncio
import logging
import os
import traceback
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from websockets.asyncio.server import Server, ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode, Frame, Opcode
from websockets.protocol import State

from ..config import hide_key
from ..errors import LLMConfigurationError, LLMError, LLMTimeoutError
from ..types import LLMResponse
from . import protocol
from .access import PREFIX, check_access, is_loopback
from .calls import messages_of, options_of, seconds_of
from .loading import Loader, in_thread
from .outbox import MOST, Outbox
from .pages import Pages
from .protocol import Chunks, Code, Generate, Load
from .session import Loaded, Session, Step, Stop

if TYPE_CHECKING:
    from typing import Self

    from websockets.http11 import Request, Response
    from websockets.typing import Subprotocol

    from ..streams import AsyncTextStream

HOST, PORT = "127.0.0.1", 7562  # where the published client looks
_logger = logging.getLogger("jazz_llm")
# The library's own log holds headers and messages, and so tokens, keys and what people say: it has no place to go.
_SILENT = logging.Logger("jazz_llm.gateway.websockets", level=logging.CRITICAL + 1)  # noqa: LOG001  # of nobody else
_BUFFER = 32 * 2**10  # bytes that lie between us and the system's own buffer before a client counts as behind
_PATIENCE = 30.0  # seconds in which a client that is behind takes nothing at all
_CLOSING = 10.0  # seconds for it to read on, and see why it is closed
_LAST_WORDS = 0.4  # seconds for what runs to end, when the gateway does
_FAREWELL = 1.0  # seconds for clients to answer the closing of their sockets
_LONGEST_DETAIL = 2000  # characters


class Gateway:
    """Serve LLMs over one WebSocket while the ``async with`` block runs; jazz_llm.gateway says how to talk to it.

    Args:
        host: What to listen on. Anything but loopback needs a token.
        port: 0 for a free one.
        token: What clients have to know, if anything.
        allow_origins: Origins of web pages elsewhere that may use it, such as ``"https://example.org"``.
        config: A YAML file whose sections can be loaded by their names.

    Raises:
        LLMConfigurationError: An argument is wrong; the message names it.
    """

    def __init__(
        self,
        host: str = HOST,
        port: int = PORT,
        *,
        token: str | None = None,
        allow_origins: Iterable[str] = (),
        config: str | os.PathLike[str] | None = None,
    ) -> None:
        secret = hide_key(token)
        del token
        self._access = check_access(host, secret, allow_origins)
        self._port = port
        self._loader = Loader(config)
        self._pages = Pages()
        self._clients: set[_Client] = set()
        self._connections: WeakSet[ServerConnection] = WeakSet()
        self._server: Server | None = None
        self._ending: asyncio.Task[None] | None = None
        self._closed: asyncio.Future[None]

    @property
    def port(self) -> int:
        """The port that it listens on."""
        if self._server is None:
            raise LLMConfigurationError("The gateway does not run: use it as `async with Gateway() as gateway`.")
        return self._port

    @property
    def url(self) -> str:
        """Where its page is; a WebSocket is at the same place, ``ws://`` instead of ``http://``."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(self._access.host, self._access.host)  # noqa: S104  # compared
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    async def __aenter__(self) -> Self:
        await in_thread(_warm_up)
        self._closed = asyncio.get_running_loop().create_future()
        self._ending = None  # it may have run before
        self._server = await serve(
            self._serve,
            self._access.host or None,
            self._port,
            process_request=self._look_at,
            select_subprotocol=self._choose,
            compression=None,  # chunks are small, and it costs more than all the rest
            max_size=protocol.MAX_MESSAGE,
            write_limit=_BUFFER,
            server_header=None,
            create_connection=self._accept,  # type: ignore[arg-type]  # a class, it says, but it only calls it
            logger=_SILENT,
        )
        self._port = int(next(iter(self._server.sockets)).getsockname()[1])
        _logger.info("gateway: listening on %s", self.url)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()
        await self.wait_closed()

    def close(self) -> None:
        """Begin to end: what runs ends with INTERRUPT, then sockets close with 1001. Closing twice is fine."""
        if self._ending is None and self._server is not None:
            self._ending = asyncio.get_running_loop().create_task(self._end(self._server))

    async def wait_closed(self) -> None:
        """Wait until it has ended, by ``close``, a signal or a client's close message."""
        await asyncio.shield(self._closed)

    def _accept(self, *arguments: Any, **settings: Any) -> _Connection:
        """Make a connection, and remember it: the library does so only after the handshake, which may never come."""
        connection = _Connection(*arguments, **settings)
        self._connections.add(connection)
        return connection

    async def _end(self, server: Server) -> None:
        """End in order, and in any case within two seconds."""
        try:
            tasks = [task for client in list(self._clients) for task in client.stop()]
            if tasks:
                await asyncio.wait(tasks, timeout=_LAST_WORDS)
            for client in self._clients:
                client.flush()
            server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(asyncio.shield(server.wait_closed()), _FAREWELL)
            for connection in self._connections:
                if connection.state is not State.CLOSED:
                    connection.transport.abort()
            await server.wait_closed()
            self._loader.close()
        finally:
            _logger.info("gateway: closed")
            self._closed.set_result(None)

    # --- coming in ------------------------------------------------------------------------------------------------

    def _look_at(self, connection: ServerConnection, request: Request) -> Response | None:
        """Answer what is no WebSocket, or may not come in; None lets it in."""
        headers = request.headers
        hosts, origins = headers.get_all("Host"), headers.get_all("Origin")
        problem = self._access.problem(hosts[0] if len(hosts) == 1 else None, ",".join(origins) if origins else None)
        if problem:
            _logger.warning("gateway: refused a request: %s", problem)
            return connection.respond(403, f"{problem}\n")
        if request.method != "GET":
            return connection.respond(405, "GET, or a WebSocket.\n")
        if "websocket" not in ",".join(headers.get_all("Upgrade")).lower():
            return self._pages.answer(connection, request.path, hosts[0], origins[0] if origins else None)
        if not self._access.admits(next(iter(headers.get_all("Authorization")), None), _offers(headers)):
            _logger.warning("gateway: refused a client without the token")
            response = connection.respond(401, "The gateway needs its token.\n")
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        return None

    def _choose(self, _: ServerConnection, offers: Sequence[Subprotocol]) -> Subprotocol | None:
        """Return the subprotocol that said the token: a browser wants to hear one of those that it offered."""
        return next((name for name in offers if name.startswith(PREFIX) and self._access.admits(None, [name])), None)

    async def _serve(self, connection: ServerConnection) -> None:
        client = _Client(self, connection)
        connection.leaves = client.stop  # type: ignore[attr-defined]  # a _Connection
        self._clients.add(client)
        _logger.info("gateway: a client came (%d now)", len(self._clients))
        try:
            await client.run()
        finally:
            self._clients.discard(client)
            _logger.info("gateway: a client left (%d now)", len(self._clients))


class _Connection(ServerConnection):
    """One that tells of a client's close frame at once, and not when the socket is down: 10 s later, where much lies unread.

    And one that does not answer pings without end: the library writes each answer, whether those before are read or not.
    """

    leaves: Callable[[], object] | None = None

    def process_event(self, event: Any) -> None:
        super().process_event(event)
        kind = event.opcode if isinstance(event, Frame) else None
        if kind is Opcode.CLOSE and self.leaves is not None:
            self.leaves()
        elif kind is Opcode.PING and self.transport.get_write_buffer_size() > MOST:
            self.transport.abort()


class _Client:
    """One connection: its session, what runs for it, and what it has not taken yet."""

    def __init__(self, gateway: Gateway, connection: ServerConnection) -> None:
        self._gateway = gateway
        self._connection = connection
        self._loader = gateway._loader
        address = connection.remote_address
        self._session = Session(
            self._loader.providers, self._loader.needs, may_close=bool(address) and is_loopback(str(address[0]))
        )
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._outbox = Outbox()
        self._catching_up: asyncio.Task[None] | None = None
        self._stopping = self._hopeless = False

    async def run(self) -> None:
        """Do what the client asks until it leaves; then end what runs for it."""
        try:
            while True:
                data = await self._connection.recv(decode=False)
                for step in self._session.receive(data):
                    self._do(step)
                del data  # it may hold a key
        except ConnectionClosed:
            pass
        except Exception as error:
            _log_fault("connection", error)
            raise
        finally:
            await self._leave()

    def stop(self) -> list[asyncio.Task[Any]]:
        """End all that runs, and from now on whatever begins; return what to wait for."""
        self._stopping = True
        for task in self._running.values():
            task.cancel()
        return list(self._running.values())

    def flush(self) -> None:
        """Hand all that waits to the socket, however slow it is."""
        if self._catching_up is not None:
            self._catching_up.cancel()
        while self._outbox:
            self._hand_over(self._outbox.take())

    async def _leave(self) -> None:
        tasks = self.stop()
        if self._catching_up is not None:
            tasks.append(self._catching_up)
            self._catching_up.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._outbox.clear()
        if self._session.loaded is not None:
            await self._session.loaded.llm.aclose()

    # --- doing ----------------------------------------------------------------------------------------------------

    def _do(self, step: Step) -> None:
        if isinstance(step, bytes):
            self._send(step)
        elif isinstance(step, Stop):
            self._running[step.id].cancel()
        elif isinstance(step, Load):
            self._start(step, self._loader.load(step), partial(self._loaded, step))
        elif isinstance(step, Generate):
            generation = _Generation(self, step, self._session.loaded)
            self._start(step, generation.run(), generation.ended)
        else:
            self._gateway.close()

    def _start(self, request: Load | Generate, work: Coroutine[Any, Any, Any], ended: Any) -> None:
        """Begin a task; what ended it is told in its callback, which runs also for one that was cancelled before it began."""
        task = self._running[request.id] = asyncio.get_running_loop().create_task(work)
        task.add_done_callback(partial(self._ended, request, ended))
        if self._stopping:
            task.cancel()

    def _ended(self, request: Load | Generate, ended: Any, task: asyncio.Task[Any]) -> None:
        del self._running[request.id]
        self._session.finished(request)
        if task.cancelled():
            code, detail, outcome = Code.INTERRUPT, "Interrupted.", None
        elif (failure := task.exception()) is not None:
            code, detail, outcome = *_told(request, failure), getattr(failure, "partial", None)
        else:
            code, detail, outcome = Code.SUCCESS, "", task.result()
        self._send(ended(code, detail, outcome))

    def _loaded(self, request: Load, code: Code, detail: str, loaded: Loaded | None) -> bytes:
        if loaded is not None:
            self._session.use(request, loaded)
        return protocol.load_done(request.id, request.provider, code, detail)

    # --- sending --------------------------------------------------------------------------------------------------

    def _send(self, message: bytes) -> None:
        if self._keeps_up():
            self._hand_over(message)
        elif not self._hopeless:
            self._outbox.put(message)
            self._fall_behind()

    def send_chunk(self, chunks: Chunks, text: str) -> None:
        """Send a piece of text, or let it wait with what waits of the same generation."""
        if self._keeps_up():
            self._hand_over(chunks.message(text))
        elif not self._hopeless:
            self._outbox.put_chunk(chunks, text)
            self._fall_behind()

    def _hand_over(self, message: bytes) -> None:
        """Give a message to the socket, unless that is lost: of what is written then asyncio complains on stderr.

        ``broadcast`` is the library's name for a ``send`` that does not wait.
        """
        if not self._connection.transport.is_closing():
            broadcast((self._connection,), message, text=True)

    def _keeps_up(self) -> bool:
        return self._catching_up is None and self._connection.transport.get_write_buffer_size() <= _BUFFER

    def _fall_behind(self) -> None:
        if self._catching_up is None:
            self._catching_up = asyncio.get_running_loop().create_task(self._catch_up())
        elif self._outbox.hopeless:
            self._catching_up.cancel()
            self._give_up()

    async def _catch_up(self) -> None:
        """Send what waits, as fast as the client takes it."""
        with suppress(OSError):  # it has left
            while self._outbox:
                self._hand_over(self._outbox.take())
                if not await self._takes_it():
                    return self._give_up()
            self._catching_up = None

    async def _takes_it(self) -> bool:
        """Wait until the client has taken what it was sent; False where it takes nothing for a long time."""
        lies = self._connection.transport.get_write_buffer_size
        while True:
            before = lies()
            with suppress(TimeoutError):
                async with asyncio.timeout(_PATIENCE):
                    await self._connection.drain()
                    return True
            if lies() >= before:
                return False

    def _give_up(self) -> None:
        _logger.warning("gateway: closed a client that reads too slowly")
        self._hopeless = True
        self._outbox.clear()
        self.stop()
        self._catching_up = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        """Close the socket, in any case: the library waits without end for a client to take the close frame."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSING):
                await self._connection.close(CloseCode.POLICY_VIOLATION, "You read too slowly.")
        self._connection.transport.abort()


class _Generation:
    """One answer under way."""

    __slots__ = ("_client", "_loaded", "_request", "_stream")

    def __init__(self, client: _Client, request: Generate, loaded: Loaded | None) -> None:
        assert loaded is not None  # the session starts none before
        self._client = client
        self._request = request
        self._loaded = loaded
        self._stream: AsyncTextStream[Any] | None = None

    async def run(self) -> LLMResponse[Any]:
        """Ask, and send what comes as it comes."""
        request, llm = self._request, self._loaded.llm
        messages, options = messages_of(request, llm._config.provider), options_of(request, self._loaded)
        if not request.stream:
            response: LLMResponse[Any] = await llm.agenerate(messages, **options)
            return response
        self._stream = stream = llm.astream(messages, **options)
        return await self._relay(stream)

    async def _relay(self, stream: AsyncTextStream[Any]) -> LLMResponse[Any]:
        await self._first_content(stream)
        send, chunks, said = self._client.send_chunk, Chunks(self._request.id), False
        async for text in stream:
            send(chunks, text)
            said = True
        response = await stream.finish()
        if response.refusal and not said:
            send(chunks, response.refusal)
        return response

    async def _first_content(self, stream: AsyncTextStream[Any]) -> None:
        """Wait for the first content no longer than for any other: connecting and retries count too."""
        seconds = seconds_of(self._request)
        try:
            async with asyncio.timeout(seconds):
                await stream.__aenter__()
        except TimeoutError:
            raise LLMTimeoutError(f"No answer within {seconds:g} s.", phase="first_token") from None

    def ended(self, code: Code, detail: str, response: LLMResponse[Any] | None) -> bytes:
        """Return the done message; of what was interrupted it says what is known."""
        request = self._request
        if code is Code.INTERRUPT and self._stream is not None:
            response = self._stream._so_far()
        return protocol.generate_done(request.id, code, detail, streams=request.stream, response=response)


def _told(request: Load | Generate, error: BaseException) -> tuple[Code, str]:
    """Return the code and the sentence for what ended a request."""
    code = protocol.code_of(error)
    if isinstance(request, Load) and isinstance(error, LLMConfigurationError):
        code = Code.INVALID_PROVIDER
    if isinstance(error, LLMError):
        detail = error.message
        _logger.info("gateway: a %s ended with %s (%s)", request.kind, code, type(error).__name__)
    else:
        detail = f"The gateway failed ({type(error).__name__})."
        _log_fault(request.kind, error)
    return code, detail[:_LONGEST_DETAIL]


def _log_fault(what: str, error: BaseException) -> None:
    """Log a fault of ours: where it was, and no more, since frames and words may hold what people say."""
    place = traceback.extract_tb(error.__traceback__)[-1:]
    _logger.error("gateway: a %s failed: %s at %s", what, type(error).__name__, place)


def _offers(headers: Any) -> list[str]:
    return [name.strip() for line in headers.get_all("Sec-WebSocket-Protocol") for name in line.split(",")]


def _warm_up() -> None:
    """Import, and make, what the first call would hold the loop for."""
    import urllib.request

    import tenacity

    from ..transport import aio, tls

    del urllib, tenacity, aio
    with suppress(LLMError):  # said by the calls that need it
        tls.context_for(True, None, http2=True, trust_env=True)
