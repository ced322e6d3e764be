"""What must not be in a cassette, and taking it out of what goes in; pure.

Secret are the values of a request's headers but for the plain ones (keys, cookies, ids of organizations and projects), what the
server sets as a cookie or names as the account, fields and query parameters by their names, and what is shaped like a key or
an id of OpenAI's. Of headers nothing is kept but what ``KEPT_HEADERS`` lists.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..response import spans, without

#: Stands in a file where something was taken out.
MARK = "<stripped>"

# Shorter values may be words of any text ("EMPTY", "lm-studio"); a key that guards anything is longer.
_SHORTEST = 10

_PLAIN = frozenset(
    {
        *("accept", "accept-encoding", "accept-language", "connection", "content-type", "content-length", "host", "user-agent"),
        *("referer", "http-referer", "x-title"),  # the name of the app, as OpenRouter has it
    }
)

#: The headers of an answer that a file keeps: what the package reads of them, and what helps to talk to a provider's support.
KEPT_HEADERS = re.compile(
    r"content-(type|encoding)|location|retry-after(-ms)?|x-should-retry|.*error-?(type|code)|openai-(version|processing-ms)"
    r"|.*(ratelimit|tokenlimit).*|.*(request-?id|reqid|trace-?id|call-id|correlation-id|generation-id|inference-id)|cf-ray"
)

_ACCOUNT = re.compile(r"organi[sz]ation|project|account")
_NAMES = (
    r"(?:api|access|secret|private|subscription)[-_]?key|(?:access|auth|bearer|id|refresh|session)[-_]?token"
    r"|secret|password|authorization|credentials?|cookie"
)
_FIELD = re.compile(rf"(?:.*[-_.])?(?:{_NAMES})|token", re.IGNORECASE)
_PARAMETER = re.compile(rf"([?&](?:[^=&]*(?:{_NAMES})|key|token|code|sig(?:nature)?)=)[^&]*", re.IGNORECASE)
# A Google Cloud project in the path, as Vertex AI has it.
_PROJECT_PATH = re.compile(r"(/projects/)[^/?]+")
# OpenAI's error texts: "Incorrect API key provided: sk-proj-****abcd", "Rate limit reached for gpt-4o in organization org-...".
_SHAPES = re.compile(r"\bsk-[\w*-]{12,}|\borg-[A-Za-z0-9]{16,}|\bproj_[A-Za-z0-9]{16,}", re.ASCII)
# Of a cookie that is set the name and the value, and the words that say where and how long it counts.
_COOKIE = re.compile(r"(?:^|[;,])\s*([^=;,\s]+)=([^;,\s]+)")
_COOKIES_OWN = frozenset({"domain", "path", "expires", "max-age", "samesite"})
_SCHEME = re.compile(rf"[A-Za-z]+ (\S{{{_SHORTEST},}})")  # "Bearer KEY"


class Secrets:
    """The secrets met so far; none of them in its repr."""

    def __init__(self) -> None:
        self._values: list[str] = []  # the longest first: one may be in another

    def learn_request(self, headers: Iterable[tuple[str, str]]) -> None:
        """Take note of what a request's headers hold."""
        for name, value in headers:
            if name == "cookie":
                self._learn(*(pair.partition("=")[2] for pair in value.split(";")))
            if name not in _PLAIN:
                scheme = _SCHEME.fullmatch(value)
                self._learn(scheme[1] if scheme else value)

    def learn_answer(self, headers: Mapping[str, str]) -> None:
        """Take note of the cookies that an answer sets, and of the account that it names."""
        for name, value in headers.items():
            if name == "set-cookie":
                self._learn(*(text for field, text in _COOKIE.findall(value) if field.lower() not in _COOKIES_OWN))
            elif _ACCOUNT.search(name):
                self._learn(value)

    def text(self, text: str, *, cut: bool = False) -> str:
        """Return the text without secrets, and if it may have been cut without the beginning of one at its end."""
        for value in self._values:
            text = without(text, value, MARK, cut=cut)
        return _SHAPES.sub(MARK, text)

    def data(self, data: bytes) -> bytes:
        """Return the bytes without secrets."""
        return self.text(data.decode("latin-1"), cut=True).encode("latin-1")

    def value(self, value: Any) -> Any:
        """Return a copy of a JSON value without secrets in its texts, and without fields that are secret by name."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if isinstance(value, dict):
            return {self.text(name): self._field(name, item) for name, item in value.items()}
        return value

    def url(self, url: str) -> str:
        """Return the URL without secrets, parameters that are secret by name, and projects."""
        return self.text(_PROJECT_PATH.sub(rf"\1{MARK}", _PARAMETER.sub(rf"\1{MARK}", url)))

    def headers(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return those headers of an answer that are kept."""
        kept = {name: value for name, value in headers.items() if KEPT_HEADERS.fullmatch(name)}
        return {name: self.url(value) if name == "location" else self.text(value) for name, value in kept.items()}

    def reads(self, reads: list[bytes]) -> list[bytes]:
        """Return an answer's reads without secrets, also where one is spread over the deltas of a stream's events.

        A line must be whole in one read: no secret holds a line break, so none is cut by two reads then.
        """
        clean = [self.data(read) for read in reads]
        payloads = list(_payloads(clean)) if self._values else []
        for leaves in _by_place(payloads).values():
            joined = "".join(leaf.text for leaf in leaves)
            found = [span for value in self._values for span in spans(joined, value)]
            if found:
                _strip_spread(leaves, found)
        for payload in reversed(payloads):  # so that the spans before it stay true
            if payload.changed:
                begin, end = payload.span
                clean[payload.read] = clean[payload.read][:begin] + payload.dump() + clean[payload.read][end:]
        return clean

    def _field(self, name: str, value: Any) -> Any:
        return MARK if isinstance(value, str) and _FIELD.fullmatch(name) else self.value(value)

    def _learn(self, *values: str) -> None:
        new = {value.strip() for value in values if len(value.strip()) >= _SHORTEST}
        self._values = sorted(new.union(self._values), key=len, reverse=True)


