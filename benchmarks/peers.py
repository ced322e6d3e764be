"""Reach the same endpoint through each peer, written as its documentation says, so that costs compare like with like.

A peer is a class made with a `Target`. It has those of the four methods that its library can do:

    call(model, tokens)      one whole answer, sync         stream(model, tokens)     one streamed answer, sync
    acall(model, tokens)     the same, async                astream(model, tokens)    the same, async

Each takes the model's name and `max_tokens`, and returns a `Received`. Libraries are imported only when their peer is
made: a process that measures one peer holds no other. All ask for the same, with the connection limits of openai.
`floor.py` has one more peer: code with no features, to show how far all others are from what Python can do.
"""

import importlib
import os
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

PROMPT = "Tell me the story of the quick brown fox."
MESSAGES = [{"role": "user", "content": PROMPT}]
MAX_CONNECTIONS, IDLE_CONNECTIONS = 1000, 100
STREAM_WINDOW, CONNECTION_WINDOW = 2**20, 2**24  # where a library asks to be told
STREAMED: Any = {"stream": True, "stream_options": {"include_usage": True}}
ROOT = Path(__file__).resolve().parent.parent
# litellm needs openai 2, which cannot be beside openai 3; `python -m benchmarks.prepare` puts both here.
LITELLM_FOLDER = ROOT / "build" / f"litellm-{sys.version_info[0]}.{sys.version_info[1]}"


class Target(NamedTuple):
    """What the peers talk to."""

    base_url: str  # ends in /v1
    api_key: str
    wire: str  # http1 | h2c | tls: what a peer that speaks HTTP/2 uses; the others speak HTTP/1.1. real: a real server


class Received(NamedTuple):
    """How much arrived: pieces of text that were not empty (1 for a whole answer), and their characters."""

    pieces: int
    characters: int
    first: float = 0.0  # what the clock said when the first piece was there


# --- SDKs ---


class JazzPeer:
    """jazz_llm, through its public API."""

    def __init__(self, target: Target) -> None:
        from jazz_llm import OpenAICompatibleLLM

        # Left out but for h2c, so that what is measured is what users get.
        options: dict[str, Any] = {"http2": "prior_knowledge"} if target.wire == "h2c" else {}
        self.llm = OpenAICompatibleLLM("bench", api_key=target.api_key, base_url=target.base_url, **options)

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return Received(1, len(self.llm.generate(PROMPT, model=model, max_tokens=tokens).text))

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return Received(1, len((await self.llm.agenerate(PROMPT, model=model, max_tokens=tokens)).text))

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        stream = iter(self.llm.stream(PROMPT, model=model, max_tokens=tokens))
        pieces, characters, first = 1, len(next(stream)), perf_counter()
        for text in stream:
            pieces += 1
            characters += len(text)
        return Received(pieces, characters, first)

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        stream = aiter(self.llm.astream(PROMPT, model=model, max_tokens=tokens))
        pieces, characters, first = 1, len(await anext(stream)), perf_counter()
        async for text in stream:
            pieces += 1
            characters += len(text)
        return Received(pieces, characters, first)


class OpenAIPeer:
    """The openai package, as it comes: HTTP/1.1."""

    def __init__(self, target: Target) -> None:
        import openai

        self.create = openai.OpenAI(api_key=target.api_key, base_url=target.base_url).chat.completions.create
        self.acreate = openai.AsyncOpenAI(api_key=target.api_key, base_url=target.base_url).chat.completions.create

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return whole(self.create(model=model, messages=MESSAGES, max_tokens=tokens))

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return whole(await self.acreate(model=model, messages=MESSAGES, max_tokens=tokens))

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        return count(self.create(model=model, messages=MESSAGES, max_tokens=tokens, **STREAMED))

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        return await acount(await self.acreate(model=model, messages=MESSAGES, max_tokens=tokens, **STREAMED))


