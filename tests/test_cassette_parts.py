"""The pure parts of a cassette: what is taken out, how requests are matched, and that the file brings every byte back."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
from typing import Any
from unittest.mock import patch

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from jazz_llm import LLMClosedError, LLMConfigurationError, LLMConnectionError, LLMRateLimitError, LLMTimeoutError
from jazz_llm.testing import cassette_file
from jazz_llm.testing.cassette_file import NotACassetteError, dump, load
from jazz_llm.testing.cassette_secrets import MARK, Secrets
from jazz_llm.testing.cassette_tape import Answer, Asked, Exchange, Takes, Tape, asked_of, readable
from jazz_llm.transport import Request

from .canary import KEY as CANARY
from .canary import SPELLINGS

KEY = "sk_canary+/=1234567890"


def request(body: Any = None, target: str = "/v1/chat/completions", *, whole: bool = True, **headers: str) -> Request:
    sent = body if isinstance(body, bytes) else b"" if body is None else orjson.dumps(body)
    named = tuple((name.replace("_", "-"), value) for name, value in headers.items())
    return Request("POST", ("https", "api.test", 443), target, named, sent, whole=whole)


def exchange(body: Any, *reads: bytes) -> Exchange:
    return Exchange(Asked("POST", "https://api.test/", body), Answer(status=200, reads=[(0.0, read) for read in reads]))


def recorded(asked: Request, *reads: bytes, headers: dict[str, str] | None = None) -> Answer:
    takes = Takes()
    take = takes.begin(asked)
    take.head(0.001, 200, "HTTP/1.1", headers or {})
    for i, read in enumerate(reads):
        take.read(float(i), read)
    return takes.exchanges()[0].answer


# --- what is secret -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "secret"),
    [
        ("authorization", f"Bearer {KEY}", KEY),
        ("api-key", KEY, KEY),
        ("openai-organization", "my-organization", "my-organization"),
        ("openai-project", "my-project-1", "my-project-1"),
        ("cookie", "a=1; session=0123456789ab; b=2", "0123456789ab"),
        ("x-made-up-by-the-user", "0123456789", "0123456789"),
        ("proxy-authorization", "Basic dXNlcjpwYXNz", "dXNlcjpwYXNz"),
    ],
)
def test_the_values_of_headers_are_taken_out_wherever_they_stand(name: str, value: str, secret: str) -> None:
    secrets = Secrets()
    secrets.learn_request([(name, value), ("content-type", "application/json"), ("user-agent", "jazz_llm/0.1.0")])
    assert secrets.text(f"a {secret} b") == f"a {MARK} b"
    assert secrets.data(f"a {secret} b".encode()) == f"a {MARK} b".encode()
    assert secrets.value({"a": [{secret: secret, "n": 1}]}) == {"a": [{MARK: MARK, "n": 1}]}
    assert secrets.text("application/json jazz_llm/0.1.0") == "application/json jazz_llm/0.1.0"


def test_other_spellings_of_a_key() -> None:
    secrets, key = Secrets(), 'quote"back\\slash/9'
    secrets.learn_request([("authorization", f"Bearer {key}")])
    assert secrets.text(json.dumps({"k": key})) == json.dumps({"k": MARK})
    assert secrets.text(json.dumps({"k": key}).replace("/", "\\/")) == json.dumps({"k": MARK})
    assert secrets.url("https://h/p?x=quote%22back%5Cslash%2F9") == f"https://h/p?x={MARK}"


def test_where_a_cookie_counts_is_no_secret() -> None:
    """Else the host would be taken out of every URL."""
    secrets = Secrets()
    secrets.learn_answer({"set-cookie": "id=0123456789abc; Domain=api.test.example; Path=/v1/chat/completions; SameSite=None, b=abcdefghijkl; Expires=Wednesday"})
    assert secrets.url("https://api.test.example/v1/chat/completions") == "https://api.test.example/v1/chat/completions"
    assert secrets.text("0123456789abc abcdefghijkl Wednesday") == f"{MARK} {MARK} Wednesday"


def test_the_word_before_a_key_is_no_beginning_of_it() -> None:
    secrets = Secrets()
    secrets.learn_request([("authorization", f"Bearer {KEY}")])
    assert secrets.data(b"send it as Bearer") == b"send it as Bearer"


def test_a_request_is_not_cut() -> None:
    asked = asked_of(request({"model": KEY[:8]}, authorization=f"Bearer {KEY}"), secrets := Secrets())
    secrets.learn_request([("authorization", f"Bearer {KEY}")])
    assert asked_of(request({"model": KEY[:8]}), secrets) == asked


def test_half_a_key_at_the_end_is_taken_out() -> None:
    """The connection broke within it, or its reader left."""
    answer = recorded(request(whole=False, authorization=f"Bearer {KEY}"), f"data: {KEY[:-3]}".encode())
    assert [read for _, read in answer.reads] == [f"data: {MARK}".encode()]


def test_a_short_value_is_no_secret_of_a_text() -> None:
    secrets = Secrets()
    secrets.learn_request([("authorization", "Bearer EMPTY")])
    assert secrets.text("EMPTY") == "EMPTY"


def test_what_the_server_sets_and_names_is_taken_out() -> None:
    secrets = Secrets()
    headers = {"set-cookie": "__cf_bm=0123456789abc; Path=/; HttpOnly; Secure", "openai-organization": "acme-laboratories"}
    secrets.learn_answer(headers)
    assert secrets.text("0123456789abc, acme-laboratories, HttpOnly") == f"{MARK}, {MARK}, HttpOnly"
    assert secrets.headers({**headers, "x-request-id": "r-1"}) == {"x-request-id": "r-1"}


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Incorrect API key provided: sk-proj-********************abcd. You", f"Incorrect API key provided: {MARK}. You"),
        ("Rate limit reached for gpt-4o in organization org-abcdefghijklmnopqrstuvwx on tokens", f"Rate limit reached for gpt-4o in organization {MARK} on tokens"),
        ("Project `proj_abcdefghijklmnopqrstuvwx` does not", f"Project `{MARK}` does not"),
        ("a task-oriented org-chart", "a task-oriented org-chart"),
    ],
)
def test_what_is_shaped_like_a_secret_is_taken_out(said: str, kept: str) -> None:
    assert Secrets().text(said) == kept


@pytest.mark.parametrize(
    ("url", "kept"),
    [
        ("https://h/v1/chat?api-version=1&api-key=abc&x=1", f"https://h/v1/chat?api-version=1&api-key={MARK}&x=1"),
        ("https://h/v1?key=abc", f"https://h/v1?key={MARK}"),
        ("https://h/v1/projects/mine/locations/eu/chat", f"https://h/v1/projects/{MARK}/locations/eu/chat"),
        ("https://h/v1/monkey?turkey=1&max_tokens=2", "https://h/v1/monkey?turkey=1&max_tokens=2"),
    ],
)
def test_urls(url: str, kept: str) -> None:
    assert Secrets().url(url) == kept


def test_fields_that_are_secret_by_name() -> None:
    body = {"model": "m", "max_tokens": 5, "api_key": "x", "aws_secret_access_key": "y", "extra": {"password": "z", "eos_token": "</s>"}}
    assert Secrets().value(body) == {**body, "api_key": MARK, "aws_secret_access_key": MARK, "extra": {"password": MARK, "eos_token": "</s>"}}


def test_of_an_answers_headers_only_harmless_ones_are_kept() -> None:
    kept = {"content-type": "a/b", "retry-after": "1", "x-ratelimit-remaining-tokens": "1", "x-request-id": "r", "apim-request-id": "r", "cf-ray": "r"}
    other = {"set-cookie": "a=b", "openai-organization": "o", "x-anything": "x", "authorization": "x", "cf-cache-status": "x"}
    assert Secrets().headers({**kept, **other, "location": "https://h/?token=abc"}) == {**kept, "location": f"https://h/?token={MARK}"}


# --- a key that is spread over a stream -----------------------------------------------------------------------------------------


def event(index: int = 0, **delta: Any) -> bytes:
    return b"data: " + orjson.dumps({"id": "sk_model", "choices": [{"index": index, "delta": delta}]}) + b"\n\n"


def test_a_key_in_the_deltas_of_several_events() -> None:
    pieces = [KEY[:4], KEY[4:5], KEY[5:15], KEY[15:] + " is it"]
    asked = request(whole=False, authorization=f"Bearer {KEY}")
    answer = recorded(asked, *(event(content=f"{'Your key: ' if i == 0 else ''}{piece}") + event(1, content="other") for i, piece in enumerate(pieces)))
    deltas = [json.loads(line[6:])["choices"][0] for _, read in answer.reads for line in read.decode().splitlines() if line]
    assert "".join(d["delta"]["content"] for d in deltas if d["index"] == 0) == f"Your key: {MARK} is it"
    assert "".join(d["delta"]["content"] for d in deltas if d["index"] == 1) == "other" * 4


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_key_in_another_spelling_in_the_deltas_of_several_events(spelling: str) -> None:
    spelt = SPELLINGS[spelling](CANARY)
    reads = [event(content=f"Your key: {spelt[:9]}"), event(content=spelt[9:21]), event(content=f"{spelt[21:]} is it")]
    answer = recorded(request(whole=False, authorization=f"Bearer {CANARY}"), *reads)
    deltas = [json.loads(read[6:])["choices"][0]["delta"]["content"] for _, read in answer.reads]
    assert "".join(deltas) == f"Your key: {MARK} is it"


def test_equal_events_are_not_mistaken_for_each_other() -> None:
    key = "abcabcabcabc"
    answer = recorded(request(whole=False, x_key=key), b"".join(event(content="abc") for _ in range(5)))
    assert b"".join(read for _, read in answer.reads) == event(content=MARK) + event(content="") * 3 + event(content="abc")


def test_a_key_in_the_arguments_of_a_tool_call() -> None:
    reads = [event(tool_calls=[{"index": 0, "function": {"arguments": part}}]) for part in (f'{{"k": "{KEY[:8]}', f'{KEY[8:]}"}}')]
    answer = recorded(request(whole=False, authorization=f"Bearer {KEY}"), *reads)
    assert b"".join(read for _, read in answer.reads).count(MARK.encode()) == 1
    assert KEY[8:].encode() not in b"".join(read for _, read in answer.reads)


def test_a_key_in_json_that_escapes_more_than_it_must() -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in KEY)
    answer = recorded(request(authorization=f"Bearer {KEY}"), f' {{"error": {{"message": "no: {escaped}!"}}}}'.encode())
    assert [read for _, read in answer.reads] == [f' {{"error": {{"message": "no: {MARK}!"}}}}'.encode()]


@given(st.integers(1, 30), st.sampled_from(["\n\n", "\r\n\r\n"]))
def test_a_key_that_is_cut_by_two_reads(size: int, gap: str) -> None:
    body = f'data: {{"error": "{KEY}"}}{gap}: {KEY}{gap}data: {KEY}'.encode()
    answer = recorded(request(whole=False, authorization=f"Bearer {KEY}"), *(body[i : i + size] for i in range(0, len(body), size)))
    assert b"".join(read for _, read in answer.reads) == body.replace(KEY.encode(), MARK.encode())


@given(st.lists(st.sampled_from([b"data: {}", b"\n", b"\r\n", b"\r", b": x", "Ü😀".encode()[:3], b"\x98\x80"]), max_size=30), st.booleans())
def test_reads_are_grouped_without_losing_a_byte(reads: list[bytes], whole: bool) -> None:
    answer = recorded(request(whole=whole), *reads)
    assert b"".join(read for _, read in answer.reads) == b"".join(reads)
    assert len(answer.reads) <= (1 if whole else len(reads))


def test_deep_and_broken_events_are_left_as_they_are() -> None:
    reads = [b"data: " + b"[" * 100000 + b"\n\n", b'data: {"a":' * 50 + b"\n\n", b"data: \xff{}\n\n", b'data: {"choices": [1, {"index": []}, null]}\n\n']
    answer = recorded(request(whole=False, authorization=f"Bearer {KEY}"), *reads)
    assert [read for _, read in answer.reads] == reads


def test_a_compressed_body_is_stored_plain() -> None:
    body = orjson.dumps({"text": f"Grüße, {KEY}"})
    packed = gzip.compress(body)
    answer = recorded(request(authorization=f"Bearer {KEY}"), packed[:9], packed[9:], headers={"content-encoding": "gzip", "content-type": "x"})
    assert [read for _, read in answer.reads] == [body.replace(KEY.encode(), MARK.encode())]
    assert answer.headers == {"content-type": "x"}


@pytest.mark.parametrize("packed", [b"no gzip at all", gzip.compress(bytes(65 * 2**20))[:100000], gzip.compress(KEY.encode())[:-9] + b"damage"], ids=["none", "bomb", "damaged"])
def test_a_damaged_compressed_body_leaves_nothing_of_itself(packed: bytes) -> None:
    answer = recorded(request(authorization=f"Bearer {KEY}"), packed, headers={"content-encoding": "gzip"})
    assert answer.headers == {"content-encoding": "gzip"}
    assert [read for _, read in answer.reads] == [b"(damaged)"]
    assert KEY.encode() not in b"".join(read for _, read in answer.reads)


@pytest.mark.parametrize("coding", ["br", "zstd", "gzip, gzip"])
def test_a_coding_that_cannot_be_read_leaves_nothing_of_the_body(coding: str) -> None:
    """It may hide a key."""
    answer = recorded(request(authorization=f"Bearer {KEY}"), gzip.compress(KEY.encode()), headers={"content-encoding": coding})
    assert (answer.headers, [read for _, read in answer.reads]) == ({"content-encoding": coding}, [b"(unreadable)"])


def test_only_codings_that_can_be_read_are_asked_for() -> None:
    asked = readable(request(accept_encoding="gzip, deflate, br, zstd", accept="text/plain, text/html"))
    assert dict(asked.headers) == {"accept-encoding": "gzip, deflate", "accept": "text/plain, text/html"}
    assert readable(request(accept_encoding="identity")) == request(accept_encoding="identity")


# --- matching -----------------------------------------------------------------------------------------------------------------


def test_the_order_of_fields_does_not_matter_but_that_of_lists_does() -> None:
    secrets = Secrets()
    assert asked_of(request(b'{"a":1,"b":{"c":2,"d":3}}'), secrets).key() == asked_of(request(b'{ "b":{"d":3,"c":2}, "a":1}'), secrets).key()
    assert asked_of(request({"a": [1, 2]}), secrets).key() != asked_of(request({"a": [2, 1]}), secrets).key()
    assert asked_of(request({"a": 1}), secrets).key() != asked_of(request({"a": True}), secrets).key()


@pytest.mark.parametrize(("body", "kept"), [(b"", None), (b"text", "text"), (b"\xff\xfe", "//4="), (b"[" * 100000, "[" * 100000)])
def test_bodies_that_are_no_json(body: bytes, kept: Any) -> None:
    assert asked_of(request(body), Secrets()).body == kept


def test_answers_come_in_order_and_run_out() -> None:
    tape = Tape("t.yaml", [exchange({"a": 1}, b"1"), exchange({"a": 2}, b"2"), exchange({"a": 1}, b"3")])
    asked = Asked("POST", "https://api.test/", {"a": 1})
    assert [tape.answer_to(asked).reads[0][1] for _ in range(2)] == [b"1", b"3"]
    with pytest.raises(LLMConfigurationError, match=r"t.yaml holds this request 2 times, and this is time 3: POST https://api.test/"):
        tape.answer_to(asked)


def test_what_was_stripped_may_be_another_secret_now() -> None:
    tape = Tape("t.yaml", [exchange({"auth": MARK, "a": "1"}, b"1")])
    assert tape.answer_to(Asked("POST", "https://api.test/", {"a": "1", "auth": "sk_another"})).reads == [(0.0, b"1")]
    assert Tape("t.yaml", [exchange({"auth": MARK})]).answer_to(Asked("POST", "https://api.test/", {"auth": 'a "quoted\\" one'})).status == 200
    with pytest.raises(LLMConfigurationError, match=r'"a": "1",\n.*"a": "2",\n') as caught:
        tape.answer_to(Asked("POST", "https://api.test/", {"a": "2", "auth": "sk_another"}))
    assert "sk_another" not in str(caught.value)


def test_many_marks_in_one_text_take_no_time() -> None:
    held, asked = (f"x {' b '.join([word] * times)} end" for word, times in ((MARK, 8), ("sk_another", 300)))
    tape = Tape("t.yaml", [exchange({"a": held, "b": "1"}, b"1")])
    began = time.process_time()
    assert tape.answer_to(Asked("POST", "https://api.test/", {"a": asked, "b": "1"})).reads == [(0.0, b"1")]
    for other in ({"a": asked, "b": "2"}, {"a": f"{asked}!", "b": "1"}, {"a": asked, "b": "1", "c": "end"}):
        with pytest.raises(LLMConfigurationError, match="differs in"):
            tape.answer_to(Asked("POST", "https://api.test/", other))
    assert time.process_time() - began < 2


def test_a_changed_request_says_what_differs_from_the_nearest() -> None:
    long = "word " * 400
    tape = Tape("t.yaml", [exchange({"model": "m", "n": 1, "text": "something else"}), exchange({"model": "m", "n": 1, "text": long + "old"})])
    with pytest.raises(LLMConfigurationError) as caught:
        tape.answer_to(Asked("POST", "https://api.test/", {"model": "m", "n": 2, "text": long + "new"}))
    lines = str(caught.value).splitlines()
    assert lines[0] == "t.yaml holds no answer to this request. The nearest of its 2 requests, number 2, differs in:"
    assert lines[1:3] == ['  -   "n": 1,', '  +   "n": 2,']
    assert lines[3].startswith("  - ...")
    assert lines[3].endswith('old"')
    assert lines[4].endswith('new"')
    assert max(map(len, lines)) < 140
    assert lines[5] == 'To record again, delete the file and run with mode="once".'


def test_the_difference_is_short() -> None:
    tape = Tape("t.yaml", [exchange({str(i): i for i in range(100)})])
    with pytest.raises(LLMConfigurationError, match=r"\.\.\. and 190 lines more") as caught:
        tape.answer_to(Asked("GET", "https://api.test/other", {str(i): -i for i in range(1, 101)}))
    assert len(str(caught.value).splitlines()) == 15


def test_an_empty_tape_says_so() -> None:
    with pytest.raises(LLMConfigurationError, match=r"It is empty\."):
        Tape("t.yaml", []).answer_to(Asked("GET", "https://api.test/", None))


# --- errors -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        LLMConnectionError("No connection", maybe_processed=False, retryable=True),
        LLMTimeoutError("slow", phase="between_tokens"),
        LLMRateLimitError("calm", retryable=True, code="overloaded"),
    ],
)
def test_errors_are_made_anew(error: Any) -> None:
    takes = Takes()
    takes.begin(request()).failed(1.0, error)
    answer = load(dump(takes.exchanges()))[0].answer
    made = answer.failure()
    assert type(made) is type(error)
    assert vars(made) == vars(error)
    assert made is not answer.failure()


def test_an_error_that_holds_a_key() -> None:
    takes = Takes()
    takes.begin(request(authorization=f"Bearer {KEY}")).failed(1.0, LLMConnectionError(f"lost: {KEY}"))
    error = takes.exchanges()[0].answer.failure()
    assert error is not None
    assert error.message == f"lost: {MARK}"


def test_a_close_of_ones_own_is_no_error_of_the_answer() -> None:
    takes = Takes()
    takes.begin(request()).failed(1.0, LLMClosedError("closed"))
    answer = takes.exchanges()[0].answer
    assert (answer.error, answer.left) == (None, True)


# --- the file -----------------------------------------------------------------------------------------------------------------

JSON = st.recursive(st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(), lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8)
READS = st.one_of(st.binary(), st.text().map(str.encode), JSON.map(orjson.dumps), st.sampled_from([" a\nb \n", "\n\n", "a\n\x85b", "a\u2028\nb\n", "\ufeffa\nb", "a\r\nb", "a\r\n\r\n", "a\r\nb\n", "\ta\nb", "😀\nb", "- a\n# b", "a: b", "2024-01-01", "yes", "1e3", "0x1f", "12:30", "~", "---\n", "...\n"]).map(str.encode))


@given(JSON, st.lists(READS, max_size=4))
def test_every_byte_comes_back(body: Any, reads: list[bytes]) -> None:
    kept = [exchange(body, *reads)]
    assert load(dump(kept)) == kept


@given(JSON, st.lists(READS, max_size=4))
def test_every_byte_comes_back_of_a_large_file(body: Any, reads: list[bytes]) -> None:
    kept = [exchange(body, *reads)]
    with patch.object(cassette_file, "_LARGE_FILE", -1):
        assert load(dump(kept)) == kept


@pytest.mark.parametrize("loader", [yaml.SafeLoader, getattr(yaml, "CSafeLoader", yaml.SafeLoader)])
def test_both_loaders_of_pyyaml_read_it(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cassette_file, "_Loader", loader)
    kept = [exchange({"a": "x\n😀 \n\u2028\x07"}, "data: Ü\n\n".encode(), b"\xff", b'{"a":[1.5,-2e-07]}')]
    assert load(dump(kept)) == kept


def test_it_reads_well() -> None:
    asked = request({"model": "m", "messages": [{"role": "user", "content": "Say\nhi 😀"}], "input": [1.5, 2]}, whole=False)
    takes = Takes()
    take = takes.begin(asked)
    take.head(0.0104, 200, "HTTP/2", {"content-type": "text/event-stream"})
    take.read(0.0211, 'data: {"a":"Grüße"}\n\n'.encode())
    take.read(0.0312, b"data: [DONE]\r\n\r\n")
    take.read(0.04, b"")
    assert dump(takes.exchanges()).partition("exchanges:\n")[2] == (
        """\