@dataclass(slots=True, eq=False)
class _Payload:
    """The JSON of one event, or of a whole answer: in which read, and where there."""

    read: int
    span: tuple[int, int]
    value: Any = field(repr=False)
    changed: bool = False

    def dump(self) -> bytes:
        return json.dumps(self.value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


@dataclass(slots=True)
class _Leaf:
    """One text within an event's JSON."""

    payload: _Payload
    parent: Any = field(repr=False)
    name: Any

    @property
    def text(self) -> str:
        text: str = self.parent[self.name]
        return text


_JSON = re.compile(rb"^data: ?(\{.*\})[ \r]*$|\A\s*(?=[{\[])([\s\S]*)\Z", re.MULTILINE)


def _payloads(reads: list[bytes]) -> Iterator[_Payload]:
    for i, read in enumerate(reads):
        for found in _JSON.finditer(read):
            with contextlib.suppress(ValueError, RecursionError):
                yield _Payload(i, found.span(found.lastindex or 0), json.loads(found[found.lastindex or 0]))


def _by_place(payloads: list[_Payload]) -> dict[tuple[Any, ...], list[_Leaf]]:
    """Return the texts at each place of the events' JSON, in the order of the events."""
    places: dict[tuple[Any, ...], list[_Leaf]] = {}
    for payload in payloads:
        nodes: list[tuple[tuple[Any, ...], Any]] = [((), payload.value)]
        while nodes:
            path, node = nodes.pop()
            for name, child in node.items() if isinstance(node, dict) else enumerate(node):
                place = (*path, name if isinstance(node, dict) else _index(child, name))
                if isinstance(child, dict | list):
                    nodes.append((place, child))
                elif isinstance(child, str):
                    places.setdefault(place, []).append(_Leaf(payload, node, name))
    return places


def _index(item: Any, position: int) -> int:
    """Return which choice or call an item tells of; an event may tell of one alone, which is not the first."""
    index = item.get("index") if isinstance(item, dict) else None
    return index if isinstance(index, int) else position


def _strip_spread(leaves: list[_Leaf], spans: list[tuple[int, int]]) -> None:
    """Strip what stands at those spans of the joined texts: the mark goes where it begins."""
    texts = [leaf.text for leaf in leaves]
    characters = list("".join(texts))
    for begin, end in spans:
        characters[begin:end] = [MARK, *[""] * (end - begin - 1)]
    at = 0
    for leaf, text in zip(leaves, texts, strict=True):
        left = "".join(characters[at : at + len(text)])
        at += len(text)
        if left != text:
            leaf.parent[leaf.name] = left
            leaf.payload.changed = True