class LiteLLMPeer:
    """litellm, as it comes: HTTP/1.1 (for OpenAI's protocol it calls the openai package)."""

    def __init__(self, target: Target) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import fetches a list of prices from GitHub
        try:
            import litellm
        except ImportError as error:
            raise ImportError(f"{error} (python -m benchmarks.prepare installs it)") from None

        self.completion, self.acompletion = litellm.completion, litellm.acompletion
        self.where = {"api_base": target.base_url, "api_key": target.api_key}

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return whole(self.completion(**self.request(model, tokens)))

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return whole(await self.acompletion(**self.request(model, tokens)))

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        return count(self.completion(**self.request(model, tokens), **STREAMED))

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        return await acount(await self.acompletion(**self.request(model, tokens), **STREAMED))

    def request(self, model: str, tokens: int) -> Any:
        """Return what every call is given."""
        return {"model": f"openai/{model}", "messages": MESSAGES, "max_tokens": tokens} | self.where


def whole(answer: Any) -> Received:
    """Count a whole answer of openai or litellm."""
    return Received(1, len(answer.choices[0].message.content))


def count(chunks: Iterator[Any]) -> Received:
    """Count the text of openai's or litellm's chunks."""
    pieces, characters, first = 0, 0, 0.0
    for chunk in chunks:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            pieces += 1
            characters += len(text)
            first = first or perf_counter()
    return Received(pieces, characters, first)


async def acount(chunks: AsyncIterator[Any]) -> Received:
    """Count the text of openai's or litellm's chunks."""
    pieces, characters, first = 0, 0, 0.0
    async for chunk in chunks:
        if chunk.choices and (text := chunk.choices[0].delta.content):
            pieces += 1
            characters += len(text)
            first = first or perf_counter()
    return Received(pieces, characters, first)


# --- HTTP libraries ---


class BarePeer:
    """What the bare HTTP libraries share: a body from orjson, text out of orjson, and nothing checked."""

    def __init__(self, target: Target) -> None:
        import orjson

        self.target, self.dumps, self.loads = target, orjson.dumps, orjson.loads
        self.url = target.base_url + "/chat/completions"
        self.headers = {"authorization": f"Bearer {target.api_key}", "content-type": "application/json"}
        if target.wire == "real" and target.base_url.startswith("http:"):
            # llama.cpp closes after each stream, though it promises keep-alive, and a bare client would run into that.
            self.headers["connection"] = "close"

    def body(self, model: str, tokens: int, **more: Any) -> bytes:
        """Return a request's body."""
        return self.dumps({"model": model, "messages": MESSAGES, "max_tokens": tokens} | more)

    def whole(self, body: Any) -> Received:
        """Count a whole answer."""
        return Received(1, len(self.loads(body)["choices"][0]["message"]["content"]))


