"""``jazz-llm chat``: ask once, read the answer as it comes."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import click

from ..client import OpenAICompatibleLLM
from ..types import LLMResponse, Message
from .endpoint import check_endpoint, endpoint_options
from .output import write

_ADVICE = "where to? Use --local, --base-url URL or --provider NAME (and -m MODEL), or set OPENAI_API_KEY (or pass --api-key)."


@click.command()
@click.argument("prompt", nargs=-1)
@click.option("--local", is_flag=True, help="Use a small model on this machine (93 MB, fetched once), or the GGUF file of -m.")
@click.option("-m", "--model", help="Model name; with --local, the path of a GGUF file.")
@endpoint_options
@click.option("-s", "--system", help="System message.")
@click.option("--temperature", type=float, help="Sampling temperature.")
@click.option("--max-tokens", type=int, help="Longest answer, in tokens.")
@click.option("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@click.option("--stats", is_flag=True, help="Print usage, time to first token and tokens per second to stderr.")
def chat(
    prompt: tuple[str, ...],
    *,
    local: bool,
    model: str | None,
    base_url: str | None,
    provider: str | None,
    api_key: str | None,
    system: str | None,
    temperature: float | None,
    max_tokens: int | None,
    no_stream: bool,
    stats: bool,
) -> None:
    """Send PROMPT (and what is piped in) to a model and print its answer."""
    messages = [Message.system(system)] if system else []
    messages.append(Message.user(_question(prompt)))
    with ExitStack() as stack:
        model, base_url = _target(stack, local=local, model=model, base_url=base_url, provider=provider, api_key=api_key)
        sampling: dict[str, Any] = {"temperature": temperature, "max_tokens": max_tokens}
        llm = stack.enter_context(OpenAICompatibleLLM(model, api_key, base_url, provider=provider, **sampling))
        response = _whole(llm, messages) if no_stream else _streamed(llm, messages)
    if stats:
        _print_stats(response)


def _question(words: tuple[str, ...]) -> str:
    """Join what was typed and what was piped in."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    typed = " ".join(words).encode("utf-8", "replace").decode()  # bytes that are no UTF-8 come as lone surrogates
    question = "\n\n".join(filter(None, (typed, piped)))
    if not question:
        raise click.UsageError('nothing to ask: jazz-llm chat "your question", or pipe it in.')
    return question


def _target(
    stack: ExitStack, *, local: bool, model: str | None, base_url: str | None, provider: str | None, api_key: str | None
) -> tuple[str, str | None]:
    """Return the model's name and where it is."""
    if local:
        if base_url is not None or provider is not None:
            raise click.UsageError(f"--local and {'--provider' if base_url is None else '--base-url'} exclude each other.")
        from ..local import LocalServer

        if model is not None and not model.endswith(".gguf"):
            raise click.UsageError("with --local, -m is the path of a .gguf file; leave it out for the built-in model.")
        return model or "local", stack.enter_context(LocalServer(model))
    check_endpoint(_ADVICE, "DEBUG_MOCK_RESPONSES", base_url=base_url, provider=provider, api_key=api_key)
    if model is None:
        raise click.UsageError("which model? Pass -m MODEL.")
    return model, base_url


def _whole(llm: OpenAICompatibleLLM, messages: list[Message]) -> LLMResponse[Any]:
    response = llm.generate(messages)
    write(response.text)
    _end_line(response.text)
    return response


def _streamed(llm: OpenAICompatibleLLM, messages: list[Message]) -> LLMResponse[Any]:
    last = ""
    with llm.stream(messages) as stream:
        try:
            for text in stream:
                last = text
                write(text)
        finally:
            _end_line(last)
        return stream.finish()


def _end_line(text: str) -> None:
    if text and not text.endswith("\n"):
        write("\n")


def _print_stats(response: LLMResponse[Any]) -> None:
    usage, metrics = response.usage, response.metrics
    about = "about " if usage.estimated else ""
    parts = [f"{about}{usage.prompt_tokens} prompt + {usage.completion_tokens} completion tokens"]
    if metrics.time_to_first_token_ms is not None:
        parts.append(f"first token after {metrics.time_to_first_token_ms:.0f} ms")
    if metrics.tokens_per_second is not None:
        parts.append(f"{metrics.tokens_per_second:.1f} tokens/s")
    parts.append(f"{response.latency_ms:.0f} ms in all")
    sys.stderr.write(f"{', '.join(parts)} ({response.model or 'unnamed model'}, {metrics.http_version})\n")
