"""What a delta, or a whole message, holds: content in parts, reasoning under all its names."""

from __future__ import annotations

from typing import Any

_REASONING = ("reasoning_content", "reasoning", "thinking")
_THOUGHTS = frozenset({"thinking", "reasoning", "reasoning_text", "thought"})  # types of parts
_CONTENT = frozenset({"content", "refusal", "tool_calls", "function_call", "reasoning_details", *_REASONING})
TEXT_FIELDS = frozenset({"content", "role"})  # of a delta


def content_parts(content: object) -> list[tuple[str, str]]:
    """Return ("text" or "reasoning", piece) of a content that is text or a list of parts (Mistral, Databricks)."""
    if isinstance(content, str):
        return [("text", content)]
    pieces = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            pieces.append(("text", part))
        elif isinstance(part, dict):
            pieces.append(("reasoning", _inner_text(part.get("thinking") or part.get("summary") or part.get("reasoning"))))
            text = part.get("text")
            kind = "reasoning" if part.get("type") in _THOUGHTS else "text"
            pieces.append((kind, text if isinstance(text, str) else ""))
    return pieces


def _inner_text(thoughts: object) -> str:
    """Return the text of thoughts that are text, or a list of text and of parts that hold some."""
    if isinstance(thoughts, str):
        return thoughts
    parts = thoughts if isinstance(thoughts, list) else ()
    texts = (part.get("text") if isinstance(part, dict) else part for part in parts)
    return "".join(text for text in texts if isinstance(text, str))


def unwrapped(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the answer itself of an object without choices: Cloudflare wraps it in ``result``, or writes ``response``."""
    inner = answer.get("result")
    answer = inner if isinstance(inner, dict) else answer
    text = answer.get("response")
    if "choices" in answer or not isinstance(text, str):
        return answer
    return {**answer, "choices": [{"index": 0, "message": None, "delta": {"content": text}}]}


def reasoning_of(delta: dict[str, Any]) -> str:
    """Return the reasoning of a delta; OpenRouter sends the same under two names, so the first that holds text is it."""
    for name in _REASONING:
        value = delta.get(name)
        if isinstance(value, str) and value:
            return value
    details = delta.get("reasoning_details")
    texts = [d.get("text") or d.get("summary") for d in details if isinstance(d, dict)] if isinstance(details, list) else []
    return "".join(text for text in texts if isinstance(text, str))


def has_content(delta: dict[str, Any]) -> bool:
    """Say whether a delta holds anything that a caller could be given."""
    return any(map(delta.get, _CONTENT))


def plain_text(chunk: Any) -> str | None:
    """Return the text of a chunk that holds nothing else, None for any other chunk, and for text with a tag in it."""
    try:
        (choice,) = chunk["choices"]
        delta = choice["delta"]
        text = delta.get("content")
        if (
            text.__class__ is not str
            or "<" in text
            or choice.get("index") != 0
            or chunk.get("usage") is not None
            or "error" in chunk
            or (not _TOP.issuperset(chunk) and any(map(chunk.get, chunk.keys() - _TOP)))
            or _has_more(choice, delta)
        ):
            return None
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return text


def _has_more(choice: dict[str, Any], delta: dict[str, Any]) -> bool:
    """Say whether a chunk's choice holds anything but text; many servers add fields that are null or empty."""
    # Written as loops: 0.3 us, where generators took 0.6.
    for name, value in choice.items():
        if value and name not in _FRAME:
            return True
    for name, value in delta.items():  # noqa: SIM110
        if value and name not in TEXT_FIELDS:
            return True
    return False


_FRAME = frozenset({"index", "delta"})
# What plain chunks may say at their top: the first chunk has said it, or it is padding.
_HEAD = frozenset({"id", "object", "created", "model", "choices", "usage", "system_fingerprint", "service_tier", "provider"})
PADDING = frozenset({"obfuscation", "p"})  # OpenAI; Mistral, Cloudflare
_TOP = _HEAD | PADDING