class Tally:
    """Count the text in an event stream, with the least work that is right for servers that end lines with LF."""

    def __init__(self, loads: Any) -> None:
        self.loads, self.rest, self.pieces, self.characters, self.first = loads, b"", 0, 0, 0.0

    def feed(self, data: bytes) -> None:
        """Take what one read brought."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            choices = self.loads(event[6:])["choices"] if event.startswith(b"data: {") else ()
            if choices and (text := choices[0]["delta"].get("content")):
                self.pieces += 1
                self.characters += len(text)
        if not self.first and self.pieces:
            self.first = perf_counter()

    def received(self) -> Received:
        """Return the count."""
        return Received(self.pieces, self.characters, self.first)


class HttpxPeer(BarePeer):
    """Bare httpx + orjson, HTTP/2 where the wire has it."""

    module = "httpx"

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        httpx = importlib.import_module(self.module)
        limits = httpx.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=IDLE_CONNECTIONS)
        options: Any = {"http1": target.wire != "h2c", "http2": target.wire != "http1", "limits": limits, "timeout": 60}
        self.client = httpx.Client(headers=self.headers, **options)
        self.aclient = httpx.AsyncClient(headers=self.headers, **options)

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return self.whole(self.client.post(self.url, content=self.body(model, tokens)).content)

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        return self.whole((await self.aclient.post(self.url, content=self.body(model, tokens))).content)

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        tally = Tally(self.loads)
        with self.client.stream("POST", self.url, content=self.body(model, tokens, **STREAMED)) as response:
            for data in response.iter_bytes():
                tally.feed(data)
        return tally.received()

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        tally = Tally(self.loads)
        async with self.aclient.stream("POST", self.url, content=self.body(model, tokens, **STREAMED)) as response:
            async for data in response.aiter_bytes():
                tally.feed(data)
        return tally.received()


class Httpx2Peer(HttpxPeer):
    """Bare httpx2 (httpx as Pydantic goes on with it, what openai 3 uses) + orjson, HTTP/2 where the wire has it."""

    module = "httpx2"


class AiohttpPeer(BarePeer):
    """Bare aiohttp + orjson, HTTP/1.1 always."""

    session: Any = None

    async def opened(self) -> Any:
        """Return the session, which can only be made in a running loop."""
        if self.session is None:
            import aiohttp

            connector = aiohttp.TCPConnector(limit=MAX_CONNECTIONS)
            self.session = aiohttp.ClientSession(connector=connector, headers=self.headers)
        return self.session

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        session = await self.opened()
        async with session.post(self.url, data=self.body(model, tokens)) as response:
            return self.whole(await response.read())

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        tally, session = Tally(self.loads), await self.opened()
        async with session.post(self.url, data=self.body(model, tokens, **STREAMED)) as response:
            async for data in response.content.iter_any():
                tally.feed(data)
        return tally.received()


class PyreqwestPeer(BarePeer):
    """Bare pyreqwest (Rust's reqwest, in threads of its own, which are counted) + orjson, HTTP/2 where the wire has it."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        from pyreqwest.client import ClientBuilder, SyncClientBuilder

        self.client = self.built(SyncClientBuilder())
        self.aclient = self.built(ClientBuilder())

    def built(self, builder: Any) -> Any:
        """Return a client; its documentation asks to set HTTP/2's windows."""
        builder = builder.default_headers(self.headers).max_connections(MAX_CONNECTIONS)
        builder = builder.pool_max_idle_per_host(IDLE_CONNECTIONS).error_for_status(True)
        if certificate := os.environ.get("SSL_CERT_FILE"):
            builder = builder.add_root_certificate_pem(Path(certificate).read_bytes())
        if self.target.wire == "http1":
            return builder.build()
        builder = builder.http2_prior_knowledge() if self.target.wire == "h2c" else builder.http2(True)
        builder = builder.http2_initial_stream_window_size(STREAM_WINDOW)
        return builder.http2_initial_connection_window_size(CONNECTION_WINDOW).build()

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        request = self.client.post(self.url).body_bytes(self.body(model, tokens)).build()
        return self.whole(bytes(request.send().bytes()))

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        request = self.aclient.post(self.url).body_bytes(self.body(model, tokens)).build()
        return self.whole(bytes(await (await request.send()).bytes()))

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        tally = Tally(self.loads)
        with self.streamed(self.client, model, tokens) as response:
            while (data := response.body_reader.read_chunk()) is not None:
                tally.feed(bytes(data))
        return tally.received()

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        tally = Tally(self.loads)
        async with self.streamed(self.aclient, model, tokens) as response:
            while (data := await response.body_reader.read_chunk()) is not None:
                tally.feed(bytes(data))
        return tally.received()

    def streamed(self, client: Any, model: str, tokens: int) -> Any:
        """Return a request; as it comes it would collect 64 KB before it hands out the first token."""
        request = client.post(self.url).body_bytes(self.body(model, tokens, **STREAMED))
        return request.streamed_read_buffer_limit(0).build_streamed()


# --- All of them ---


def floor(target: Target) -> Any:
    """Make the peer that has no features."""
    from benchmarks.floor import FloorPeer

    return FloorPeer(target)


PEERS: dict[str, Any] = {
    "jazz_llm": JazzPeer,
    "openai": OpenAIPeer,
    "litellm": LiteLLMPeer,
    "httpx": HttpxPeer,
    "httpx2": Httpx2Peer,
    "aiohttp": AiohttpPeer,
    "pyreqwest": PyreqwestPeer,
    "floor": floor,
}


def environment_of(name: str) -> dict[str, str]:
    """Return the variables that a peer's process needs."""
    if name != "litellm" or not LITELLM_FOLDER.exists():
        return {}
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(LITELLM_FOLDER), os.environ.get("PYTHONPATH"))))}
