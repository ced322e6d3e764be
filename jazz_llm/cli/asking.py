"""One turn: ask, and show the answer. ``chat`` does it once, the REPL again and again."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ..client import OpenAICompatibleLLM
from ..tools import Tool
from ..types import LLMResponse, Message
from .output import note
from .tools import say_failures
from .view import PlainView, make_view

if TYPE_CHECKING:
    from .markdown import MarkdownView


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """How to ask, and what to show."""

    tools: tuple[Tool, ...] = ()
    schema: dict[str, Any] | None = None
    whole: bool = False  # show the answer when it is whole
    stats: bool = False

    def view(self) -> PlainView | MarkdownView:
        """Return what the answer is to be shown on."""
        return make_view(markdown=self.schema is None)


def read_schema(path: str) -> dict[str, Any]:
    """Return the JSON schema in a file."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            schema = json.load(file)
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, nested too deeply
        raise click.UsageError(f"--schema {path}: not JSON: {error}") from None
    if not isinstance(schema, dict):
        raise click.UsageError(f"--schema {path}: a JSON schema is an object, not {type(schema).__name__}.")
    return schema


def ask(llm: OpenAICompatibleLLM, messages: list[Message], manner: Manner, view: PlainView | MarkdownView) -> LLMResponse[Any]:
    """Ask, show the answer on ``view``, and return it; what was shown of one that is interrupted is ``view.text``."""
    if manner.tools or manner.whole or manner.schema is not None or not llm._config.streams:
        response = _whole(llm, messages, manner)
        with view:
            view.write(_words(response) if manner.schema is None else _json(response.parsed))
    else:
        response = _streamed(llm, messages, view)
    if manner.stats:
        _print_stats(response)
    return response


def _whole(llm: OpenAICompatibleLLM, messages: list[Message], manner: Manner) -> LLMResponse[Any]:
    if not manner.tools:
        return llm.generate(messages, response_format=manner.schema)
    response = llm.run_tools(messages, manner.tools, response_format=manner.schema)
    say_failures(response.tool_results)
    return response


def _streamed(llm: OpenAICompatibleLLM, messages: list[Message], view: PlainView | MarkdownView) -> LLMResponse[Any]:
    with view, llm.stream(messages) as stream:
        for text in stream:
            view.write(text)
        response = stream.finish()
        if not view.text:
            view.write(_words(response))
        return response


def _words(response: LLMResponse[Any]) -> str:
    return response.text or response.refusal or ""


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _print_stats(response: LLMResponse[Any]) -> None:
    usage, metrics = response.usage, response.metrics
    about = "about " if usage.estimated else ""
    parts = [f"{about}{usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens"]
    if metrics.time_to_first_token_ms is not None:
        parts.append(f"first token after {metrics.time_to_first_token_ms:.0f} ms")
    if metrics.tokens_per_second is not None:
        parts.append(f"{metrics.tokens_per_second:.1f} tokens/s")
    parts.append(f"{response.latency_ms:.0f} ms in all")
    note(f"{', '.join(parts)} ({response.model or 'unnamed model'}, {metrics.http_version})")
