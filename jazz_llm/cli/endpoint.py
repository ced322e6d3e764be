"""Where to ask, and with which settings: the options that every command shares."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..client import OpenAICompatibleLLM
from ..errors import LLMConfigurationError
from ..providers import PROVIDERS
from .pages import option_in

_VARIABLES = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "MODEL_API_URL")
_PREFIX = "JAZZ_LLM__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """What the options say of the endpoint."""

    base_url: str | None
    provider: str | None
    api_key: str | None = field(repr=False)
    config: str | None
    section: str | None

    def llm(
        self, advice: str, *variables: str, model: str | None, unnamed: str | None = None, **settings: Any
    ) -> OpenAICompatibleLLM:
        """Make the instance: options > ``JAZZ_LLM__`` variables > the file of ``--config`` > defaults.

        Args:
            advice: What to say where nothing says whom to ask: OpenAI without a key is not what anybody means.
            variables: Names of more variables that say it.
            model: What ``-m`` says.
            unnamed: The model's name where nothing names one; None: that is an error.
            settings: Other arguments of the constructor; None is not given.
        """
        if self.section is not None and self.config is None:
            raise click.UsageError("--section is a part of the file of --config FILE, which is not given.")
        if not self._said(variables):
            raise click.UsageError(advice)
        given = {name: value for name, value in {**settings, "model": model}.items() if value is not None} | self._place()
        try:
            return self._made(given)
        except LLMConfigurationError:
            if "model" in given:
                raise
        llm = self._made({**given, "model": unnamed or "unnamed"})  # raises again where the model was not what is missing
        if unnamed is None:
            raise click.UsageError("which model? Pass -m MODEL; jazz-llm models lists them.")
        return llm

    def _place(self) -> dict[str, str | None]:
        """Return where to ask; None says so too, or a key of the environment's would go to a URL that it is not meant for."""
        place = {"base_url": self.base_url, "provider": self.provider, "api_key": self.api_key}
        said = self.base_url is not None or self.provider is not None
        return {name: value for name, value in place.items() if said or value is not None}

    def refuse_beside(self, option: str) -> None:
        """Refuse what says to ask elsewhere than ``option`` does."""
        for name, value in (("--base-url", self.base_url), ("--provider", self.provider), ("--config", self.config)):
            if value is not None:
                raise click.UsageError(f"{option} and {name} exclude each other.")

    def _said(self, variables: tuple[str, ...]) -> bool:
        options = (self.base_url, self.provider, self.api_key, self.config)
        known = (*_VARIABLES, *variables, *(name for name in os.environ if name.upper().startswith(_PREFIX)))
        return options != (None,) * 4 or any(map(os.environ.get, known))

    def _made(self, given: dict[str, Any]) -> OpenAICompatibleLLM:
        if self.config is None:
            return OpenAICompatibleLLM.from_env(_PREFIX, **given)
        return OpenAICompatibleLLM.from_yaml(self.config, self.section, **given)


def _providers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:  # noqa: ARG001  # click's
    return [CompletionItem(row.name, help=row.base_url) for row in PROVIDERS if row.name.startswith(incomplete)]


_option = option_in(group="Where to ask")
_BASE_URL = _option(
    "--base-url",
    metavar="URL",
    help="Where the API is, such as http://localhost:11434. URL, provider and key of variables and files then do not count.",
)
_OTHERS = (
    _option(
        "--provider",
        metavar="NAME",
        shell_complete=_providers,
        help="A provider's name, such as groq or vllm, instead of its URL (the same holds), or beside your own.",
    ),
    _option("--api-key", metavar="KEY", help="The key; better set the provider's variable: others can see a command line."),
    _option(
        "--config",
        metavar="FILE",
        type=click.Path(dir_okay=False),
        help="Settings as YAML, by the names of OpenAICompatibleLLM's arguments; JAZZ_LLM__ variables and options win.",
    ),
    _option("--section", metavar="NAME", help="The part of that file to take."),
)


def other_endpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where to ask, but --base-url; the command takes them as ``where``."""

    @functools.wraps(command)
    def packed(*, base_url: Any, provider: Any, api_key: Any, config: Any, section: Any, **others: Any) -> Any:
        where = Where(base_url=base_url, provider=provider, api_key=api_key, config=config, section=section)
        return command(where=where, **others)

    decorated: Callable[..., Any] = packed
    for option in reversed(_OTHERS):
        decorated = option(decorated)
    return decorated


def endpoint_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where to ask; the command takes them as ``where``."""
    return _BASE_URL(other_endpoint_options(command))
