from __future__ import annotations

import gzip
import json
import pickle
import random
import zlib
from typing import Any

import pytest

from jazz_llm import (
    LLMAuthenticationError,
    LLMContentFilterError,
    LLMContextLengthError,
    LLMError,
    LLMInternalError,
    LLMInvalidRequestError,
    LLMNotFoundError,
    LLMOverloadedError,
    LLMPermissionDeniedError,
    LLMQuotaExceededError,
    LLMRateLimitError,
    LLMResponse,
    LLMResponseError,
    LLMResponseTooLargeError,
    LLMStreamTruncatedError,
    LLMStructuredOutputError,
)
from jazz_llm.response import Decoder, decoder, error_from, rate_limits_of, redacted, request_id_of
from jazz_llm.response.choice import ThinkSplitter
from jazz_llm.response.headers import duration, retry_hint
from jazz_llm.response.template import Template

DONE = b"data: [DONE]\n\n"


def chunk(content: Any = None, finish: str | None = None, *, index: int = 0, delta: dict[str, Any] | None = None, **more: Any) -> bytes:
    delta = delta if delta is not None else {} if content is None else {"content": content}
    choice = {"index": index, "delta": delta, "finish_reason": finish}
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **more})


def event(payload: Any) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def whole(content: Any = "Hello", finish: str | None = "stop", **more: Any) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": finish}
    return json.dumps({"id": "c1", "object": "chat.completion", "model": "m", "choices": [choice], **more}).encode()


def decode(*reads: bytes, streams: bool = True, headers: dict[str, str] | None = None, **options: Any) -> tuple[list[str], LLMResponse | LLMError]:
    """Feed the reads and then the end; return the texts, and the answer or the error."""
    decoder = Decoder(streams=streams, **options)
    decoder.begin(headers or {})
    texts: list[str] = []
    for read in reads:
        if decoder.over:
            break
        texts += decoder.feed(read)
    texts += decoder.end()
    try:
        return texts, decoder.result()
    except LLMError as error:
        return texts, error


def answer(*reads: bytes, **options: Any) -> LLMResponse:
    _, result = decode(*reads, **options)
    assert isinstance(result, LLMResponse), repr(result)
    return result


def failure(*reads: bytes, **options: Any) -> LLMError:
    _, result = decode(*reads, **options)
    assert isinstance(result, LLMError), repr(result)
    return result


PLAIN = chunk(delta={"role": "assistant", "content": ""}) + chunk("Hel") + chunk("lo") + chunk(finish="stop")
USAGE = event({"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}})


# --- streams


def test_a_stream_gives_its_texts_and_its_answer() -> None:
    texts, result = decode(PLAIN + USAGE + DONE)
    assert texts == ["Hel", "lo"]
    assert isinstance(result, LLMResponse)
    assert (result.text, result.finish_reason, result.model, result.id) == ("Hello", "stop", "m", "c1")
    assert (result.usage.total_tokens, result.usage.estimated) == (11, False)
    assert result.message.content == "Hello"


def test_the_raw_of_a_stream_is_what_a_whole_answer_would_have_been() -> None:
    assert answer(PLAIN + USAGE + DONE).raw == {
        "id": "c1",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}, "finish_reason": "stop", "logprobs": None}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
    }


def test_usage_is_estimated_and_flagged_where_none_came() -> None:
    usage = answer(PLAIN + DONE, prompt=lambda: "x" * 10).usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.estimated) == (3, 2, True)


def test_usage_beside_text_counts() -> None:
    usages: list[dict[str, int]] = [{"prompt_tokens": 5, "completion_tokens": i} for i in (1, 2, 3)]
    for result in (answer(*(chunk("x", usage=usage) for usage in usages), DONE), answer(chunk("x"), chunk("y", usage=usages[2]), DONE)):
        assert (result.usage.completion_tokens, result.usage.estimated) == (3, False)


@pytest.mark.parametrize("stream", [PLAIN, PLAIN + USAGE, PLAIN + DONE, PLAIN.replace(chunk(finish="stop"), b"") + DONE, PLAIN.replace(chunk(finish="stop"), b"") + USAGE])
def test_good_ends(stream: bytes) -> None:
    assert answer(stream).text == "Hello"


@pytest.mark.parametrize(
    "stream",
    [
        PLAIN.replace(chunk(finish="stop"), b""),
        PLAIN[:-20].replace(chunk(finish="stop")[:-20], b""),
        chunk("Hel") + b'data: {"choices":[{"delta":{"conte',
        b"",
        b": ping\n\n",
        # usage on every chunk is no end
        chunk("Hello", usage={"prompt_tokens": 1, "completion_tokens": 1}),
        # and a usage chunk before any content neither
        USAGE,
    ],
)
def test_a_stream_that_simply_stops_is_truncated(stream: bytes) -> None:
    error = failure(stream)
    assert type(error) is LLMStreamTruncatedError
    assert isinstance(error.partial, LLMResponse)
    assert error.partial.text in ("", "Hel", "Hello")


def test_done_alone_is_no_answer() -> None:
    error = failure(DONE)
    assert type(error) is LLMResponseError
    assert error.retryable


def test_nothing_after_done_counts() -> None:
    texts, result = decode(PLAIN + DONE + chunk("more") + event({"error": {"message": "late"}}))
    assert texts == ["Hel", "lo"]
    assert isinstance(result, LLMResponse)


