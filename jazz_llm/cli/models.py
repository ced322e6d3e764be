"""``jazz-llm models``: what an endpoint serves, one name per line."""

from __future__ import annotations

import sys

import click

from ..client import OpenAICompatibleLLM
from ..types import ModelInfo
from .endpoint import check_endpoint, endpoint_options
from .output import write

_ADVICE = "whose models? Use --base-url URL or --provider NAME, or set OPENAI_API_KEY (or pass --api-key)."


@click.command()
@endpoint_options
def models(*, base_url: str | None, provider: str | None, api_key: str | None) -> None:
    """Print the names of the models that can be asked, one per line; on a terminal with the length of their context."""
    check_endpoint(_ADVICE, base_url=base_url, provider=provider, api_key=api_key)
    with OpenAICompatibleLLM("any", api_key, base_url, provider=provider) as llm:  # the list is the same for every model
        found = llm.list_models()
    terminal = sys.stdout is not None and sys.stdout.isatty()
    write("".join(f"{line}\n" for line in (_table(found) if terminal else map(_name, found))))


def _table(models: list[ModelInfo]) -> list[str]:
    width = max((len(_name(model)) for model in models), default=0)
    return [f"{_name(model):{width}}  {_context(model)}".rstrip() for model in models]


def _name(model: ModelInfo) -> str:
    return "".join(filter(str.isprintable, model.id))  # one line each, whatever the server says


def _context(model: ModelInfo) -> str:
    return "" if model.context_length is None else f"{model.context_length:>11,} tokens"
