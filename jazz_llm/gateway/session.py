"""One connection: what is loaded, what runs, and what an incoming message starts, ends or answers. Nothing here waits.

``receive`` returns steps for the driver, in their order: bytes to send, a ``Load`` or ``Generate`` to start, a ``Stop`` for
one that runs, a ``Close`` for the gateway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import protocol
from .protocol import Close, Code, Generate, GetModels, GetProviders, Interrupt, Load, Problem

MOST_GENERATIONS = 64  # at once on one connection


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load brought: the ``llm`` to ask, its ``models``, and the ``model`` to take where a request names none."""

    llm: Any
    models: tuple[str, ...] = ()
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Stop:
    """End what runs under this id; its done message follows by itself."""

    id: str


Step = bytes | Load | Generate | Stop | Close


class Session:
    """What one client has loaded and running."""

    def __init__(
        self,
        providers: Sequence[str],
        needs: Mapping[str, Sequence[str]] | None = None,
        *,
        may_close: bool = True,
        most: int = MOST_GENERATIONS,
    ) -> None:
        self.loaded: Loaded | None = None
        self._providers = providers
        self._needs = needs or {}  # as get_providers_done names them
        self._may_close = may_close
        self._most = most
        self._running: dict[str, Load | Generate] = {}
        self._newest: Load | None = None
        self._handlers: dict[str, Callable[[Any], list[Step]]] = {
            "load": self._load,
            "generate": self._generate,
            "interrupt": self._interrupt,
            "close": self._close,
            "get_providers": self._get_providers,
            "get_models": self._get_models,
        }

    def receive(self, data: str | bytes) -> list[Step]:
        """Return what a message asks for."""
        request = protocol.parse(data)
        begins = isinstance(request, Load | Generate | Problem)  # with a done message, which the first one waits for
        if begins and request.id in self._running:
            return [protocol.error(request.id, Code.UNEXPECTED, "A request with this unique_request_id still runs.")]
        if isinstance(request, Problem):
            return list(request.answers)
        return self._handlers[request.kind](request)

    def finished(self, request: Load | Generate) -> None:
        """Forget a request whose done message goes out: its id may be used again."""
        del self._running[request.id]

    def use(self, request: Load, loaded: Loaded) -> None:
        """Take what a load brought, unless another one was asked for since."""
        if request is self._newest:
            self.loaded = loaded

    def _load(self, request: Load) -> list[Step]:
        """Begin to load. What was loaded counts no more: what is asked from now on is not meant for it."""
        older: list[Step] = [Stop(id_) for id_, running in self._running.items() if isinstance(running, Load)]
        self.loaded = None
        self._newest = self._running[request.id] = request
        return [protocol.load_ack(request.id, request.provider), *older, request]

    def _generate(self, request: Generate) -> list[Step]:
        ack = protocol.generate_ack(request.id)
        code, detail = self._refusal()
        if code is not Code.SUCCESS:
            return [ack, protocol.generate_done(request.id, code, detail, streams=request.stream)]
        self._running[request.id] = request
        return [ack, request]

    def _refusal(self) -> tuple[Code, str]:
        """Say why nothing can be generated now."""
        if self.loaded is None:
            return Code.INVALID_PROVIDER, self._nothing_loaded()
        if sum(isinstance(running, Generate) for running in self._running.values()) >= self._most:
            return Code.UNEXPECTED, f"{self._most} generations run on this connection already: wait until one ends."
        return Code.SUCCESS, ""

    def _nothing_loaded(self) -> str:
        if any(isinstance(running, Load) for running in self._running.values()):
            return "The provider is still being loaded: wait for load_done."
        return "No provider is loaded: send load first."

    def _interrupt(self, request: Interrupt) -> list[Step]:
        """End one request, or all generations; a target that has ended already needs nothing more."""
        if request.target is not None:
            ids = [request.target] if request.target in self._running else []
        else:
            ids = [id_ for id_, running in self._running.items() if isinstance(running, Generate)]
        return [protocol.interrupt_ack(request.id), *map(Stop, ids)]

    def _close(self, request: Close) -> list[Step]:
        if not self._may_close:
            return [protocol.error(request.id, Code.AUTHORIZATION, "close is for clients on the gateway's own machine.")]
        return [protocol.close_ack(request.id), request]

    def _get_providers(self, request: GetProviders) -> list[Step]:
        return [protocol.get_providers_done(request.id, self._providers, **self._needs)]

    def _get_models(self, request: GetModels) -> list[Step]:
        if self.loaded is None:
            return [protocol.get_models_done(request.id, (), Code.INVALID_PROVIDER, self._nothing_loaded())]
        return [protocol.get_models_done(request.id, self.loaded.models)]
