"""What a delta, or a whole message, holds: content in parts, reasoning under all its names."""

from __future__ import annotations

from typing import Any

_REASONING = ("reasoning_content", "reasoning", "thinking")


def content_parts(content: object) -> list[tuple[str, str]]:
    """Return ("text" or "reasoning", piece) of a content that is text or a list of parts (Mistral, Databricks)."""
    if isinstance(content, str):
        return [("text", content)]
    pieces = []
    for part in content if isinstance(content, list) else ():
        if isinstance(part, str):
            pieces.append(("text", part))
        elif isinstance(part, dict):
            thoughts = part.get("thinking") or part.get("summary") or part.get("reasoning")
            inner = "".join(piece for _, piece in content_parts(thoughts))
            text = part.get("text")
            pieces.append(("reasoning", inner) if inner else ("text", text if isinstance(text, str) else ""))
    return pieces


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
    names = ("content", "refusal", "tool_calls", "function_call", "reasoning_details", *_REASONING)
    return any(delta.get(name) for name in names)


def has_more(choice: dict[str, Any], delta: dict[str, Any]) -> bool:
    """Say whether a chunk's choice holds anything but text; many servers add fields that are null or empty."""
    return any(value for name, value in delta.items() if name not in _TEXT) or any(
        value for name, value in choice.items() if name not in _FRAME
    )


_TEXT = frozenset({"content", "role"})
_FRAME = frozenset({"index", "delta"})
