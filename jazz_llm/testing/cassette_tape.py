"""What a cassette holds: requests, and the answers that each of them got, in order. Pure: no file, no socket, no clock.

A :class:`Takes` collects while a recording runs; what it has becomes exchanges, which hold no secret. A :class:`Tape` gives
the answers out again. Both may be used from several threads at once.
"""

from __future__ import annotations

import base64
import difflib
import json
import re
import threading
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from .. import errors
from ..errors import LLMClosedError, LLMConfigurationError, LLMError
from .cassette_secrets import MARK, Secrets

if TYPE_CHECKING:
    from ..transport import Request

# What an error of the transports is made of, beside its class and its words.
_DETAILS = ("retryable", "maybe_processed", "phase", "status_code", "code", "retry_after")
_CODINGS = ("gzip", "x-gzip", "deflate")
_MOST = 64 * 2**20  # bytes of an answer after decompression; the package's own bound
_DIFFERENT_LINES = 12  # shown of a request that is not held
_WIDTH = 120


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request is known by; ``body`` is a JSON value, text, or None where there is none."""

    method: str
    url: str
    body: Any = field(repr=False)

    def key(self) -> str:
        """Return the same text for the same request, whatever the order of its fields."""
        return json.dumps([self.method, self.url, self.body], sort_keys=True, ensure_ascii=False, default=str)

    def lines(self) -> list[str]:
        """Return the request for people, a field a line."""
        body = json.dumps(self.body, sort_keys=True, ensure_ascii=False, indent=2, default=str)
        return [f"{self.method} {self.url}", *body.splitlines()]


@dataclass(slots=True, kw_only=True)
class Answer:
    """What came back: times are seconds since the request was sent.

    ``status`` is None where nothing did. ``error`` is what ended it: class name and fields of an ``LLMError``. ``left`` says
    that whoever recorded it did not read to the end.
    """

    at: float = 0.0
    status: int | None = None
    http_version: str = ""
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    reads: list[tuple[float, bytes]] = field(default_factory=list, repr=False)
    error: dict[str, Any] | None = None
    left: bool = False

    def failure(self) -> LLMError | None:
        """Make the error anew, None where the answer ended well."""
        if self.error is None:
            return None
        details = {name: value for name, value in self.error.items() if name in _DETAILS}
        kind: type[LLMError] = getattr(errors, self.error["type"])
        return kind(self.error["message"], **details)


@dataclass(slots=True)
class Exchange:
    """A request and its answer."""

    asked: Asked
    answer: Answer


def asked_of(request: Request, secrets: Secrets) -> Asked:
    """Return what a request is known by, without secrets."""
    scheme, _, _ = request.origin
    url = secrets.url(f"{scheme}://{request.authority}{request.target}")
    return Asked(request.method, url, secrets.value(_body_of(request.body)))


def _body_of(body: bytes) -> Any:
    try:
        return json.loads(body) if body else None
    except (ValueError, RecursionError):
        pass
    try:
        return body.decode()
    except UnicodeDecodeError:
        return base64.b64encode(body).decode()


def readable(request: Request) -> Request:
    """Return the request without asking for a coding in which its answer could not be searched: ``llm.client`` may do so."""
    headers = tuple(
        (name, "gzip, deflate" if name == "accept-encoding" and "," in value else value) for name, value in request.headers
    )
    return replace(request, headers=headers)


class Take:
    """One request being recorded; ``at`` is in seconds since it was sent, everywhere."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answer = Answer(left=True)

    def head(self, at: float, status: int, http_version: str, headers: Mapping[str, str]) -> None:
        """Take the head of the answer."""
        self.answer.at, self.answer.status, self.answer.http_version = at, status, http_version
        self.answer.headers = dict(headers)

    def read(self, at: float, data: bytes) -> None:
        """Take one read, b"" at the end."""
        if data:
            self.answer.reads.append((at, data))
        else:
            self.ended()

    def ended(self) -> None:
        """Take note that nothing more is wanted, or to come."""
        self.answer.left = False

    def failed(self, at: float, error: LLMError) -> None:
        """Take what ended the answer, unless it was the user who did."""
        if isinstance(error, LLMClosedError):
            return
        details = {name: value for name in _DETAILS if (value := getattr(error, name, None)) is not None}
        self.answer.error = {"at": at, "type": type(error).__name__, "message": error.message, **details}
        self.answer.left = False


