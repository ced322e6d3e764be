"""Whatever stands in a field: nothing but our errors, no text lost or repeated, and sums that hold."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jazz_llm import LLMError, LLMResponse, LLMUsage, normalize_usage
from jazz_llm.response import Decoder, error_from
from jazz_llm.response.choice import ThinkSplitter
from jazz_llm.sse import SSEDecoder
from jazz_llm.usage import usage_of

# The same examples each time, and no deadline: a busy machine fails no test.
quick = settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
few = settings(quick, max_examples=150)

# Words that mean something in one place or another, so that they turn up in all the others.
WORDS = [
    "content", "delta", "message", "text", "tool_calls", "function", "function_call", "arguments", "name", "id", "index", "usage", "error", "choices", "reasoning", "reasoning_content",
    "reasoning_details", "thinking", "summary", "refusal", "logprobs", "finish_reason", "prompt_tokens", "completion_tokens", "total_tokens", "result", "response", "timings", "x_groq", "type", "code",
    "<think>", "</think>", "<thi", "stop", "error", "content_filter", "[DONE]", "{}", '{"a":', "1", "\ud83d", "\ude00", "\u2028", "", " ",
]  # fmt: skip
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-5, 5),
    st.integers(),
    st.sampled_from([2**63, 2**64, -(2**70), 10**400]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(max_size=5),
)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=3), max_leaves=8
)
CALL = {"index": 0, "id": "a", "type": "function", "function": {"name": "w", "arguments": '{"a":'}, "extra_content": {"google": {}}}
USAGE = {
    "prompt_tokens": 9,
    "completion_tokens": 3,
    "total_tokens": 12,
    "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 1},
    "completion_tokens_details": {"reasoning_tokens": 2},
    "cost": 0.5,
}
DELTA = {"role": "assistant", "content": "Hel", "reasoning_content": "Hm", "refusal": None, "tool_calls": [CALL]}
CHUNK = {
    "id": "c",
    "object": "chat.completion.chunk",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "delta": DELTA, "finish_reason": "stop", "logprobs": {"content": [{"token": "Hel"}]}}],
    "usage": USAGE,
    "x_groq": {"usage": USAGE},
    "timings": {"cache_n": 1, "prompt_n": 2, "predicted_n": 3},
}
WHOLE = {**CHUNK, "choices": [{"index": 0, "message": DELTA, "finish_reason": "stop", "logprobs": None}]}


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where anything stands, the whole itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, child in inner for found in paths(child, (*path, key)))]


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy that has something else in one place."""
    if not path:
        return new
    value = copy.copy(value)
    value[path[0]] = put(value[path[0]], path[1:], new)
    return value


def spoilt(value: Any) -> st.SearchStrategy[Any]:
    return st.builds(lambda path, new: put(value, path, new), st.sampled_from(paths(value)), JSON)


def event(payload: Any) -> bytes:
    return b"data: %b\n\n" % json.dumps(payload).encode()


def run(*reads: bytes, streams: bool = True, **options: Any) -> tuple[list[str], LLMResponse[Any], LLMError | None]:
    decoder = Decoder(streams=streams, **options)
    decoder.begin({})
    texts: list[str] = []
    for read in reads:
        if decoder.over:
            break
        texts += decoder.feed(read)
    texts += decoder.end()
    try:
        return texts, decoder.result(), None
    except LLMError as error:
        assert error.partial is not None
        return texts, error.partial, error


def sound(usage: LLMUsage) -> None:
    """Check what always holds of a usage."""
    parts = (usage.cached_tokens or 0, usage.cache_write_tokens or 0, usage.reasoning_tokens or 0)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert min(usage.prompt_tokens, usage.completion_tokens, *parts) >= 0
    assert max(parts[:2]) <= usage.prompt_tokens
    assert parts[2] <= usage.completion_tokens


def sound_answer(texts: list[str], answer: LLMResponse[Any]) -> None:
    assert all(texts), "an empty text was given out"
    assert "".join(texts) == answer.text
    assert all(isinstance(call.arguments, dict) and call.id for call in answer.tool_calls)
    sound(answer.usage)


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


@quick
@given(st.lists(spoilt(CHUNK), min_size=1, max_size=3), st.lists(st.integers(0, 4000), max_size=3))
def test_anything_in_a_chunk(chunks: list[Any], cuts: list[int]) -> None:
    stream = b"".join(map(event, chunks)) + b"data: [DONE]\n\n"
    texts, answer, error = run(stream)
    sound_answer(texts, answer)
    again, cut, cut_error = run(*pieces(stream, cuts))
    assert ("".join(again), type(cut_error), cut.usage) == ("".join(texts), type(error), answer.usage)
    assert [c.reasoning for c in cut.choices] == [c.reasoning for c in answer.choices]


