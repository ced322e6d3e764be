"""``jazz-llm chat``: ask once, or talk; read the answer as it comes."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from typing import Any

import click

from ..client import OpenAICompatibleLLM
from ..tools import Tool
from ..types import Message
from .asking import Manner, ask, read_schema
from .endpoint import Where, endpoint_options
from .output import is_terminal
from .pages import ENVIRONMENT, EXIT_CODES, Page, option_in
from .tools import load_tools

_ADVICE = "where to? Use --local, --base-url URL or --provider NAME (and -m MODEL), or set OPENAI_API_KEY (or pass --api-key)."
_SECTIONS = {
    "Without PROMPT, on a terminal": (
        ("Enter", "Send. The conversation so far goes with it."),
        ("Alt+Enter", 'A new line; or begin with """ and send with a last line that ends in """.'),
        ("Ctrl-C", "Stop the answer, at the server too, and stay. What had come of it is kept in the conversation."),
        ("Ctrl-D, /exit", "Leave."),
        ("/system TEXT", "Set the system message; without TEXT drop it."),
        ("/model NAME", "Ask another model from now on."),
        ("/clear", "Forget the conversation, but not the system message."),
        ("/help", "List the commands."),
        ("Up, Ctrl-R", "What was typed before, also in former sessions; see Files."),
    ),
    "Examples": (
        ('jazz-llm chat --local "Name three colours."', "Ask a small model on this machine:"),
        ("jazz-llm chat --base-url http://localhost:11434 -m llama3.2", "Talk to a model of Ollama's:"),
        ('git diff | jazz-llm chat -m gpt-4o-mini "Write a commit message."', "Add what is piped in to the question:"),
        ('jazz-llm chat -m gpt-4o-mini --image cat.png "What is this?"', "Ask about an image:"),
        ('jazz-llm chat -m gpt-4o-mini --schema person.json "Who wrote it?" | jq .name', "Get JSON that fits a schema:"),
        ('jazz-llm chat -m gpt-4o-mini --tool weather:forecast "Rain in Delft?"', "Let it call forecast() of ./weather.py:"),
    ),
    "Exit codes": EXIT_CODES,
    "Environment": (
        *ENVIRONMENT,
        ("DEBUG_MOCK_RESPONSES", '\'["one", "two"]\': answers to give, with no server.'),
        ("XDG_STATE_HOME", "Where the history is kept, instead of ~/.local/state (Windows: LOCALAPPDATA)."),
    ),
    "Files": (
        ("~/.local/state/jazz_llm/history", "What was typed, readable by its owner alone; never the key. Delete it at will."),
    ),
}
_what = option_in(group="What to ask")
_how = option_in(group="How to answer")


@click.command(cls=Page, sections=_SECTIONS, short_help="Ask a model, or talk with it.")
@click.argument("prompt", nargs=-1)
@_what("-m", "--model", help="The model's name; with --local, the path of a GGUF file.")
@_what("-s", "--system", metavar="TEXT", help="The system message.")
@_what(
    "--image", "images", metavar="FILE", multiple=True, type=click.Path(), help="Show it an image, or a URL of one; repeatable."
)
@_what(
    "--tool",
    "tools",
    multiple=True,
    metavar="MODULE:FUNCTION",
    callback=load_tools,
    help="Let it call this Python function, also from a module in the current folder; repeatable. Calls are shown on stderr.",
)
@_what("--temperature", type=float, metavar="NUMBER", help="The sampling temperature.")
@_what("--max-tokens", type=int, metavar="NUMBER", help="The longest answer, in tokens.")
@_how(
    "--schema",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False),
    help="Print JSON that fits the JSON schema in FILE.",
)
@_how("--no-stream", is_flag=True, help="Print the answer when it is whole.")
@_how("--stats", is_flag=True, help="Print usage, time to first token and tokens per second to stderr.")
@option_in(group="Where to ask")(
    "--local", is_flag=True, help="A small model on this machine (93 MB, fetched once), or the file of -m."
)
@endpoint_options
def chat(
    prompt: tuple[str, ...],
    *,
    where: Where,
    local: bool,
    model: str | None,
    system: str | None,
    images: tuple[str, ...],
    tools: tuple[Tool, ...],
    schema: str | None,
    no_stream: bool,
    stats: bool,
    **sampling: Any,
) -> None:
    """Send PROMPT (and what is piped in) to a model and print its answer; without PROMPT, on a terminal, talk with it.

    On a terminal the answer is shown as Markdown while it comes, else printed as it is. Reasoning is not shown.
    """
    question = _question(prompt)
    if not question and not _talks():
        raise click.UsageError('nothing to ask: jazz-llm chat "your question", or pipe it in.')
    manner = Manner(tools=tools, schema=None if schema is None else read_schema(schema), whole=no_stream, stats=stats)
    with ExitStack() as stack:
        llm = stack.enter_context(_llm(stack, where, model, sampling, local=local))
        if question:
            rules = [Message.system(system)] if system else []
            ask(llm, [*rules, Message.user(question, images=images)], manner, manner.view())
        else:
            from .repl import Repl

            Repl(llm, manner, system, images).run()


def _talks() -> bool:
    return is_terminal(sys.stdin) and is_terminal(sys.stdout)


def _question(words: tuple[str, ...]) -> str:
    """Join what was typed and what was piped in."""
    piped = "" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read().decode("utf-8", "replace").strip()
    typed = " ".join(words).encode("utf-8", "replace").decode()  # bytes that are no UTF-8 come as lone surrogates
    return "\n\n".join(filter(None, (typed, piped)))


def _llm(stack: ExitStack, where: Where, model: str | None, sampling: dict[str, Any], *, local: bool) -> OpenAICompatibleLLM:
    if not local:
        return where.llm(_ADVICE, "DEBUG_MOCK_RESPONSES", model=model, **sampling)
    where.refuse_beside("--local")
    if model is not None and not model.endswith(".gguf"):
        raise click.UsageError("with --local, -m is the path of a .gguf file; leave it out for the built-in model.")
    from ..local import LocalServer

    return OpenAICompatibleLLM(model or "local", where.api_key, stack.enter_context(LocalServer(model)), **sampling)
