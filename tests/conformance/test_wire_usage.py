"""Every recorded usage, through ``normalize_usage`` and through the decoder, as an answer or as a stream."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from jazz_llm import LLMUsage, normalize_usage
from jazz_llm.usage import usage_of

from .wire import cases, decode, decoder_for, provider_of

CASES = cases("usage_cases.json", "more_usage_cases.json")
COUNTS = ("prompt_tokens", "completion_tokens", "total_tokens")
# What is not a reading of the case's own, and why.
OVERRULED = {
    # CONTRACT 2: total is always prompt + completion, and a completion that is not given is len/4 of the text ("ok": 1).
    "u117_generic": {"total_tokens": 11},
    # CONTRACT 2: total is always prompt + completion, so where a part is estimated ("hello world": 3) it is.
    "u116_generic": {"total_tokens": 8},
}
PROMPT = "hello world"


def check(case: dict[str, Any], usage: LLMUsage, completion: str) -> None:
    """Compare with any of the case's readings; None among the three counts means not given, so estimated."""
    readings = [case["expected"], *case.get("alternatives", ())]
    assert any(fits(case, reading, usage, completion) for reading in readings), (usage, readings)
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def fits(case: dict[str, Any], expected: dict[str, Any], usage: LLMUsage, completion: str) -> bool:
    own = OVERRULED.get(case["id"], {}) if completion else {}
    missing = [name for name in COUNTS if expected[name] is None]
    wanted = {name: value for name, value in expected.items() if name not in missing} | own
    estimates = {"prompt_tokens": math.ceil(len(PROMPT) / 4), "completion_tokens": math.ceil(len(completion) / 4)}
    wanted |= {name: estimates[name] for name in missing if name in estimates}
    return usage.estimated is bool(missing) and all(getattr(usage, name) == value for name, value in wanted.items())


def bodies(case: dict[str, Any]) -> list[bytes]:
    if case["where"] == "response":
        return [json.dumps(case["raw"]).encode()]
    return [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in case["raw"]["chunks"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_usage_of_an_answer(case: dict[str, Any]) -> None:
    whole = {**case, "stream_requested": case["where"] == "stream"}
    for reads in (bodies(case), [b"".join(bodies(case))]):
        _, answer, _ = decode(decoder_for(whole, prompt=lambda: PROMPT), reads)
        written = answer.text + (answer.reasoning or "") + "".join(call.raw_arguments for call in answer.tool_calls)
        check(case, answer.usage, written if len(answer.choices) < 2 else "".join(c.text for c in answer.choices))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_usage_itself(case: dict[str, Any]) -> None:
    chunks = case["raw"]["chunks"] if case["where"] == "stream" else [case["raw"].get("result") or case["raw"]]
    found = [usage for usage in map(usage_of, chunks) if usage]
    # Zeros that a whole answer reports are its counts; in a stream they are a place left free.
    given = found[-1] if found else chunks[-1].get("usage") if case["where"] == "response" else None
    before = json.dumps(given)
    usage = normalize_usage(given, provider=provider_of(case), prompt=PROMPT)
    assert usage.raw == given
    assert json.dumps(given) == before
    check(case, usage, "")


def test_the_overruled_cases_are_soft() -> None:
    soft = {case["id"] for case in CASES if {"confidence", "disputed", "alternatives", "optional"} & case.keys()}
    assert OVERRULED.keys() <= soft