@pytest.mark.parametrize("where", [b"", chunk("Hel"), PLAIN], ids=["first", "middle", "after the finish"])
def test_an_error_wins_over_any_end(where: bytes) -> None:
    texts, error = decode(where + event({"error": {"message": "boom", "code": 503}}) + DONE)
    assert isinstance(error, LLMOverloadedError)
    assert error.status_code == 503
    assert error.partial is not None
    assert error.partial.text == "".join(texts)


def test_an_error_in_a_choice_counts_as_one_at_the_top() -> None:
    error = failure(chunk("Hel"), event({"choices": [{"index": 0, "delta": {"content": ""}, "error": {"message": "x", "code": 429}}]}))
    assert type(error) is LLMRateLimitError


def test_usage_beside_an_error_counts_for_the_partial() -> None:
    usage = {"prompt_tokens": 5, "completion_tokens": 6}
    error = failure(chunk("Hel"), event({"error": {"message": "x"}, "usage": usage}))
    assert error.partial is not None
    assert (error.partial.usage.prompt_tokens, error.partial.usage.estimated) == (5, False)


@pytest.mark.parametrize("reason", ["abort", "network_error", "error", "insufficient_system_resource"])
def test_a_finish_that_means_failure_is_one(reason: str) -> None:
    error = failure(chunk("Hel"), chunk(finish=reason), DONE)
    assert type(error) is LLMInternalError
    assert error.partial is not None
    assert error.partial.text == "Hel"


def test_content_filter_is_an_error_only_where_nothing_is_left() -> None:
    assert type(failure(chunk(finish="content_filter"), DONE)) is LLMContentFilterError
    assert answer(chunk("Hel"), chunk(finish="SAFETY"), DONE).finish_reason == "content_filter"


@pytest.mark.parametrize(("given", "normalized"), [("eos", "stop"), ("max_tokens", "length"), ("MAX_TOKENS", "length"), ("tool_use", "tool_calls"), ("odd", "odd")])
def test_finish_reasons_are_normalized_and_kept_in_raw(given: str, normalized: str) -> None:
    result = answer(chunk("x"), chunk(finish=given), DONE)
    assert (result.finish_reason, result.raw["choices"][0]["finish_reason"]) == (normalized, given)


def test_a_finish_reason_is_not_erased_by_what_follows() -> None:
    assert answer(PLAIN, chunk(""), USAGE, DONE).finish_reason == "stop"


def test_several_choices_are_kept_apart_and_choice_0_is_the_text() -> None:
    stream = chunk("B1", index=1) + chunk("A1") + chunk("B2", index=1) + chunk("A2") + chunk(finish="length") + chunk(finish="stop", index=1)
    texts, result = decode(stream + DONE, choices=2)
    assert isinstance(result, LLMResponse)
    assert (texts, result.text) == (["A1", "A2"], "A1A2")
    assert [(c.index, c.text, c.finish_reason) for c in result.choices] == [(0, "A1A2", "length"), (1, "B1B2", "stop")]


def test_a_stream_of_two_is_not_finished_by_one() -> None:
    assert type(failure(chunk("A", index=0), chunk(finish="stop"), chunk("B", index=1), choices=2)) is LLMStreamTruncatedError


def test_what_else_the_deltas_held_is_joined_or_the_last_of_it_kept() -> None:
    extras: list[Any] = ["a", "b", [1], [2], [3], 5, 6, {"x": 1}, {"y": 2}]
    for count in range(1, len(extras) + 1):
        result = answer(*(chunk(delta={"content": "t", "extra": extra}) for extra in extras[:count]), chunk(finish="stop"))
        kept = ["a", "ab", [1], [1, 2], [1, 2, 3], 5, 6, {"x": 1}, {"y": 2}][count - 1]
        assert result.raw["choices"][0]["message"]["extra"] == kept


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_reasoning_in_a_field_of_its_own(name: str) -> None:
    texts, result = decode(chunk(delta={name: "hm", "content": None}), chunk(delta={name: " so"}), chunk("4"), chunk(finish="stop"))
    assert isinstance(result, LLMResponse)
    assert (texts, result.reasoning, result.text) == (["4"], "hm so", "4")
    assert result.raw["choices"][0]["message"][name] == "hm so"


def test_logprobs_are_joined() -> None:
    one, two = ({"content": [{"token": t}]} for t in "ab")
    stream = [{"choices": [{"index": 0, "delta": {"content": t}, "logprobs": p, "finish_reason": None}]} for t, p in zip("ab", (one, two), strict=True)]
    assert answer(*map(event, stream), chunk(finish="stop")).logprobs == {"content": [{"token": "a"}, {"token": "b"}]}


def test_joining_logprobs_leaves_raw_as_it_came() -> None:
    choices = [{"index": 0, "message": {"content": t}, "logprobs": {"content": [t], "n": 1}, "finish_reason": "stop"} for t in "ab"]
    result = answer(json.dumps({"choices": choices}).encode(), streams=False)
    assert result.logprobs == {"content": ["a", "b"], "n": 1}
    assert result.raw == {"choices": choices}


def test_an_event_that_is_not_json_is_an_error_not_skipped() -> None:
    texts, error = decode(chunk("Hel") + b"data: {oops\n\n" + chunk("lo"))
    assert texts == ["Hel"]
    assert type(error) is LLMResponseError


@pytest.mark.parametrize("payload", [[], "x", 5, None, True, {"choices": 5}, {"choices": [5]}, {"choices": [{"delta": 5}]}, {"choices": [{"index": "x", "delta": {"content": 5}}]}])
def test_odd_chunks_never_raise_anything_else(payload: Any) -> None:
    _, result = decode(chunk("Hel") + event(payload) + chunk("lo") + chunk(finish="stop") + DONE)
    assert isinstance(result, LLMResponse | LLMResponseError)


