"""Feed the decoder what the bytes say: ``python -m tests.fuzz.fuzz_decoder [seconds]``, guided by coverage where atheris is installed.

An input is one byte of flags and then an answer, raw. The corpus begins with the cases of ``tests/conformance/data``. Each
answer is decoded whole and in pieces, which must agree, and its JSON goes through ``normalize_usage`` and ``error_from``. The
input that broke a rule is printed.
"""

from __future__ import annotations

import base64
import importlib
import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any

import jazz_llm.response.choice
import jazz_llm.response.decoder
import jazz_llm.response.deltas
import jazz_llm.response.parsing
import jazz_llm.response.template
import jazz_llm.sse
import jazz_llm.tools
import jazz_llm.usage
from jazz_llm.errors import LLMError
from jazz_llm.response import decoder, error_from
from jazz_llm.response.parsing import INVALID, parse_json

DATA = Path(__file__).parents[1] / "conformance" / "data"
PROVIDERS = [None, "deepinfra", "bedrock", "xai"]
# In the order in which one imports the other.
MODULES = [jazz_llm.sse, jazz_llm.tools, jazz_llm.usage, jazz_llm.response.parsing, jazz_llm.response.deltas, jazz_llm.response.choice, jazz_llm.response.template, jazz_llm.response.decoder]  # fmt: skip
WORDS = [
    b"data: ", b"\n\n", b"\r\n", b"\r", b": ping\n\n", b"[DONE]", b'"delta":{', b'"message":{', b'"content":"', b'"content":[', b'"tool_calls":[{', b'"index":0', b'"id":"a"', b'"function":{', b'"name":"w"', b'"arguments":"{}"',
    b'"usage":{', b'"prompt_tokens":9', b'"completion_tokens":-1', b'"total_tokens":1e400', b"<think>", b"</think>", b"<reasoning>", b'"reasoning":', b'"error":', b'"choices":[', b'"finish_reason":"stop"', b'"logprobs":{', b'"result":{', b"null", b"\\ud83d", b"\xe2\x80\xa8", b"}", b"]",
]  # fmt: skip


def decoded(flags: int, reads: list[bytes]) -> tuple[Any, ...]:
    """Return what must not depend on how the answer was cut."""
    made = decoder.Decoder(
        streams=bool(flags & 1), choices=1 + (flags >> 1 & 1), provider=PROVIDERS[flags >> 2 & 3], max_response_bytes=4000, max_event_bytes=3000
    )
    made.begin({"content-type": "text/event-stream"} if flags & 16 else {})
    texts: list[str] = []
    for read in reads:
        if made.over:
            break
        texts += made.feed(read)
    texts += made.end()
    assert all(texts), "an empty text was given out"
    try:
        answer, error = made.result(), None
    except LLMError as failure:
        assert failure.partial is not None
        answer, error = failure.partial, failure
    usage = answer.usage
    check(usage)
    assert flags & 1 == 0 or made._whole or "".join(texts) == answer.text
    choices = [(c.index, c.text, c.reasoning, c.finish_reason, [(t.name, t.raw_arguments) for t in c.tool_calls]) for c in answer.choices]
    return "".join(texts), type(error), choices, usage.prompt_tokens, usage.completion_tokens, usage.estimated, answer.refusal


def check(usage: jazz_llm.LLMUsage) -> None:
    cached, written, reasoning = usage.cached_tokens or 0, usage.cache_write_tokens or 0, usage.reasoning_tokens or 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert min(usage.prompt_tokens, usage.completion_tokens, cached, written, reasoning) >= 0
    assert max(cached, written) <= usage.prompt_tokens
    assert reasoning <= usage.completion_tokens


def fuzz_one(data: bytes) -> None:
    flags, body = data[0] if data else 0, data[1:4000]
    step = 1 + (flags >> 5) * 5
    assert decoded(flags, [body]) == decoded(flags, [body[i : i + step] for i in range(0, len(body), step)])
    value = parse_json(body)
    if value is not INVALID:
        check(jazz_llm.usage.normalize_usage(value, provider=PROVIDERS[flags >> 2 & 3]))
        assert isinstance(error_from(200 + flags, {}, value), LLMError)
    assert isinstance(error_from(200 + flags, {}, body), LLMError)


def seeds() -> list[bytes]:
    """Return the cases as inputs: streams as they came, usages as answers and alone."""
    found = []
    for name in ("stream_cases.json", "more_stream_cases.json"):
        for case in json.loads((DATA / name).read_text("utf-8")):
            body = base64.b64decode(case["bytes_b64"]) if "bytes_b64" in case else case["bytes_text"].encode()
            found.append(b"\x01" + body)
    for name in ("usage_cases.json", "more_usage_cases.json"):
        for case in json.loads((DATA / name).read_text("utf-8")):
            raw = case["raw"]
            found += [b"\x00" + json.dumps(part).encode() for part in (raw.get("chunks") or [raw, raw.get("usage")])]
    return found


def mutated(rng: Random, known: list[bytes]) -> bytes:
    data = bytearray(rng.choice(known))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data))
        how = rng.randrange(4)
        if how == 0:
            data[at] = rng.randrange(256)
        else:
            new = rng.choice(WORDS) if how < 3 else bytes(rng.choice(known)[at : at + 60])
            data[at : at + rng.choice([0, 0, len(new), 20])] = new
    return bytes(data[:4000])


def run(seconds: float) -> None:
    rng, known, runs, end = Random(), seeds(), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        data = mutated(rng, known)
        try:
            fuzz_one(data)
        except BaseException:
            sys.stderr.write(f"input: {data.hex()}\n")
            raise
        known = [*known[:1000], data] if runs % 10 == 0 else known
        runs += 1
    sys.stdout.write(f"{runs} inputs in {seconds:g} s, nothing found\n")


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60
    try:
        import atheris
    except ImportError:
        run(seconds)
        return
    with atheris.instrument_imports():
        for module in MODULES:
            importlib.reload(module)
    with tempfile.TemporaryDirectory() as corpus:
        for i, seed in enumerate(seeds()):
            (Path(corpus) / f"{i:04}").write_bytes(seed)
        words = Path(corpus).with_suffix(".dict")
        words.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in WORDS))
        atheris.Setup(
            [
                sys.argv[0],
                corpus,
                f"-max_total_time={seconds:.0f}",
                "-max_len=4000",
                "-len_control=0",
                f"-dict={words}",
                "-verbosity=1",
                "-print_final_stats=1",
            ],
            fuzz_one,
        )
        atheris.Fuzz()  # ends the process with a line that tells how many inputs were run


if __name__ == "__main__":
    main()
