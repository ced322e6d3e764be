"""The list of models, in any of the shapes that servers give it.

``{"data": [...]}`` is OpenAI's, and most have it; a bare list is Together's and GitHub's, ``models`` that of Ollama's and
Gemini's own APIs and of Cohere, ``result`` Cloudflare's, ``endpoints`` Databricks'. llama.cpp sends ``data`` and ``models``,
which say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..types import ModelInfo
from .decoder import broken, excerpt
from .lists import ListDecoder
from .parsing import text_or_none

# Where the list is, best first, and where an entry has the name that a call is made with: Cloudflare's ``id`` is only a UUID.
_NAMES = ("id", "name", "model", "slug")
_LISTS = {"data": _NAMES, "models": _NAMES, "result": ("name", "id"), "endpoints": ("name",)}
# Fields that hold the context's length, in tokens. Those that know what is served stand before what the model was trained for.
_CONTEXT = (
    ("context_length",),  # Together, OpenRouter, Fireworks, Cohere, Moonshot
    ("max_model_len",),  # vLLM, SGLang
    ("context_window",),  # Groq
    ("max_context_length",),  # Mistral, LM Studio
    ("top_provider", "context_length"),  # OpenRouter
    ("max_input_tokens",),  # Anthropic, LiteLLM
    ("limits", "max_input_tokens"),  # GitHub's catalog
    ("inputTokenLimit",),  # Gemini's own API
    ("meta", "n_ctx"),  # llama.cpp
    ("meta", "n_ctx_train"),
)


class ModelsDecoder(ListDecoder):
    """Decode the answer to ``GET /models``."""

    def _read(self, body: bytes, answer: Any) -> None:
        models = models_of(answer)
        if models is None:
            self._fail(broken(f"The answer is not a list of models: {excerpt(body)}", retryable=False, body=body))
        else:
            self._parsed = models


def models_of(answer: Any) -> list[ModelInfo] | None:
    """Return the models that an answer's JSON lists, each once; None where it is no such list, or names none of its entries."""
    entries, names = _entries(answer)
    if entries is None:
        return None
    models: dict[str, ModelInfo] = {}
    for model in _models_in(entries, names):
        models.setdefault(model.id, model)
    return list(models.values()) if models or not entries else None


def _entries(answer: Any) -> tuple[list[Any] | None, tuple[str, ...]]:
    """Return the list, and where its entries have their names. A Go server's empty list is null, and Gemini leaves it out."""
    if isinstance(answer, list):
        return answer, _NAMES
    if not isinstance(answer, dict):
        return None, ()
    for key, names in _LISTS.items():
        if isinstance(answer.get(key), list):
            return answer[key], names
    told = [answer[key] for key in _LISTS if key in answer]
    empty = all(value is None for value in told) if told else answer in ({}, {"object": "list"})
    return [] if empty else None, ()


def _models_in(entries: list[Any], names: tuple[str, ...]) -> Iterator[ModelInfo]:
    for entry in entries:
        fields = {names[0]: entry} if isinstance(entry, str) else entry
        if isinstance(fields, dict) and (name := _name(fields, names)):
            yield ModelInfo(
                id=name,
                created=_count(fields.get("created")),
                owned_by=text_or_none(fields.get("owned_by")),
                context_length=_context_length(fields),
                raw=fields,
            )


def _name(entry: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    found = next(filter(None, (text_or_none(entry.get(name)) for name in names)), "")
    return found.removeprefix("models/")  # Gemini's, whose chat takes the bare name


def _context_length(entry: Mapping[str, Any]) -> int | None:
    return next(filter(None, (_count(_at(entry, path)) for path in _CONTEXT)), None)


def _at(entry: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        entry = entry.get(name) if isinstance(entry, dict) else None
    return entry


def _count(value: object) -> int | None:
    """Return a whole number that is not negative, also where it came as 1.0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0 or value != value // 1:
        return None
    return int(value)
