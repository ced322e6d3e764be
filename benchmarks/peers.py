"""Reach the same endpoint through each peer, written as its documentation says, so that costs compare like with like.

A peer is a class made with a `Target`. It has those of the four methods that its library can do:

    call(model, tokens)      one whole answer, sync         stream(model, tokens)     one streamed answer, sync
    acall(model, tokens)     the same, async                astream(model, tokens)    the same, async

Each takes the model's name and `max_tokens`, and returns a `Received`. Libraries are imported only when their peer is
made: a process that measures one peer holds no other. All ask for the same, with the connection limits of openai.
"""

from typing import Any, NamedTuple

PROMPT = "Tell me the story of the quick brown fox."
MESSAGES = [{"role": "user", "content": PROMPT}]
MAX_CONNECTIONS, IDLE_CONNECTIONS = 1000, 100


class Target(NamedTuple):
    """What the peers talk to."""

    base_url: str  # ends in /v1
    api_key: str
    wire: str  # http1 | h2c | tls: what a peer that speaks HTTP/2 uses; the others speak HTTP/1.1. real: a real server


class Received(NamedTuple):
    """How much arrived: pieces of text that were not empty (1 for a whole answer), and their characters."""

    pieces: int
    characters: int


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
        pieces = characters = 0
        for text in self.llm.stream(PROMPT, model=model, max_tokens=tokens):
            pieces += 1
            characters += len(text)
        return Received(pieces, characters)

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        pieces = characters = 0
        async for text in self.llm.astream(PROMPT, model=model, max_tokens=tokens):
            pieces += 1
            characters += len(text)
        return Received(pieces, characters)


class OpenAIPeer:
    """The openai package, as it comes: HTTP/1.1."""

    def __init__(self, target: Target) -> None:
        import openai

        self.client = openai.OpenAI(api_key=target.api_key, base_url=target.base_url)
        self.aclient = openai.AsyncOpenAI(api_key=target.api_key, base_url=target.base_url)

    def call(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        answer: Any = self.client.chat.completions.create(**self.request(model, tokens))
        return Received(1, len(answer.choices[0].message.content))

    async def acall(self, model: str, tokens: int) -> Received:
        """Read one whole answer."""
        answer: Any = await self.aclient.chat.completions.create(**self.request(model, tokens))
        return Received(1, len(answer.choices[0].message.content))

    def stream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        pieces = characters = 0
        for chunk in self.client.chat.completions.create(**self.request(model, tokens), **STREAMED):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                pieces += 1
                characters += len(text)
        return Received(pieces, characters)

    async def astream(self, model: str, tokens: int) -> Received:
        """Read one stream."""
        pieces = characters = 0
        async for chunk in await self.aclient.chat.completions.create(**self.request(model, tokens), **STREAMED):
            if chunk.choices and (text := chunk.choices[0].delta.content):
                pieces += 1
                characters += len(text)
        return Received(pieces, characters)

    def request(self, model: str, tokens: int) -> Any:
        """Return what every call is given."""
        return {"model": model, "messages": MESSAGES, "max_tokens": tokens}


STREAMED: Any = {"stream": True, "stream_options": {"include_usage": True}}


class BarePeer:
    """What the two bare HTTP libraries share: a body from orjson, text out of orjson, and nothing checked."""

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

    def whole(self, body: bytes) -> Received:
        """Count a whole answer."""
        return Received(1, len(self.loads(body)["choices"][0]["message"]["content"]))


class Tally:
    """Count the text in an event stream, with the least work that is right for servers that end lines with LF."""

    def __init__(self, loads: Any) -> None:
        self.loads, self.rest, self.pieces, self.characters = loads, b"", 0, 0

    def feed(self, data: bytes) -> None:
        """Take what one read brought."""
        *events, self.rest = (self.rest + data).split(b"\n\n")
        for event in events:
            choices = self.loads(event[6:])["choices"] if event.startswith(b"data: {") else ()
            if choices and (text := choices[0]["delta"].get("content")):
                self.pieces += 1
                self.characters += len(text)

    def received(self) -> Received:
        """Return the count."""
        return Received(self.pieces, self.characters)


class HttpxPeer(BarePeer):
    """Bare httpx + orjson, HTTP/2 where the wire has it."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        import httpx

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


PEERS: dict[str, Any] = {"jazz_llm": JazzPeer, "openai": OpenAIPeer, "httpx": HttpxPeer, "aiohttp": AiohttpPeer}