class Takes:
    """All requests of a recording, in the order in which they were sent."""

    def __init__(self) -> None:
        self._takes: list[Take] = []

    def begin(self, request: Request) -> Take:
        """Note that a request is sent."""
        take = Take(request)
        self._takes.append(take)  # one step, so threads need no lock
        return take

    def exchanges(self) -> list[Exchange]:
        """Return what has been recorded so far, without any secret that was met in any of it."""
        takes, secrets = list(self._takes), Secrets()
        for take in takes:
            secrets.learn_request(take.request.headers)
            secrets.learn_answer(take.answer.headers)
        return [Exchange(asked_of(take.request, secrets), _cleaned(take, secrets)) for take in takes]


def _cleaned(take: Take, secrets: Secrets) -> Answer:
    answer = take.answer
    headers, reads = _decompressed(answer.headers, list(answer.reads))
    reads = _regrouped(reads, whole=take.request.whole)
    clean = secrets.reads([data for _, data in reads])
    error = answer.error
    return Answer(
        at=round(answer.at, 3),
        status=answer.status,
        http_version=answer.http_version,
        headers=secrets.headers(headers),
        reads=[(round(at, 3), data) for (at, _), data in zip(reads, clean, strict=True)],
        error=error and {**error, "at": round(error["at"], 3), "message": secrets.text(error["message"], cut=True)},
        left=answer.left,
    )


Reads = list[tuple[float, bytes]]


def _decompressed(headers: dict[str, str], reads: Reads) -> tuple[dict[str, str], Reads]:
    """Undo what would hide text, and so a secret, from whoever looks at the file.

    Damaged bytes, and those of a coding that nobody asked for, are not kept, only that they were.
    """
    coding = headers.get("content-encoding", "").strip().lower()
    if coding in ("", "identity"):
        return headers, reads
    if coding not in _CODINGS:
        return headers, [(at, b"(unreadable)") for at, _ in reads[:1]]
    stream, left = zlib.decompressobj(47), _MOST  # 32 + 15: gzip or zlib by its header
    plain: Reads = []
    try:
        for at, data in reads:
            plain.append((at, stream.decompress(data, left)))
            left -= len(plain[-1][1])
            if not left or stream.unconsumed_tail:
                raise zlib.error("too large")
    except zlib.error:
        return headers, [(reads[0][0], b"(damaged)")]
    return {name: value for name, value in headers.items() if name != "content-encoding"}, plain


def _regrouped(reads: Reads, *, whole: bool) -> Reads:
    """Join the reads of a whole answer; of a stream those that end within an event, each to the one that ends it.

    So no character, and no line but a last one, is cut by two reads.
    """
    grouped: Reads = []
    held: list[bytes] = []
    last = 0.0
    for last, data in reads:
        end = 0 if whole else _end_of_events(held[-1][-3:] if held else b"", data)
        if end > 0:
            grouped.append((last, b"".join([*held, data[:end]])))
            held = []
        held += [data[end:]] if data[end:] else []
    return [*grouped, (last, b"".join(held))] if held else grouped


def _end_of_events(before: bytes, data: bytes) -> int:
    """Return where the last event that is whole ends in ``data``, 0 where none does; ``before`` came before it."""
    joined = before + data
    ends = [joined.rfind(gap) + len(gap) for gap in (b"\n\n", b"\r\n\r\n", b"\r\r") if gap in joined]
    return max(0, max(ends, default=0) - len(before))


