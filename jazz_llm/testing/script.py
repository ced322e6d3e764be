"""What a test tells a ``FakeServer`` to answer next: its methods ``reply``, ``fail`` and ``break_off``, and what they do.

Each adds one step to the server's script, and each request takes the next step, a retry too; but a ``reply`` stays there until
a chat asks. When none is left the server answers as one without a script.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import orjson

from ..errors import LLMConfigurationError
from ..types import ToolCall
from .replies import DONE, MODEL, PLAIN_USAGE, Answer, dumped, event

if TYPE_CHECKING:
    from .server import FakeServer, Handler, Reply, Request

Fault = Literal["cut", "close", "truncate", "reset", "goaway", "stall", "garbage"]

_STREAM = {"content-type": "text/event-stream"}
_JSON = {"content-type": "application/json"}
_AHEAD = 0.05  # seconds that what was sent is ahead of a TCP reset, which on some systems throws away what is not yet read
_GARBAGE = b"\xff\x00this is neither HTTP/1.1 nor a frame of HTTP/2\r\n\r\n"


class Step(NamedTuple):
    """One step of a script."""

    handler: Handler
    only_chat: bool = False


class _Refusal(NamedTuple):
    """What ``fail`` was told."""

    status: int
    code: str | None
    body: Mapping[str, Any] | str | None
    headers: dict[str, str]
    after: Answer | None

    def object(self) -> Mapping[str, Any]:
        """Return it as JSON, which says the status where there is no word."""
        if isinstance(self.body, Mapping):
            return self.body
        message = f"The fake server was told to fail with {self.status}."
        return {"error": {"message": message, "type": "scripted", "param": None, "code": self.code or self.status}}

    def data(self) -> bytes:
        """Return it as the body of an answer."""
        return (self.body if isinstance(self.body, str) else dumped("body", self.object())).encode()


def step_for(script: deque[Step], request: Request) -> Handler | None:
    """Take the next step if it is for such a request."""
    if not script or (script[0].only_chat and not request.path.endswith("/chat/completions")):
        return None
    return script.popleft().handler


def reply(
    server: FakeServer,
    text: str | Sequence[str] = "",
    *,
    json: Any = None,
    tool_calls: Sequence[ToolCall | Mapping[str, Any]] = (),
    reasoning: str | None = None,
    usage: Mapping[str, Any] | str | None = PLAIN_USAGE,
    finish: str | None = None,
    delay: float | Sequence[float] = 0.0,
) -> None:
    """Answer the next chat, as a stream where it asks for one; for what it says see ``Answer``.

    ``delay``: seconds before each piece of a stream, or a list of them, whose last is for all pieces that follow; a whole
    answer comes after as much time as its stream would take.

    Raises:
        LLMConfigurationError: An argument is not what it should be; the message names it.
    """
    answer = Answer(text=text, json=json, tool_calls=tool_calls, reasoning=reasoning, usage=usage, finish=finish)
    delays = list(delay) if isinstance(delay, Sequence) else [delay]
    if not delays or not all(isinstance(seconds, int | float) and 0 <= seconds < float("inf") for seconds in delays):
        raise LLMConfigurationError("delay must be a number of seconds, or a list of them.")
    server._script.append(Step(partial(_say, answer, delays), only_chat=True))


def fail(
    server: FakeServer,
    status: int,
    *,
    retry_after: float | str | None = None,
    code: str | None = None,
    body: Mapping[str, Any] | str | None = None,
    headers: Mapping[str, str] | None = None,
    after: str | Sequence[str] | None = None,
) -> None:
    """Answer the next request with an HTTP status.

    Args:
        server: The server to tell.
        status: From 200 to 599.
        retry_after: Of the header ``retry-after``: seconds, or the text of a date.
        code: The error's word, such as "insufficient_quota".
        body: What to send in place of an OpenAI error object: JSON, or a text (a proxy's page).
        headers: More headers; they win.
        after: The text that a stream gives first, and then the error as an object in it; its status is 200 by then.

    Raises:
        LLMConfigurationError: ``status`` is none, ``body`` no JSON, or ``after`` no text.
    """
    if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
        raise LLMConfigurationError(f"status must be a number from 200 to 599, not {status!r}.")
    kind = {"content-type": "text/html"} if isinstance(body, str) else _JSON
    wait = {} if retry_after is None else {"retry-after": str(retry_after)}
    said = None if after is None else Answer(text=after)
    refusal = _Refusal(status, code, body, {**kind, **wait, **(headers or {})}, said)
    refusal.data()  # what is wrong is found here, not in the server's thread
    server._script.append(Step(partial(_refuse, refusal)))


def break_off(server: FakeServer, fault: Fault, *, after: str | Sequence[str] | None = None, error_code: int = 2) -> None:
    """Let the answer to the next request go wrong.

    Args:
        server: The server to tell.
        fault: What happens. ``cut``: the message ends too early, as if it were whole. ``close``: the connection is closed.
            ``truncate``: the same, over TLS without its close_notify. ``reset``: RST_STREAM; over HTTP/1.1 a TCP reset.
            ``goaway``: before an answer, GOAWAY for this and all later requests; in one, GOAWAY and the end of the
            connection; HTTP/2 only. ``stall``: nothing more comes. ``garbage``: bytes that are no HTTP.
        after: The text that is said before; of a whole answer the first half of its JSON. None: nothing, no status either.
        error_code: Of RST_STREAM and GOAWAY (RFC 9113, section 7); 2 is INTERNAL_ERROR.

    Raises:
        LLMConfigurationError: ``fault`` is none of these, or ``after`` no text.
    """
    if fault not in get_args(Fault):
        raise LLMConfigurationError(f"fault must be one of {', '.join(get_args(Fault))}, not {fault!r}.")
    said = None if after is None else Answer(text=after)
    server._script.append(Step(partial(_break, fault, said, error_code)))


async def _say(answer: Answer, delays: list[float], request: Request, reply: Reply) -> None:
    model = _asked(request).get("model", MODEL)
    chunks = answer.chunks(model)
    waits = [delays[min(i, len(delays) - 1)] for i in range(max(1, len(chunks)))]
    if not _streams(request):
        await asyncio.sleep(sum(waits))
        await reply.json(answer.whole(model))
        return
    await reply.start(200, _STREAM)
    for chunk, wait in zip(chunks, waits, strict=False):
        await asyncio.sleep(wait)
        await reply.send(event(chunk))
    for chunk in answer.ending(model):
        await reply.send(event(chunk))
    await reply.send(DONE)
    await reply.end()


async def _refuse(refusal: _Refusal, request: Request, reply: Reply) -> None:
    if refusal.after is not None and _streams(request):
        await _begin(refusal.after, request, reply)
        await reply.send(event(refusal.object()))
    else:
        data = b"" if refusal.status in {204, 304} else refusal.data()  # these have no body, and no length (RFC 9110, 8.6)
        length = {"content-length": str(len(data))} if data else {}
        await reply.start(refusal.status, {**length, **refusal.headers})
        await reply.send(data)
    await reply.end()


async def _break(fault: Fault, after: Answer | None, error_code: int, request: Request, reply: Reply) -> None:
    if after is not None:
        await _begin(after, request, reply)
    match fault:
        case "cut":
            if after is None:
                await reply.start(200, _STREAM if _streams(request) else _JSON)
            await reply.end()
        case "close" | "truncate":
            reply.close(close_notify=fault == "close")
        case "reset":
            await asyncio.sleep(0.0 if after is None else _AHEAD)
            reply.reset(error_code)
        case "goaway":
            _go_away(after is not None, error_code, request, reply)
        case "stall":
            await reply.cancelled()
        case "garbage":
            reply.raw(_GARBAGE)


def _go_away(begun: bool, error_code: int, request: Request, reply: Reply) -> None:
    reply.goaway(request.stream_id if begun else max(0, request.stream_id - 2), error_code)
    if begun:
        reply.close()


async def _begin(said: Answer, request: Request, reply: Reply) -> None:
    """Send a part of an answer."""
    model = _asked(request).get("model", MODEL)
    if _streams(request):
        await reply.start(200, _STREAM)
        await reply.send(b"".join(event(chunk) for chunk in said.chunks(model)))
    else:
        await reply.start(200, _JSON)
        whole = orjson.dumps(said.whole(model))
        await reply.send(whole[: len(whole) // 2])


def _asked(request: Request) -> dict[str, Any]:
    return request.json() if request.body else {}


def _streams(request: Request) -> bool:
    return bool(_asked(request).get("stream"))
