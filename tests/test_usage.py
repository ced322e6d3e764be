from __future__ import annotations

from types import MappingProxyType

import pytest

from jazz_llm import normalize_usage
from jazz_llm.usage import usage_of

ODD = [None, {}, {"prompt_tokens": None}, {"prompt_tokens": -1, "completion_tokens": 5}, {"prompt_tokens": "x"}, {"prompt_tokens": []}]
ODD += [{"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, {"prompt_tokens": 10**400}, {"prompt_tokens_details": 5}]
ODD += ["text", 5, [1], {"completion_tokens_details": {"reasoning_tokens": {}}}, {"total_tokens": True}, {"cost": "free"}]
ODD += [{"cost": 10**400}, {"cost": {"total_cost": float("nan")}}]


@pytest.mark.parametrize("raw", ODD, ids=repr)
def test_no_shape_raises_and_the_sums_hold(raw: object) -> None:
    usage = normalize_usage(raw, prompt="x" * 40, completion="y" * 9)  # type: ignore[arg-type]
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.estimated
    assert (usage.reasoning_tokens or 0) <= usage.completion_tokens


def test_counts_are_taken_as_they_are() -> None:
    raw = {
        "prompt_tokens": 1211,
        "completion_tokens": 310,
        "total_tokens": 1521,
        "prompt_tokens_details": {"cached_tokens": 1024, "cache_write_tokens": 100},
        "completion_tokens_details": {"reasoning_tokens": 192},
        "cost": 0.5,
    }
    usage = normalize_usage(raw)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (1211, 310, 1521)
    assert (usage.cached_tokens, usage.cache_write_tokens, usage.reasoning_tokens) == (1024, 100, 192)
    assert (usage.cost, usage.estimated, usage.raw) == (0.5, False, raw)


def test_what_is_not_reported_is_none_and_zero_is_zero() -> None:
    usage = normalize_usage({"prompt_tokens": 0, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}})
    assert (usage.prompt_tokens, usage.cached_tokens, usage.reasoning_tokens, usage.cost) == (0, 0, None, None)
    assert not usage.estimated


def test_missing_counts_are_a_quarter_of_the_text() -> None:
    usage = normalize_usage(None, prompt="x" * 9, completion="y" * 8)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens, usage.estimated) == (3, 2, 5, True)


@pytest.mark.parametrize(
    ("raw", "provider", "expected"),
    [
        ({"prompt_tokens": 307, "completion_tokens": 26, "total_tokens": 560, "completion_tokens_details": {"reasoning_tokens": 227}}, "xai", (307, 253, 227)),
        ({"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 134}, "gemini", (20, 114, 105)),
        ({"prompt_tokens": 18, "completion_tokens": 2, "total_tokens": 270, "prompt_audio_seconds": 0}, "mistral", (268, 2, None)),
        ({"prompt_tokens": 20, "completion_tokens": 84, "completion_tokens_details": {"reasoning_tokens": 1081}}, "deepinfra", (20, 1165, 1081)),
        ({"prompt_tokens": 20, "completion_tokens": 84, "completion_tokens_details": {"reasoning_tokens": 85}}, "openrouter", (20, 84, 84)),
        ({"prompt_tokens": 10, "completion_tokens": 4, "total_tokens": 0}, None, (10, 4, None)),
        ({"prompt_tokens": "12", "completion_tokens": 7.0}, None, (12, 7, None)),
        ({"prompt_tokens": 18, "completion_tokens": 2, "total_tokens": 30, "audio_prompt_tokens": 10}, None, (28, 2, None)),
    ],
)
def test_what_providers_count_elsewhere_is_put_where_it_belongs(raw: dict, provider: str | None, expected: tuple) -> None:
    usage = normalize_usage(raw, provider=provider)
    assert (usage.prompt_tokens, usage.completion_tokens, usage.reasoning_tokens) == expected


@pytest.mark.parametrize(
    ("chunk", "prompt"),
    [
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 1}, "x_groq": {"usage": {"prompt_tokens": 2}}}, 1),
        ({"usage": None, "x_groq": {"usage": {"prompt_tokens": 2, "completion_tokens": 1}}}, 2),
        ({"choices": [{"usage": {"prompt_tokens": 3, "completion_tokens": 1}}]}, 3),
        ({"timings": {"cache_n": 20, "prompt_n": 13, "predicted_n": 7}}, 33),
    ],
)
def test_where_usage_is_looked_for(chunk: dict, prompt: int) -> None:
    assert normalize_usage(usage_of(chunk)).prompt_tokens == prompt


@pytest.mark.parametrize("chunk", [{}, {"usage": {}}, {"usage": {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}}, {"choices": None}])
def test_an_empty_or_zero_usage_is_none_so_that_it_erases_nothing(chunk: dict) -> None:
    assert usage_of(chunk) is None


def test_a_mapping_need_not_be_a_dict() -> None:
    details = MappingProxyType({"cached_tokens": 2})
    usage = normalize_usage(MappingProxyType({"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": details}))
    assert (usage.prompt_tokens, usage.cached_tokens, usage.estimated) == (5, 2, False)


def test_a_part_is_never_more_than_its_whole() -> None:
    details = {"cached_tokens": 9, "cache_write_tokens": 8}
    usage = normalize_usage({"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": details})
    assert (usage.cached_tokens, usage.cache_write_tokens) == (5, 5)


def test_costs() -> None:
    assert normalize_usage({"cost": 1}).cost == 1.0
    assert normalize_usage({"cost": {"total_cost": 0.25}}).cost == 0.25
    assert normalize_usage({"cost": float("inf"), "estimated_cost": 0.5}).cost == 0.5
    assert normalize_usage({"cost": True}).cost is None