class Tape:
    """Exchanges to be given out again; ``name`` is what errors call it."""

    def __init__(self, name: str, exchanges: Sequence[Exchange]) -> None:
        self._name = name
        self._exchanges = exchanges
        self._lock = threading.Lock()
        self._given: dict[str, int] = {}
        self._answers: dict[str, list[Answer]] = {}
        for exchange in exchanges:
            self._answers.setdefault(exchange.asked.key(), []).append(exchange.answer)
        # What was stripped may be anything now, a key above all.
        self._patterns = {key: _pattern_of(key) for key in self._answers if MARK in key}

    def answer_to(self, asked: Asked) -> Answer:
        """Return the next answer to a request.

        Raises:
            LLMConfigurationError: There is none; it says what differs from the nearest request that there is.
        """
        key = asked.key()
        if key not in self._answers:
            key = next((known for known, pattern in self._patterns.items() if pattern.fullmatch(key)), key)
        if key not in self._answers:
            raise LLMConfigurationError(f"{self._name} holds no answer to this request. {self._nearest(asked)}{_AGAIN}")
        with self._lock:
            position = self._given[key] = self._given.get(key, -1) + 1
        answers = self._answers[key]
        if position >= len(answers):
            times = "once" if len(answers) == 1 else f"{len(answers)} times"
            raise LLMConfigurationError(
                f"{self._name} holds this request {times}, and this is time {position + 1}: {asked.method} {asked.url}.{_AGAIN}"
            )
        return answers[position]

    def left(self, answer: Answer) -> LLMConfigurationError:
        """Say that an answer goes no further, since whoever recorded it read no further."""
        came = "before an answer came" if answer.status is None else f"after {len(answer.reads)} of its reads"
        return LLMConfigurationError(f"{self._name}: when it was recorded, the call was left {came}.{_AGAIN}")

    def _nearest(self, asked: Asked) -> str:
        if not self._exchanges:
            return "It is empty."
        lines = asked.lines()
        held = [exchange.asked.lines() for exchange in self._exchanges]
        near = max(range(len(held)), key=lambda i: _likeness(held[i], lines))
        return f"The nearest of its {len(held)} requests, number {near + 1}, differs in:\n{_difference(held[near], lines)}"


_AGAIN = '\nTo record again, delete the file and run with mode="once".'


def _pattern_of(key: str) -> re.Pattern[str]:
    """Return a pattern in which a mark is anything within one text of JSON.

    Each part is taken where it comes first, and for good: a text with a few marks would else be tried in all ways.
    """
    first, *parts = map(re.escape, key.split(MARK))
    anything = r'(?:[^"\\]|\\.)+?'
    return re.compile(
        first + "".join(f"(?>{anything}{part})" for part in parts[:-1]) + "".join(anything + part for part in parts[-1:])
    )


def _likeness(one: list[str], other: list[str]) -> tuple[float, float]:
    """Return how much of two requests is the same: of the lines, then of the characters; of long ones, of their beginnings."""
    lines = difflib.SequenceMatcher(None, one[:2000], other[:2000])
    characters = difflib.SequenceMatcher(None, "\n".join(one)[:100_000], "\n".join(other)[:100_000])
    return lines.ratio(), characters.quick_ratio()


def _difference(old: list[str], new: list[str]) -> str:
    """Return the lines that differ, each cut to where it does; none that differs in what was stripped alone."""
    stripped = {line: _pattern_of(line) for line in old if MARK in line}
    new = [next((line for line, pattern in stripped.items() if pattern.fullmatch(asked)), asked) for asked in new]
    shown: list[str] = []
    for tag, i1, i2, j1, j2 in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if tag != "equal":
            for was, now in zip_longest(old[i1:i2], new[j1:j2]):
                at = _same_until(was or "", now or "")
                shown += [f"  {sign} {_cropped(line, at)}" for sign, line in (("-", was), ("+", now)) if line is not None]
    more = len(shown) - _DIFFERENT_LINES
    return "\n".join([*shown[:_DIFFERENT_LINES], *([f"  ... and {more} lines more"] if more > 0 else [])])


def _same_until(one: str, other: str) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _cropped(line: str, at: int) -> str:
    begin = max(0, at - _WIDTH // 3) if len(line) > _WIDTH else 0
    part = line[begin : begin + _WIDTH]
    return ("..." if begin else "") + part + ("..." if begin + len(part) < len(line) else "")