@quick
@given(spoilt(WHOLE), st.booleans())
def test_anything_in_a_whole_answer(answer: Any, streams: bool) -> None:
    body = json.dumps(answer).encode()
    _, response, error = run(body, streams=streams)
    sound(response.usage)
    if error is None:
        assert response.raw == json.loads(body) or answer != answer  # noqa: PLR0124  # NaN is not itself


@quick
@given(st.lists(spoilt(CALL), min_size=1, max_size=4))
def test_anything_in_a_tool_call(fragments: list[Any]) -> None:
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [fragment]}}]} for fragment in fragments]
    texts, answer, _ = run(*map(event, chunks), b"data: [DONE]\n\n")
    sound_answer(texts, answer)


@quick
@given(spoilt(USAGE) | JSON, st.sampled_from([None, "xai", "deepinfra", "perplexity", "nobody"]))
@example({"prompt_tokens": 10**400, "completion_tokens": "1e400", "total_tokens": float("nan")}, None)
def test_any_usage(raw: Any, provider: str | None) -> None:
    before = repr(raw)
    sound(normalize_usage(raw, provider=provider, prompt="x" * 9, completion="y" * 8))
    usage_of({"usage": raw, "x_groq": raw, "choices": [raw, {"usage": raw}], "timings": raw})
    assert repr(raw) == before


COUNTED = st.none() | st.integers(0, 50) | st.floats(0, 50) | st.sampled_from(["7", "7.0", "x", -1, True])


@quick
@given(
    st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(
            ("prompt_tokens", "completion_tokens", "total_tokens", "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cache_read_prompt_tokens", "prompt_audio_seconds"), COUNTED
        ),
    ),
    st.sampled_from([None, "deepinfra"]),
)
def test_any_counts(raw: dict[str, Any], provider: str | None) -> None:
    usage = normalize_usage(raw, provider=provider)
    sound(usage)
    assert usage.raw is raw


TEXTS = st.lists(st.text(alphabet=st.sampled_from('ab \n<>/thinké日\u2028\\"`'), max_size=8) | st.sampled_from(["<think>", "</think>", "`</think>`", "<b>"]), max_size=8)


@quick
@given(TEXTS, st.lists(st.integers(0, 4000), max_size=4), st.booleans())
def test_texts_are_the_same_however_they_are_cut(texts: list[str], cuts: list[int], crlf: bool) -> None:
    chunks = [{"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]} for text in texts]
    stream = b"".join(b"data: %b\n\n" % json.dumps(chunk, ensure_ascii=False).encode() for chunk in chunks) + b"data: [DONE]\n\n"
    stream = stream.replace(b"\n", b"\r\n") if crlf else stream
    whole, answer, _ = run(stream)
    cut, again, _ = run(*pieces(stream, cuts))
    assert "".join(whole) == "".join(cut) == answer.text == again.text
    assert answer.reasoning == again.reasoning
    message = (answer.raw.get("choices") or [{"message": {"content": ""}}])[0]["message"]
    assert message["content"] == "".join(texts)
    if "think>" not in "".join(texts):
        assert answer.text == "".join(texts)


@quick
@given(TEXTS)
def test_what_the_splitter_takes_out_it_can_put_back(texts: list[str]) -> None:
    splitter = ThinkSplitter()
    given_out = [pair for text in texts for pair in splitter.feed(text)] + splitter.end()
    text = "".join(piece for kind, piece in given_out if kind == "text")
    assert splitter.untagged(text) == "".join(texts)
    one = ThinkSplitter()
    joined = one.feed("".join(texts)) + one.end()
    for kind in ("text", "reasoning"):
        assert "".join(p for k, p in joined if k == kind) == "".join(p for k, p in given_out if k == kind)


@few
@given(st.binary(max_size=200) | st.lists(st.sampled_from([b"data: ", b"data", b":", b"\r", b"\n", b"\r\n", b"{}", b"[DONE]", b"\xef\xbb\xbf", b"a", b" ", b"event: x"]), max_size=20).map(b"".join), st.lists(st.integers(0, 300), max_size=5))
def test_any_bytes(data: bytes, cuts: list[int]) -> None:
    def events(*reads: bytes) -> list[bytes]:
        decoder = SSEDecoder()
        return [payload for read in reads for payload in decoder.feed(read)] + decoder.end()

    assert events(data) == events(*pieces(data, cuts))
    for streams in (True, False):
        texts, _, error = run(data, streams=streams)
        again, _, cut_error = run(*pieces(data, cuts), streams=streams)
        assert ("".join(texts), type(error)) == ("".join(again), type(cut_error))


@few
@given(JSON, st.integers(100, 599), st.dictionaries(st.sampled_from(["retry-after", "retry-after-ms", "x-should-retry", "content-type"]), st.text(max_size=8), max_size=3))
def test_any_error_body(body: Any, status: int, headers: dict[str, str]) -> None:
    for given_body in (json.dumps(body).encode(), body):
        error = error_from(status, headers, given_body)
        assert isinstance(error, LLMError)
        assert error.retry_after is None or error.retry_after > 0