@pytest.mark.parametrize(
    "odd",
    [
        {"choices": [{"index": 0, "delta": {"content": "x", "tool_calls": [{"index": [], "id": {}, "function": {"name": 5}}]}}]},
        {"choices": [{"index": {}, "delta": {"content": "x", "reasoning": 5}, "finish_reason": 5, "logprobs": {"a": []}}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}, "logprobs": [1]}, {"index": -1, "delta": {"content": ["y", 5, {"text": 5}]}}]},
        {"choices": [{"index": 0, "delta": {"content": "x"}}], "usage": {"prompt_tokens": {}}, "x_groq": {"usage": 5}, "timings": 5},
        {"choices": [{"index": 0, "delta": {"content": "x", "reasoning_details": [{"text": 5}, 5]}}], "id": [], "model": {}},
    ],
)
def test_an_odd_chunk_neither_loses_nor_repeats_text(odd: dict[str, Any]) -> None:
    texts, result = decode(chunk("a"), event(odd), chunk("b"), chunk(finish="stop"), DONE)
    assert isinstance(result, LLMResponse)
    assert "".join(texts) == result.text == "axb"


@pytest.mark.parametrize(
    ("flat", "kind"),
    [
        ({"message": "Too many requests", "type": "too_many_requests_error", "param": "quota", "code": "request_quota_exceeded"}, "LLMRateLimitError"),
        ({"message": "boom", "code": "server_error"}, "LLMInternalError"),
        ({"detail": "Not authenticated"}, "LLMInternalError"),
        ({"detail": "Rate limit exceeded", "status_code": 429}, "LLMRateLimitError"),
    ],
)
def test_a_flat_error_in_a_stream_is_one(flat: dict[str, Any], kind: str) -> None:
    """Cerebras and FastAPI put no error key around theirs."""
    error = failure(chunk("so far"), event(flat))
    assert type(error).__name__ == kind
    assert error.partial is not None
    assert error.partial.text == "so far"


@pytest.mark.parametrize(
    "body", [b"<html><title>Hi</title>", b"[1, 2]", b'{"choices": []}', b'{"choices": [{"index": 0}]}', b'{"id": "cut', b"\xff" * 9000]
)
def test_what_is_no_answer_comes_with_the_error(body: bytes) -> None:
    error = failure(body, streams=False, headers={"content-type": "application/json"})
    assert isinstance(error, LLMResponseError)
    assert error.body == body[:4096].decode("utf-8", "ignore")


def test_choices_without_end_are_given_up() -> None:
    error = failure(*(chunk("a", "stop", index=i) for i in range(1001)), choices=2)
    assert isinstance(error, LLMResponseError)
    assert "more than 1000 choices" in error.message


@pytest.mark.parametrize(("key", "text"), [("name", '{"name": 1}'), ("sk-0123456789abcdef", '{"***": 1}')])
def test_a_short_key_may_be_a_word_of_the_answer(key: str, text: str) -> None:
    given = f'{{"{key}": 1}}'
    error = redacted(LLMStructuredOutputError(f"no: {given}", text=given, errors=[given]), key)
    assert isinstance(error, LLMStructuredOutputError)
    assert (error.text, error.errors, str(error)) == (text, [text], 'no: {"***": 1}')


def test_a_policys_statuses_count_inside_a_200_too() -> None:
    inside = event({"error": {"message": "busy", "code": 503}})
    assert failure(inside).retryable
    assert not failure(inside, statuses=frozenset({429})).retryable


def test_deeply_nested_json_is_refused() -> None:
    assert type(failure(b"data: " + b"[" * 100_000 + b"]" * 100_000 + b"\n\n")) is LLMResponseError
    assert type(failure(b'{"choices":' + b"[" * 100_000 + b"}", streams=False)) is LLMResponseError


