"""``jazz-llm models``: what an endpoint serves, one name per line."""

from __future__ import annotations

import sys

import click

from ..types import ModelInfo
from .endpoint import Where, endpoint_options
from .output import is_terminal, write
from .pages import ENVIRONMENT, EXIT_CODES, Page

_ADVICE = "whose models? Use --base-url URL or --provider NAME, or set OPENAI_API_KEY (or pass --api-key)."
_SECTIONS = {
    "Examples": (
        ("jazz-llm models --base-url http://localhost:11434", "What Ollama has on this machine:"),
        ("jazz-llm models --provider groq | grep llama", "What Groq serves, filtered:"),
    ),
    "Exit codes": EXIT_CODES,
    "Environment": ENVIRONMENT,
}


@click.command(cls=Page, sections=_SECTIONS, short_help="List the models of an endpoint.")
@endpoint_options
def models(*, where: Where) -> None:
    """Print the names of the models that can be asked, one per line; on a terminal with the length of their context."""
    with where.llm(_ADVICE, model="any") as llm:  # the list is the same for every model
        found = llm.list_models()
    lines = _table(found) if is_terminal(sys.stdout) else map(_name, found)
    write("".join(f"{line}\n" for line in lines))


def _table(models: list[ModelInfo]) -> list[str]:
    width = max((len(_name(model)) for model in models), default=0)
    return [f"{_name(model):{width}}  {_context(model)}".rstrip() for model in models]


def _name(model: ModelInfo) -> str:
    return "".join(filter(str.isprintable, model.id))  # one line each, whatever the server says


def _context(model: ModelInfo) -> str:
    return "" if model.context_length is None else f"{model.context_length:>11,} tokens"