- request:
    method: POST
    url: https://api.test/v1/chat/completions
    body:
      model: m
      messages:
      - role: user
        content: |-
          Say
          hi 😀
      input: [1.5, 2]
  answer:
    at: 0.01
    status: 200
    http_version: HTTP/2
    headers:
      content-type: text/event-stream
    reads:
    - at: 0.021
      text: |+
        data: {"a":"Grüße"}

    - at: 0.031
      crlf: |+
        data: [DONE]

"""
    )


HEAD = "format: jazz_llm cassette 1\nexchanges:\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "its format is None"),
        ("just text", "its format is None"),
        ("interactions: []\nversion: 1\n", "its format is None"),  # vcrpy's
        ("format: jazz_llm cassette 2\nexchanges: []\n", "its format is 'jazz_llm cassette 2', not 'jazz_llm cassette 1'"),
        ("a: [1", "it is not YAML"),
        ("\x07", "it is not YAML"),
        ("[" * 5000, "it is not YAML"),
        ("!!python/object/apply:os.system ['true']", "it is not YAML"),
        ("format: jazz_llm cassette 1\n", "it has no list of exchanges"),
        (HEAD + "- 1\n", "exchange number 1 is not whole"),
        (HEAD + "- request: {method: GET, url: u, body: null}\n", "exchange number 1 is not whole .KeyError: 'answer'"),
        (HEAD + "- request: {method: GET, url: u}\n  answer: {}\n", "KeyError: 'body'"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {colour: 1}\n", "colour"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {status: ok}\n", "status must be numbers"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {at: soon}\n", "at and status must be numbers"),
        (HEAD + "- request: {method: GET, url: u, body: {1: a, b: c}}\n  answer: {}\n", "a name in it is no text"),
        (HEAD + "- request: {method: GET, url: u, body: " + "[" * 600 + "]" * 600 + "}\n  answer: {}\n", "nested too deeply"),
        (HEAD + "- request: {method: GET, url: u, body: &a [*a]}\n  answer: {}\n", "aliases stand for too much"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {reads: [{at: 0, json: &a {b: *a}}]}\n", "aliases stand for too much"),
        ("".join(f"b{i}: &b{i} [{', '.join([f'*b{i - 1}' if i else 'lol'] * 10)}]\n" for i in range(9)) + HEAD + "- request: *b8\n", "aliases stand for too much"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {reads: [{at: 0, text: 1}]}\n", "number 1 is not whole"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {reads: [{at: 0, base64: '*'}]}\n", "number 1 is not whole"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {error: {type: OSError, message: m, at: 0.1}}\n", "'OSError' is no class of"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {error: {type: LLMError, at: 0.1}}\n", "KeyError: 'message'"),
        (HEAD + "- request: {method: GET, url: u, body: 1}\n  answer: {error: {type: LLMError, message: 1, at: 0.1}}\n", "message must be text"),
    ],
)
def test_a_file_that_is_none(text: str, why: str) -> None:
    with pytest.raises(NotACassetteError, match=why):
        load(text)


@given(st.data())
def test_a_file_that_was_cut_is_refused_or_read_as_far_as_it_goes(data: st.DataObject) -> None:
    text = dump([exchange({"a": "b"}, b"data: 1\n\n"), exchange({"a": "c"}, b'{"x":1}')])
    cut = text[: data.draw(st.integers(0, len(text)))]
    with contextlib.suppress(NotACassetteError):
        assert len(load(cut)) <= 2


def test_repr_shows_no_body() -> None:
    take = Takes().begin(request({"secret": "body-text"}, authorization=f"Bearer {KEY}"))
    take.read(0.0, b"answer-text")
    shown = repr((take, take.answer, take.request, exchange({"a": "body-text"}, b"answer-text")))
    assert "body-text" not in shown
    assert "answer-text" not in shown
    assert KEY not in shown