def test_progress_tells_content_from_keep_alives() -> None:
    decoder = Decoder(streams=True)
    decoder.begin({})
    steps = [
        (b": ping\n\n", False),
        (b"\n\n", False),
        (chunk(delta={"role": "assistant", "content": ""}), False),
        (chunk(delta={"reasoning": "hm"}), True),
        (chunk("Hel"), True),
        (chunk(""), False),
        (chunk(delta={"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]}), True),
        (chunk(finish="stop"), False),
    ]
    for data, progress in steps:
        decoder.feed(data)
        assert decoder.progress is progress, data
    assert decoder.finished
    assert not decoder.over


# --- templates: the short way of chunks that differ in nothing but their text


class NoTemplate(Template):
    """Sends every chunk the long way."""

    def learn(self, payload: bytes, text: str, texts: int) -> bool:
        return False


def both_ways(monkeypatch: pytest.MonkeyPatch, *reads: bytes, **options: Any) -> tuple[list[str], Any]:
    """Decode with templates and without, find no difference, and return what came."""
    outcomes = []
    for kind in (Template, NoTemplate):
        monkeypatch.setattr(decoder, "Template", kind)
        decoding = Decoder(streams=True, **options)
        decoding.begin({})
        steps = []
        for read in reads:
            texts = decoding.feed(read) if not decoding.over else []
            steps.append((texts, decoding.progress, decoding.finished, decoding.over, decoding.response_bytes))
        steps.append((decoding.end(), decoding.progress, decoding.finished, decoding.over, 0))
        try:
            result: Any = decoding.result()
        except LLMError as error:
            result = (type(error), str(error), error.partial)
        outcomes.append((steps, result))
    assert outcomes[0] == outcomes[1]
    return [text for texts, *_ in outcomes[0][0] for text in texts], outcomes[0][1]


BEFORE = b'{"id":"c1","choices":[{"index":0,"delta":{"content":'
AFTER = b'},"finish_reason":null}],"model":"m"}'


def like(*middles: bytes, before: bytes = BEFORE, after: bytes = AFTER) -> bytes:
    return b"".join(b"data: " + before + middle + after + b"\n\n" for middle in middles)


def test_chunks_that_differ_in_their_text_alone_are_parsed_in_full_once(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed = []
    monkeypatch.setattr(decoder, "plain_text", lambda chunk, look=decoder.plain_text: parsed.append(chunk) or look(chunk))
    alone = []
    monkeypatch.setattr(Template, "text", lambda self, payload, look=Template.text: alone.append(payload) or look(self, payload))
    texts, _ = decode(like(b'"a"'), like(b'"b"'), like(b'"c"', b'"d"', b'"e"'), like(b'""'), like(b'"f"'), DONE)
    assert texts == ["a", "b", "c", "d", "e", "f"]
    assert len(parsed) == 1
    assert len(alone) == 4  # "b", which is learnt from, the two that came alone, and [DONE]


# What comes once `like('"a"', '"b"')` has been learnt, and the texts it brings.
ODD_MIDDLES: dict[str, tuple[bytes, list[str]]] = {
    "escapes": (like(rb'"\"\\\n\u00e9"', rb'"\ud83e\udd8a"'), ['"\\\né', "🦊"]),
    "white space": (like(b' "c"', b'"d"\t'), ["c", "d"]),
    "no text": (like(b'""', b'""'), []),
    "no text among text": (like(b'"c"', b'""', b'"d"'), ["c", "d"]),
    "the probe": (like(b'"probe"', b'"c"'), ["probe", "c"]),
    "a tag": (like(b'"c"', b'"</think>"', b'"d"'), ["c", "d"]),
    "a tag in escapes": (like(b'"c"', rb'"\u003c/think>"', b'"d"'), ["c", "d"]),
    "null": (like(b"null", b'"d"'), ["d"]),
    "null alone": (like(b"null"), []),
    "a number": (like(b"5", b'"d"'), ["d"]),
    "a list of parts": (like(b'["c"]', b'"d"'), ["c", "d"]),
    "parts where texts were": (like(b'"c","d"', b'"e"'), []),
    "a finish in the middle": (like(b'"c"},"finish_reason":"stop"}],"x":[{"y":{"z":"d"', b'"e"'), ["c", "e"]),
    "an error in the middle": (like(b'"c"}}],"error":{"message":"no"},"x":[{"y":{"z":"d"', b'"e"'), ["c"]),
    "the key again, and the last one wins": (like(b'"c","content":"d"', b'"e"'), ["d", "e"]),
    "the key again, without text": (like(b'"c","content":null', b'"e"'), ["e"]),
    "NaN": (like(b"NaN", b'"d"'), ["d"]),
    "half a string": (like(b'"c', b'"d"'), []),
    "half a string, and its other half": (like(b'"c', b'd"'), []),
    "two strings, and two halves of one": (like(b'"c","d"', b'"e', b'f"'), []),
    "nothing": (like(b"", b'"d"'), []),
    "a raw control character": (like(b'"c\x01"', b'"d"'), []),
    "no UTF-8": (like(b'"c\xff"', b'"d"'), ["c\ufffd", "d"]),
    "half a surrogate pair": (like(rb'"c\ud83e"', b'"d"'), ["c\ud83e", "d"]),
    "lines of data": (like(b'"c"\ndata: ', b'"d"'), ["c", "d"]),
    "too short": (b"data: " + BEFORE + AFTER[1:] + b"\n\n", []),
    "another end": (like(b'"c"', after=AFTER[:-1] + b',"usage":{"prompt_tokens":1}}') + like(b'"d"'), ["c", "d"]),
    "another beginning": (like(b'"c"', before=BEFORE.replace(b"0", b"1")) + like(b'"d"'), ["d"]),
}


@pytest.mark.parametrize(("stream", "texts"), ODD_MIDDLES.values(), ids=ODD_MIDDLES)
def test_only_one_whole_string_between_before_and_after_is_taken_for_text(monkeypatch: pytest.MonkeyPatch, stream: bytes, texts: list[str]) -> None:
    events = [event + b"\n\n" for event in stream.split(b"\n\n") if event]
    for reads in ([stream], events):
        assert both_ways(monkeypatch, like(b'"a"', b'"b"'), *reads, chunk(finish="stop"), DONE)[0] == ["a", "b", *texts]


# Chunks in which the first key named content is not that of the delta, or is, but does not count: with their real text T.
DECOYS = {
    "before": b'{"content":"x","choices":[{"index":0,"delta":{"content":"T"}}]}',
    "before, the same text": b'{"content":"T","choices":[{"index":0,"delta":{"content":"T"}}]}',
    "before, deeper": b'{"x":{"content":"x"},"choices":[{"index":0,"delta":{"content":"T"}}]}',
    "within a string": rb'{"x":"\"content\":\"x\"","choices":[{"index":0,"delta":{"content":"T"}}]}',
    "the end of another key": rb'{"x\"content":"x","choices":[{"index":0,"delta":{"content":"T"}}]}',
    "twice": b'{"choices":[{"index":0,"delta":{"content":"x","content":"T"}}]}',
    "a delta twice": b'{"choices":[{"index":0,"delta":{"content":"x"},"delta":{"content":"T"}}]}',
    "choices twice": b'{"choices":[{"index":0,"delta":{"content":"x"}}],"choices":[{"index":0,"delta":{"content":"T"}}]}',
    "escaped": rb'{"content":"x","choices":[{"index":0,"delta":{"\u0063ontent":"T"}}]}',
    "escaped, the last one wins": rb'{"choices":[{"index":0,"delta":{"content":"x","\u0063ontent":"T"}}]}',
    "after": b'{"choices":[{"index":0,"delta":{"content":"T"}}],"content":"x"}',
    "null after it": b'{"choices":[{"index":0,"delta":{"content":"T"},"content":null}]}',
    "spaces": b'{ "choices" : [ { "index" : 0 , "delta" : { "content" : "T" } } ] }',
}


def test_a_chunk_too_short_for_both_ends_does_not_fit() -> None:
    template = Template()
    spaced = BEFORE + b' "a" ' + AFTER
    assert template.learn(spaced, "a", 1)
    assert (template.text(spaced), template.texts([spaced, spaced])) == ("a", ["a", "a"])
    for short in (BEFORE + b" " + AFTER, BEFORE + AFTER, BEFORE + b"  " + AFTER):
        assert (template.text(short), template.texts([short, spaced]), template.texts([spaced, short])) == (None, None, None)


@pytest.mark.parametrize("form", DECOYS.values(), ids=DECOYS)
def test_a_decoy_is_never_taken_for_the_text(monkeypatch: pytest.MonkeyPatch, form: bytes) -> None:
    """Each chunk with the text that the parser reads, and then with another in the decoy's place."""
    words = [b"a", b"probe", b"b", b"c"]
    events = [b"data: " + form.replace(b"T", word).replace(b'"x"', decoy) + b"\n\n" for word in words for decoy in (b'"x"', b'"y"')]
    expected = ["a", "a", "probe", "probe", "b", "b", "c", "c"]
    assert both_ways(monkeypatch, *events, DONE)[0] == expected
    assert both_ways(monkeypatch, b"".join(events), DONE)[0] == expected


def test_while_a_tag_may_be_under_way_nothing_goes_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = [like(b'"a"', b'"b"', b'"c"'), like(b'"<"'), like(b'"/think>"', b'"d"'), like(b'"e"', b'"f"'), DONE]
    texts, result = both_ways(monkeypatch, *reads)
    assert ("".join(texts), result.text) == ("abcdef", "abcdef")


def test_one_compressed_read_brings_the_texts_of_all_its_pieces() -> None:
    far = b":" + b" " * 300_000 + b"\n\n"  # further than one piece of what is unpacked
    decoding = Decoder(streams=True)
    decoding.begin({"content-encoding": "gzip"})
    assert decoding.feed(gzip.compress(like(b'"a"', b'"b"') + far + like(b'"c"', b'"d"') + far + like(b'""', b'""'))) == ["a", "b", "c", "d"]
    assert decoding.progress


def varying(every: int, count: int) -> list[bytes]:
    return [chunk(f"w{i}", created=1_790_000_000 + i // every) for i in range(count)]


def test_learning_stops_where_chunks_vary_and_goes_on_where_they_hardly_do() -> None:
    for every, learns in ((1, False), (2, False), (10, True)):
        decoding = Decoder(streams=True)
        decoding.begin({})
        texts = [text for read in varying(every, 200) for text in decoding.feed(read)]
        assert texts == [f"w{i}" for i in range(200)]
        assert (decoding._template is not None) is learns, every


RARE: list[dict[str, Any]] = [
    {"delta": {"reasoning": "hm"}},
    {"delta": {"content": "x", "refusal": "no"}},
    {"finish": "stop"},
    {"content": "one", "index": 1},
    {"content": "x", "usage": {"prompt_tokens": 3, "completion_tokens": 4}},
    {"content": "x", "error": {"message": "boom"}},
    {"delta": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]}},
]
WORDS = [" the", "", "<b>", "<", "</think>", "<think>", "\n", "né", "世界", '"', "\\", "\u2028", "probe", '"content":"x"', "x" * 40]


def random_stream(rng: random.Random) -> bytes:
    """Return a stream of plain chunks, now and then another, and something in them that may move."""
    fixed = rng.choice([{}, {"usage": None}, {"system_fingerprint": "f", "content": "decoy"}])
    odds, every, line_end = rng.choice([0, 0.05]), rng.choice([1, 5, 1000]), rng.choice([b"\n", b"\n", b"\r\n"])
    events = [
        rng.choice([b""] * 9 + [b": ping\n\n"])
        + chunk(**{**fixed, "created": i // every, **(rng.choice(RARE) if rng.random() < odds else {"content": rng.choice(WORDS)})})
        for i in range(rng.choice([3, 20, 60]))
    ]
    return b"".join([*events, rng.choice([b"", DONE, chunk(finish="stop") + DONE])]).replace(b"\n", line_end)


def test_any_stream_is_the_same_with_templates_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(300):
        rng = random.Random(seed)
        stream = random_stream(rng)
        cuts = sorted(rng.choices(range(len(stream)), k=rng.choice([0, 2, 20])))
        both_ways(monkeypatch, *(stream[i:j] for i, j in zip([0, *cuts], [*cuts, len(stream)], strict=True)))
        both_ways(monkeypatch, *stream.splitlines(keepends=True), max_response_bytes=rng.choice([None, 1000]))


# --- thinking


def split(*texts: str) -> tuple[str, str]:
    splitter = ThinkSplitter()
    pieces = [piece for text in texts for piece in splitter.feed(text)] + splitter.end()
    return "".join(p for kind, p in pieces if kind == "reasoning"), "".join(p for kind, p in pieces if kind == "text")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<think>hm</think>4", ("hm", "4")),
        ("\n<think>\nhm\n</think>\n\n4", ("hm", "4")),
        ("<think></think>4", ("", "4")),
        ("no tags < here", ("", "no tags < here")),
        ("<thin", ("", "<thin")),
        ("<b>bold</b>", ("", "<b>bold</b>")),
        ("hm</think>4", ("", "hm4")),
        ("write `</think>` so", ("", "write `</think>` so")),
        ("<think>never closed", ("never closed", "")),
        ("a <think>b</think> c", ("", "a <think>b c")),
    ],
)
def test_a_leading_think_tag_goes_to_the_reasoning(text: str, parts: tuple[str, str]) -> None:
    assert split(text) == parts
    for cut in range(len(text) + 1):
        assert split(text[:cut], text[cut:]) == parts
    assert split(*text) == parts


def test_text_without_a_tag_takes_a_short_way_only_where_no_tag_is_under_way() -> None:
    assert split("  ", "<think>a", "b</think>c", "d") == ("ab", "cd")
    assert split("a", "<", "/think", ">", "b") == ("", "ab")
    assert split(" ", "\n", "a", "b") == ("", " \nab")
    splitter = ThinkSplitter()
    assert (splitter.feed(" "), splitter.settled) == ([], False)
    assert (splitter.feed("a"), splitter.settled) == ([("text", " a")], True)
    splitter.feed("bc")
    splitter.feed("</think>")
    assert splitter.lone_at == 4
    quoting = ThinkSplitter()
    assert [*quoting.feed('say "'), *quoting.feed("</think>")] == [("text", 'say "'), ("text", "</think>")]


def test_thinking_in_a_stream_and_in_a_whole_answer() -> None:
    for result in (answer(chunk("<thi"), chunk("nk>h"), chunk("m</think>4"), chunk(finish="stop")), answer(whole("<think>hm</think>4"), streams=False)):
        assert (result.reasoning, result.text) == ("hm", "4")


def test_before_a_lone_closing_tag_a_whole_answer_is_reasoning_and_a_streams_text_stays() -> None:
    result = answer(whole("hm\n</think>\n\n4"), streams=False)
    assert (result.reasoning, result.text) == ("hm", "4")
    texts, streamed = decode(chunk("hm"), chunk("</think>"), chunk("4"), chunk(finish="stop"))
    assert isinstance(streamed, LLMResponse)
    assert "".join(texts) == streamed.text == "hm4"


# --- whole answers


def test_a_whole_answer() -> None:
    body = whole(usage={"prompt_tokens": 3, "completion_tokens": 4})
    result = answer(body, streams=False)
    assert (result.text, result.finish_reason, result.usage.total_tokens, result.model) == ("Hello", "stop", 7, "m")
    assert result.raw == json.loads(body)


@pytest.mark.parametrize("body", [whole(), b"  \n\n" + whole(), b"\xef\xbb\xbf" + whole()], ids=["plain", "white space first", "BOM"])
def test_json_where_a_stream_was_asked_for(body: bytes) -> None:
    texts, result = decode(*(body[i : i + 1] for i in range(len(body))))
    assert isinstance(result, LLMResponse)
    assert (texts, result.text) == (["Hello"], "Hello")


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/event-stream; charset=utf-8"}])
def test_a_stream_where_json_was_asked_for(headers: dict[str, str]) -> None:
    for first in (b"", b": ping\n\n", b"id: 1\n", b"retry: 5\n\n", b"event: message\n"):
        stream = first + PLAIN + USAGE + DONE
        assert answer(*(stream[i : i + 1] for i in range(len(stream))), streams=False, headers=headers).text == "Hello"


BAD_BODIES = {
    "empty": (b"", True),
    "white space": (b"  \n", True),
    "cut JSON": (whole()[:-10], True),
    "HTML": (b"<!doctype html><title>Open WebUI</title>", False),
    "text": (b"upstream error", False),
    "null": (b"null", False),
    "number": (b"5", False),
    "list": (b"[]", False),
    "no choices": (b'{"id":"x"}', True),
    "empty choices": (b'{"choices":[]}', True),
    "null choices": (b'{"choices":null}', True),
    "choices a string": (b'{"choices":"x"}', False),
    "choice a string": (b'{"choices":["x"]}', False),
    "message null": (b'{"choices":[{"message":null}]}', False),
    "NovelAI's whole answer": (b'{"object":"chat.completion.chunk","choices":[{"index":0,"text":"","token_ids":[1],"finish_reason":"stop"}]}', False),
}


@pytest.mark.parametrize(("body", "retryable"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_what_is_not_an_answer_is_a_response_error(body: bytes, retryable: bool) -> None:
    error = failure(body, streams=False)
    assert type(error) is LLMResponseError
    assert error.retryable is retryable


def test_an_answer_of_calls_alone_has_no_text() -> None:
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}]}
    result = answer(json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode(), streams=False)
    assert (result.text, result.finish_reason) == ("", "tool_calls")
    assert [(c.id, c.name, c.arguments) for c in result.tool_calls] == [("a", "f", {"x": 1})]
    assert (result.message.content, result.message.tool_calls) == (None, result.tool_calls)


def test_choices_without_a_number_are_counted() -> None:
    choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in "ab"]
    result = answer(json.dumps({"choices": choices}).encode(), streams=False, choices=2)
    assert [(c.index, c.text) for c in result.choices] == [(0, "a"), (1, "b")]


def test_what_the_provider_wants_back_beside_calls_goes_into_the_message() -> None:
    calls = [{"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}]
    stream = chunk(delta={"reasoning_content": "h"}) + chunk(delta={"reasoning_content": "m"})
    with_calls = stream + chunk(delta={"tool_calls": calls}) + chunk(finish="tool_calls")
    assert answer(with_calls, echo=("reasoning_content", "other")).message.extra == {"reasoning_content": "hm"}
    assert answer(with_calls).message.extra == {}
    assert answer(stream + chunk("x", finish="stop"), echo=("reasoning_content",)).message.extra == {}


def test_an_error_object_with_status_200() -> None:
    error = failure(json.dumps({"error": {"message": "no", "type": "invalid_request_error", "code": 400}}).encode(), streams=False)
    assert type(error) is LLMInvalidRequestError


# --- coding and size


@pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_a_coding_nobody_asked_for_is_undone(coding: str, pack: Any) -> None:
    packed = pack(PLAIN + DONE)
    assert answer(*(packed[i : i + 1] for i in range(len(packed))), headers={"content-encoding": coding}).text == "Hello"


def test_another_coding_is_refused() -> None:
    assert "'br'" in str(failure(b"...", headers={"content-encoding": "br"}))


def test_damaged_gzip_is_a_response_error() -> None:
    assert type(failure(b"not gzip at all", headers={"content-encoding": "gzip"})) is LLMResponseError


def test_a_gzip_bomb_stops_at_the_limit() -> None:
    bomb = gzip.compress(b" " * 100_000_000)
    assert len(bomb) < 200_000
    error = failure(bomb, headers={"content-encoding": "gzip"}, streams=False, max_response_bytes=1_000_000)
    assert type(error) is LLMResponseTooLargeError


def test_the_limits_of_answer_and_event() -> None:
    assert type(failure(whole("x" * 2000), streams=False, max_response_bytes=1000)) is LLMResponseTooLargeError
    assert type(failure(PLAIN * 100, max_response_bytes=1000)) is LLMResponseTooLargeError
    texts, error = decode(chunk("Hel"), b"data: " + b"x" * 2000, max_event_bytes=1000)
    assert type(error) is LLMResponseTooLargeError
    assert error.partial is not None
    assert texts == ["Hel"]
    assert not error.retryable


# --- errors


@pytest.mark.parametrize(
    ("status", "cls", "retryable"),
    [
        *((status, LLMInvalidRequestError, False) for status in (400, 412, 413, 418, 422, 501)),
        (409, LLMInvalidRequestError, True),
        (401, LLMAuthenticationError, False),
        (402, LLMQuotaExceededError, False),
        (403, LLMPermissionDeniedError, False),
        (404, LLMNotFoundError, False),
        (429, LLMRateLimitError, True),
        *((status, LLMInternalError, True) for status in (408, 424, 425, 500, 502, 504, 520, 524)),
        (505, LLMInternalError, False),
        *((status, LLMOverloadedError, True) for status in (498, 503, 529)),
        *((status, LLMResponseError, False) for status in (301, 302, 307)),
    ],
)
@pytest.mark.parametrize("body", [b"", b"{}", b"null", b"\xff\xfe", b"<html><title>no</title>", b"[]", b'"x"'])
def test_the_status_decides_where_the_body_says_nothing(status: int, cls: type[LLMError], retryable: bool, body: bytes) -> None:
    error = error_from(status, {}, body)
    assert type(error) is cls
    assert (error.retryable, error.status_code) == (retryable, status)


@pytest.mark.parametrize(
    ("status", "fields", "cls"),
    [
        (400, {"code": "context_length_exceeded"}, LLMContextLengthError),
        (400, {"type": "exceed_context_size_error"}, LLMContextLengthError),
        (429, {"code": "insufficient_quota"}, LLMQuotaExceededError),
        (429, {"message": "Too many tokens, please wait before trying again."}, LLMRateLimitError),
        (429, {"message": "the model is overloaded"}, LLMRateLimitError),
        (400, {"code": "content_filter"}, LLMContentFilterError),
        (400, {"message": "Incorrect API key provided"}, LLMAuthenticationError),
        (400, {"code": "model_not_found"}, LLMNotFoundError),
        (401, {"message": "maximum context length"}, LLMContextLengthError),
    ],
)
def test_the_bodys_words_go_before_the_status(status: int, fields: dict[str, str], cls: type[LLMError]) -> None:
    if status == 401:
        cls = LLMAuthenticationError  # but a bad key is a bad key
    assert type(error_from(status, {}, json.dumps({"error": fields}).encode())) is cls


def test_a_status_of_http_is_not_overruled_by_a_number_in_the_body() -> None:
    limited = error_from(429, {}, json.dumps({"error": {"message": "no", "code": 400}}).encode())
    assert (type(limited), limited.status_code, limited.retryable) == (LLMRateLimitError, 429, True)
    refused = error_from(400, {}, json.dumps({"error": {"message": "no", "code": 503}}).encode())
    assert (type(refused), refused.retryable) == (LLMInvalidRequestError, False)


def test_numbers_are_codes_only_where_a_code_stands() -> None:
    assert type(error_from(500, {}, b'{"error": {"message": "upstream failed on port 1004"}}')) is LLMInternalError
    assert type(error_from(200, {}, {"base_resp": {"status_code": 1004, "status_msg": "no"}})) is LLMAuthenticationError


def test_an_overload_that_comes_as_429_says_so_in_its_code() -> None:
    assert error_from(429, {}, b'{"error": {"message": "the model is overloaded"}}').code == "overloaded"


def test_a_wrong_address_is_named() -> None:
    url = "http://h/v2/chat/completions"
    assert str(error_from(404, {}, b"", url=url)) == f"Not Found (HTTP 404) from {url}; check base_url and the model's name."
    assert "points to /elsewhere" in str(error_from(307, {"location": "/elsewhere"}, b"", url=url))
    assert url not in str(error_from(500, {}, b"", url=url))


def test_an_error_object_that_is_no_proper_json_is_read_all_the_same() -> None:
    error = failure(chunk("a"), b'data: {"error": {"message": "bad \\ud800", "n": NaN, "big": 1000000000000000000000}}\n\n')
    assert type(error) is LLMInternalError
    assert "bad" in str(error)


def test_what_an_error_carries() -> None:
    body = json.dumps({"error": {"message": "no", "type": "t", "code": 7, "param": "p"}}).encode()
    error = error_from(400, {"x-request-id": "r1"}, body + b" " * 5000, provider="groq")
    assert (error.type, error.code, error.param, error.request_id, error.provider) == ("t", "7", "p", "r1", "groq")
    assert len(error.body) == 4096
    assert str(error) == "no (HTTP 400)"


def test_html_gives_its_title_alone() -> None:
    assert str(error_from(502, {}, b"<html><head><title>502 Bad\nGateway</title></head>...")) == "502 Bad Gateway (HTTP 502)"


def test_other_statuses_can_be_retried() -> None:
    assert error_from(418, {}, b"", statuses=frozenset({418})).retryable
    assert not error_from(500, {}, b"", statuses=frozenset({418})).retryable
    assert error_from(400, {"x-should-retry": "true"}, b"").retryable
    assert not error_from(500, {"x-should-retry": "false"}, b"").retryable


def test_the_key_that_a_server_sends_back_is_taken_out() -> None:
    body = json.dumps({"error": {"message": "bad key sk-secret", "code": "sk-secret"}}).encode()
    error = redacted(error_from(401, {"x-echo": "sk-secret"}, body), "sk-secret")
    assert "sk-secret" not in repr(vars(error)) + str(error) + repr(error)
    assert "bad key ***" in str(error)


def test_the_key_is_taken_out_of_escaped_json_and_of_what_had_come_too() -> None:
    key = "sk-a/secret-0123456789"
    body = json.dumps({"error": {"message": f"bad key {key}"}}).replace("/", "\\/").encode()
    assert "secret" not in redacted(error_from(401, {}, body), key).body
    broken = {"index": 0, "message": {"content": "a"}, "error": {"message": "no", "sent": [{"authorization": f"Bearer {key}"}]}}
    decoder = Decoder(streams=False)
    decoder.feed(json.dumps({"choices": [broken]}).encode())
    decoder.end()
    with pytest.raises(LLMError) as caught:
        decoder.result()
    assert key.encode() in pickle.dumps(caught.value)
    assert key.encode() not in pickle.dumps(redacted(caught.value, key))
    assert caught.value.partial is not None
    caught.value.partial.raw["model"] = "lm-studio"
    redacted(caught.value, "lm-studio")  # the key that local servers are given may be a word of the answer
    assert caught.value.partial.raw["model"] == "lm-studio"


NOW = 1_790_000_000.0


@pytest.mark.parametrize(
    ("headers", "text", "seconds"),
    [
        ({"retry-after": "2"}, "", 2.0),
        ({"retry-after": "0.5"}, "", 0.5),
        ({"retry-after-ms": "1713", "retry-after": "2"}, "", 1.713),
        ({"retry-after-ms": "0", "retry-after": "1"}, "", 1.0),
        ({"retry-after": "Mon, 21 Sep 2026 14:13:30 GMT"}, "", 10.0),
        ({"retry-after": "Mon, 21 Sep 2020 14:13:30 GMT"}, "", None),
        ({"retry-after": "Mon, 21 Sep 100000 14:13:30 GMT"}, "", None),
        *(({"retry-after": odd}, "", None) for odd in ("soon", "inf", "nan", "-1", "1e400", "0", "", "1_0", "٣", "9" * 400)),
        ({}, '"retryDelay": "37.2s"', 37.2),
        ({}, "Please try again in 1m2.5s.", 62.5),
        ({}, "please try again after 7 seconds", 7.0),
        ({"retry-after": "3"}, "try again in 9s", 3.0),
    ],
)
def test_how_long_the_server_asks_to_wait(headers: dict[str, str], text: str, seconds: float | None) -> None:
    hint = retry_hint(headers, text, NOW)
    assert hint == pytest.approx(seconds) if seconds is not None else hint is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("120ms", 0.12), ("6m0s", 360.0), ("1h0m57.015s", 3657.015), ("37.26", 37.26), ("1d2h", 93600.0), ("1µs", 1e-6), ("", None), ("soon", None), (None, None)],
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert duration(text) == (pytest.approx(seconds) if seconds is not None else None)


def test_request_id_and_rate_limits_come_from_the_headers() -> None:
    assert request_id_of({"cf-ray": "a", "x-ds-trace-id": "b"}) == "b"
    assert request_id_of({}) is None
    limits = rate_limits_of({"x-ratelimit-limit-requests": "500", "x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "6m0s"})
    assert limits is not None
    assert (limits.limit_requests, limits.remaining_tokens, limits.reset_tokens_s, limits.limit_tokens) == (500, 7, 360.0, None)
    assert rate_limits_of({"content-type": "x"}) is None
