"""``jazz-llm gateway``: LLMs for any program, in any language, over one WebSocket; and a page to try it."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from ..config import hide_key
from ..errors import LLMConfigurationError
from .output import note
from .pages import EXIT_CODES, Page, option_in

if TYPE_CHECKING:
    from ..gateway import Gateway

_SECTIONS = {
    "Examples": (
        ("jazz-llm gateway", "Serve on this machine; the page is http://127.0.0.1:7562/:"),
        ("JAZZ_LLM_GATEWAY_TOKEN=... jazz-llm gateway --host 0.0.0.0", "Let other machines in, if they know the token:"),
        ("jazz-llm gateway --config llm.yaml", "Let clients load the sections of a file by their names:"),
    ),
    "Exit codes": EXIT_CODES,
    "Environment": (
        ("JAZZ_LLM_GATEWAY_TOKEN", "The token; better than --token, since others can see a command line."),
        ("OPENAI_API_KEY, ...", "The providers' keys, for clients that send none; never sent to a URL of a client's."),
    ),
}
_listen = option_in(group="Where to listen")
_admit = option_in(group="Whom to let in")


@click.command(cls=Page, sections=_SECTIONS, short_help="Serve LLMs over a WebSocket.")
@_listen("--host", default="127.0.0.1", show_default=True, help="The address; anything but loopback needs a token.")
@_listen("--port", default=7562, show_default=True, type=click.IntRange(0, 65535), help="The port; 0 for a free one.")
@_admit("--token", envvar="JAZZ_LLM_GATEWAY_TOKEN", metavar="TOKEN", help="What clients have to know.")
@_admit(
    "--allow-origin",
    "allow_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages of this origin in, such as https://example.org; repeatable.",
)
@option_in(group="What to serve")(
    "--config",
    metavar="FILE",
    type=click.Path(dir_okay=False),
    help="Settings as YAML; clients load its sections by their names, beside the known providers.",
)
def gateway(**settings: Any) -> None:
    """Serve LLMs to other programs over one WebSocket, until Ctrl-C: clients load a provider, and generate.

    The address it prints, opened in a browser, is a page to chat with.
    """
    if find_spec("websockets") is None:
        raise click.UsageError('the gateway needs websockets: pip install "jazz_llm[gateway]"')
    settings["token"] = hide_key(settings["token"] or None)
    import asyncio

    from ..gateway import Gateway

    try:
        made = Gateway(**settings)
    except LLMConfigurationError as error:
        raise click.UsageError(error.message) from None
    try:
        number = asyncio.run(_serve(made))
    except OSError as error:
        raise click.ClickException(f"{error.strerror or error}; --host and --port choose another address.") from None
    if number == signal.SIGINT:
        raise KeyboardInterrupt


async def _serve(made: Gateway) -> int:
    """Serve until a signal or a client's close message; return the signal's number, 0 for none."""
    import asyncio

    caught: list[int] = []

    def stop(number: int, _: object = None) -> None:
        caught.append(number)
        loop.call_soon_threadsafe(made.close)

    loop = asyncio.get_running_loop()
    async with made:
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            note(f"Open {made.url} in a browser, or connect to {made.url.replace('http', 'ws', 1)} (Ctrl-C ends it).")
            await made.wait_closed()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
    return caught[0] if caught else 0
