"""Any provider's usage -> :class:`LLMUsage`.

The rules: the prompt includes cached tokens and the completion includes reasoning tokens, whatever the provider does; the
total is computed here; what is not reported is None, never 0; one fact under two names is taken once; nothing is ever summed
over chunks; no shape, however odd, raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from .providers import BY_NAME
from .types import LLMUsage

_MAPPING = (dict, Mapping)  # in this order: to ask for the usual one costs a third of what an abstract class does


def _places(*paths: str) -> tuple[tuple[str, str], ...]:
    """Return where a count may stand, best first, as (name, name in the object of that name or ""); a dot goes down."""
    return tuple((outer, inner) for outer, _, inner in (path.partition(".") for path in paths))


PROMPT = _places("prompt_tokens", "input_tokens")
COMPLETION = _places("completion_tokens", "output_tokens")
TOTAL = _places("total_tokens")
CACHED = _places(
    "prompt_tokens_details.cached_tokens",
    "prompt_token_details.cached_tokens",  # Mistral, misspelt
    "input_tokens_details.cached_tokens",
    "cached_tokens",  # Moonshot, Together
    "prompt_cache_hit_tokens",  # DeepSeek
    "cache_read_input_tokens",
    "cache_read_prompt_tokens",  # LiteLLM before Anthropic
)
CACHE_WRITE = _places(
    "prompt_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_input_tokens",  # DashScope
    "prompt_tokens_details.cache_creation_tokens",
    "cache_creation_input_tokens",
    "cache_creation_prompt_tokens",
)
REASONING = _places(
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
    "reasoning_tokens",  # SGLang, Perplexity
)
COST = _places("cost", "cost.total_cost", "estimated_cost", "cost_in_usd_ticks")
_TICKS = 1e10  # to a dollar: docs.x.ai, "Cost tracking"
_AUDIO = _places("prompt_tokens_details.audio_tokens", "audio_prompt_tokens")
_ANTHROPIC_CACHE = (_places("cache_read_prompt_tokens"), _places("cache_creation_prompt_tokens"))
_PLAIN = {"prompt_tokens", "completion_tokens", "total_tokens"}


def normalize_usage(
    raw: Mapping[str, Any] | None, *, provider: str | None = None, prompt: str = "", completion: str = ""
) -> LLMUsage:
    """Return the counts of one call; ``prompt`` and ``completion`` are the texts to estimate from where a count is missing."""
    usage = raw if isinstance(raw, _MAPPING) else {}
    given_prompt, given_completion = _prompt(usage), _count(usage, COMPLETION)
    before = _estimate(prompt) if given_prompt is None else given_prompt
    after = _estimate(completion) if given_completion is None else given_completion
    cached = written = reasoning = cost = None
    if not usage.keys() <= _PLAIN:
        cached, written, reasoning = _count(usage, CACHED), _count(usage, CACHE_WRITE), _count(usage, REASONING)
        cost = _cost(usage)
    if given_prompt is not None and given_completion is not None:
        before, after, reasoning = _excess(usage, before, after, reasoning, provider)
    return LLMUsage(
        prompt_tokens=before,
        completion_tokens=after,
        total_tokens=before + after,
        cached_tokens=None if cached is None else min(cached, before),
        cache_write_tokens=None if written is None else min(written, before),
        reasoning_tokens=None if reasoning is None else min(reasoning, after),
        cost=cost,
        estimated=given_prompt is None or given_completion is None,
        raw=raw if isinstance(raw, _MAPPING) else None,
    )


def usage_of(chunk: dict[str, Any]) -> dict[str, Any] | None:
    """Return the usage object of an answer or a chunk, as read from JSON, that has a count other than zero, or None."""
    for usage in _candidates(chunk):
        if isinstance(usage, dict) and (_count(usage, PROMPT) or _count(usage, COMPLETION) or _count(usage, TOTAL)):
            return usage
    return None


def _candidates(chunk: dict[str, Any]) -> Iterator[Any]:
    yield chunk.get("usage")
    groq = chunk.get("x_groq")
    if isinstance(groq, dict):
        yield groq.get("usage")
    choices = chunk.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, dict):
            yield choice.get("usage")
    yield _timings(chunk.get("timings"))


def _timings(timings: object) -> dict[str, Any] | None:
    """llama.cpp without include_usage: prompt_n counts only what was not in the cache."""
    if not isinstance(timings, dict):
        return None
    cached, fresh, after = (_integer(timings.get(name)) for name in ("cache_n", "prompt_n", "predicted_n"))
    if fresh is None or after is None:
        return None
    usage: dict[str, Any] = {"prompt_tokens": (cached or 0) + fresh, "completion_tokens": after}
    return usage if cached is None else {**usage, "cached_tokens": cached}


def _prompt(usage: Mapping[str, Any]) -> int | None:
    count = _count(usage, PROMPT[:1])
    if count is not None:
        return count
    # Anthropic's own counting leaves the cache out of input_tokens; only it names the two parts so.
    parts = [_count(usage, places) for places in _ANTHROPIC_CACHE]
    count = _count(usage, PROMPT[1:])
    if count is None and not any(parts):
        return None
    return (count or 0) + sum(part or 0 for part in parts)


def _excess(
    usage: Mapping[str, Any], before: int, after: int, reasoning: int | None, provider: str | None
) -> tuple[int, int, int | None]:
    """Give what the provider's total holds beyond prompt and completion to the side it belongs to."""
    excess = (_count(usage, TOTAL) or 0) - before - after
    if excess > 0:
        if excess == reasoning:  # xAI
            return before, after + excess, reasoning
        if excess == _count(usage, _AUDIO) or "prompt_audio_seconds" in usage:  # Mistral voxtral
            return before + excess, after, reasoning
        return before, after + excess, excess if reasoning is None else reasoning  # Gemini's hidden thoughts
    if reasoning is not None and reasoning > after:
        row = BY_NAME.get(provider or "")
        if row is not None and row.reasoning_outside:
            return before, after + reasoning, reasoning
    return before, after, reasoning


def _count(usage: Mapping[str, Any], places: tuple[tuple[str, str], ...]) -> int | None:
    for name, inner in places:
        value = usage.get(name)
        if inner:
            value = _inside(value, inner)
        if value is not None and (number := _integer(value)) is not None:
            return number
    return None


def _inside(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, _MAPPING) else None


def _integer(value: object) -> int | None:
    """Return a count that is whole and not negative, also where it came as a float or as text."""
    if value.__class__ is int:
        return value if 0 <= value < 2**63 else None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value) if isinstance(value, str) else value
        if isinstance(number, float) and not number.is_integer():
            return None
        return int(number) if 0 <= number < 2**63 else None
    except (ValueError, OverflowError):
        return None


def _cost(usage: Mapping[str, Any]) -> float | None:
    for name, inner in COST:
        value = _inside(usage.get(name), inner) if inner else usage.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
            return float(value) / _TICKS if name == "cost_in_usd_ticks" else float(value)
    return None


def _estimate(text: str) -> int:
    return math.ceil(len(text) / 4)
