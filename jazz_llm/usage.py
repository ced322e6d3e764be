"""Any provider's usage -> :class:`LLMUsage`.

The rules: the prompt includes cached tokens and the completion includes reasoning tokens, whatever the provider does; the
total is computed here; what is not reported is None, never 0; one fact under two names is taken once; nothing is ever summed
over chunks; no shape, however odd, raises.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from .providers import BY_NAME
from .types import LLMUsage

# Where each count may stand, best first; a dot goes one object down.
PROMPT = ("prompt_tokens", "input_tokens")
COMPLETION = ("completion_tokens", "output_tokens")
CACHED = (
    "prompt_tokens_details.cached_tokens",
    "prompt_token_details.cached_tokens",  # Mistral, misspelt
    "input_tokens_details.cached_tokens",
    "cached_tokens",  # Moonshot, Together
    "prompt_cache_hit_tokens",  # DeepSeek
    "cache_read_input_tokens",
    "cache_read_prompt_tokens",  # LiteLLM before Anthropic
)
CACHE_WRITE = (
    "prompt_tokens_details.cache_write_tokens",
    "prompt_tokens_details.cache_creation_input_tokens",  # DashScope
    "prompt_tokens_details.cache_creation_tokens",
    "cache_creation_input_tokens",
    "cache_creation_prompt_tokens",
)
REASONING = (
    "completion_tokens_details.reasoning_tokens",
    "output_tokens_details.reasoning_tokens",
    "reasoning_tokens",  # SGLang, Perplexity
)
_PLAIN = {"prompt_tokens", "completion_tokens", "total_tokens"}
COST = ("cost", "cost.total_cost", "estimated_cost")


def normalize_usage(
    raw: Mapping[str, Any] | None, *, provider: str | None = None, prompt: str = "", completion: str = ""
) -> LLMUsage:
    """Return the counts of one call; ``prompt`` and ``completion`` are the texts to estimate from where a count is missing."""
    usage = raw if isinstance(raw, Mapping) else {}
    given_prompt, given_completion = _prompt(usage), _count(usage, COMPLETION)
    before = _estimate(prompt) if given_prompt is None else given_prompt
    after = _estimate(completion) if given_completion is None else given_completion
    details = () if usage.keys() <= _PLAIN else (CACHED, CACHE_WRITE, REASONING)
    cached, written, reasoning = [_count(usage, places) for places in details] or (None, None, None)
    if given_prompt is not None and given_completion is not None:
        before, after, reasoning = _excess(usage, before, after, reasoning, provider)
    return LLMUsage(
        prompt_tokens=before,
        completion_tokens=after,
        total_tokens=before + after,
        cached_tokens=_at_most(cached, before),
        cache_write_tokens=_at_most(written, before),
        reasoning_tokens=_at_most(reasoning, after),
        cost=_cost(usage),
        estimated=given_prompt is None or given_completion is None,
        raw=raw if isinstance(raw, Mapping) else None,
    )


def usage_of(chunk: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the usage object of an answer or a chunk that has a count other than zero, or None."""
    return next((usage for usage in _candidates(chunk) if _has_counts(usage)), None)


def _candidates(chunk: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    groq = chunk.get("x_groq")
    choices = chunk.get("choices")
    yield from (
        place
        for place in (
            chunk.get("usage"),
            groq.get("usage") if isinstance(groq, Mapping) else None,
            *(c.get("usage") for c in (choices if isinstance(choices, list) else ()) if isinstance(c, Mapping)),
            _timings(chunk.get("timings")),
        )
        if isinstance(place, Mapping)
    )


def _timings(timings: object) -> Mapping[str, Any] | None:
    """llama.cpp without include_usage: prompt_n counts only what was not in the cache."""
    if not isinstance(timings, Mapping):
        return None
    cached, fresh, after = (_integer(timings.get(name)) for name in ("cache_n", "prompt_n", "predicted_n"))
    if fresh is None or after is None:
        return None
    usage: dict[str, Any] = {"prompt_tokens": (cached or 0) + fresh, "completion_tokens": after}
    return usage if cached is None else {**usage, "cached_tokens": cached}


def _has_counts(usage: Mapping[str, Any]) -> bool:
    return any(_count(usage, places) for places in (PROMPT, COMPLETION, ("total_tokens",)))


def _prompt(usage: Mapping[str, Any]) -> int | None:
    count = _count(usage, PROMPT[:1])
    if count is not None:
        return count
    # Anthropic's own counting leaves the cache out of input_tokens; only it names the two parts so.
    parts = [_count(usage, (name,)) for name in ("cache_read_prompt_tokens", "cache_creation_prompt_tokens")]
    count = _count(usage, PROMPT[1:])
    if count is None and not any(parts):
        return None
    return (count or 0) + sum(part or 0 for part in parts)


def _excess(
    usage: Mapping[str, Any], before: int, after: int, reasoning: int | None, provider: str | None
) -> tuple[int, int, int | None]:
    """Give what the provider's total holds beyond prompt and completion to the side it belongs to."""
    excess = (_count(usage, ("total_tokens",)) or 0) - before - after
    audio = _count(usage, ("prompt_tokens_details.audio_tokens", "audio_prompt_tokens"))
    if excess > 0:
        if excess == reasoning:  # xAI
            return before, after + excess, reasoning
        if excess == audio or "prompt_audio_seconds" in usage:  # Mistral voxtral
            return before + excess, after, reasoning
        return before, after + excess, excess if reasoning is None else reasoning  # Gemini's hidden thoughts
    row = BY_NAME.get(provider or "")
    if row is not None and row.reasoning_outside and reasoning is not None and reasoning > after:
        return before, after + reasoning, reasoning
    return before, after, reasoning


def _count(usage: Mapping[str, Any], places: tuple[str, ...]) -> int | None:
    return next((n for place in places if (n := _integer(_dig(usage, place))) is not None), None)


def _dig(usage: Mapping[str, Any], place: str) -> object:
    if "." not in place:
        return usage.get(place)
    outer, inner = place.split(".")
    details = usage.get(outer)
    return details.get(inner) if isinstance(details, Mapping) else None


def _integer(value: object) -> int | None:
    """Return a count that is whole and not negative, also where it came as a float or as text."""
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
    for place in COST:
        value = _dig(usage, place)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _at_most(part: int | None, whole: int) -> int | None:
    return None if part is None else min(part, whole)


def _estimate(text: str) -> int:
    return math.ceil(len(text) / 4)
